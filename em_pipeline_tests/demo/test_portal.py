"""The demonstration portal answers as the archive's servers do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.demo.replay import Trouble

DATA = "/empiar/world_availability/11759/data/"
FILE = f"{DATA}F57-8_test1_3VBSED_slice_0000.dm3"


@pytest.fixture
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoPortal]:
    with DemoPortal(tmp_path_factory.getbasetemp() / "demo-portal") as portal:
        yield portal


@pytest.fixture
def client(portal: DemoPortal) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=portal.url) as client:
        yield client


def content(portal: DemoPortal) -> bytes:
    return (portal.tree / "11759" / "data" / FILE.rpartition("/")[2]).read_bytes()


@pytest.mark.parametrize("accession", ["11759", "EMPIAR-11759"])
def test_the_entry_claims_what_the_real_one_claims(accession: str, client: httpx.Client) -> None:
    image_set = client.get(f"/empiar/api/entry/{accession}/").json()["EMPIAR-11759"]["imagesets"][0]
    assert (image_set["image_width"], image_set["image_height"]) == ("5628", "5632")
    assert image_set["num_images_or_tilt_series"] == 16


def test_an_unknown_entry_is_404(client: httpx.Client) -> None:
    assert client.get("/empiar/api/entry/1/").status_code == 404


def test_a_file_and_its_headers(portal: DemoPortal, client: httpx.Client) -> None:
    whole = content(portal)
    head, got = client.head(FILE), client.get(FILE)
    assert got.content == whole
    assert head.content == b""
    assert head.headers["Content-Length"] == str(len(whole))
    assert head.headers["Accept-Ranges"] == "bytes"
    assert head.headers["ETag"] == got.headers["ETag"]
    assert head.headers["Last-Modified"] == "Wed, 01 Nov 2023 12:00:00 GMT"


@pytest.mark.parametrize("asked", ["bytes=0-9", "bytes=100-", "bytes=-7", "bytes=5-99999999", "bytes=0-"])
def test_ranges(asked: str, portal: DemoPortal, client: httpx.Client) -> None:
    whole = content(portal)
    first, last = asked.removeprefix("bytes=").split("-")
    part = whole[int(first) : int(last) + 1 if last else None] if first else whole[-int(last) :]
    got = client.get(FILE, headers={"Range": asked})
    assert got.status_code == 206
    assert got.content == part
    begin = whole.index(part) if len(part) > 10 else int(first or len(whole) - len(part))
    assert got.headers["Content-Range"] == f"bytes {begin}-{begin + len(part) - 1}/{len(whole)}"


def test_ranges_that_cannot_be(portal: DemoPortal, client: httpx.Client) -> None:
    beyond = client.get(FILE, headers={"Range": f"bytes={len(content(portal))}-"})
    assert (beyond.status_code, beyond.content) == (416, b"")
    assert client.get(FILE, headers={"Range": "lines=1-2"}).status_code == 200
    changed = client.get(FILE, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert changed.status_code == 200


def test_the_listing_is_an_autoindex(client: httpx.Client) -> None:
    page = client.get(DATA).text
    for words in ("Index of", "?C=N;O=D", "Parent Directory", 'href="trakem2.example/"', ">443K<"):
        assert words in page


def test_nothing_outside_the_archive_is_served(client: httpx.Client) -> None:
    for path in ("/etc/passwd", "/empiar/world_availability/%2e%2e/%2e%2e/etc/passwd", f"{DATA}../../../../"):
        assert client.get(path).status_code in (200, 404)
        assert "root:" not in client.get(path).text


def test_the_search_knows_one_collection(client: httpx.Client) -> None:
    base = "/biostudies/api/v1"
    known = client.get(f"{base}/BioImages-EMPIAR/search?query=*:*&pageSize=2&page=2").json()
    assert (known["totalHits"], [hit["accession"] for hit in known["hits"]]) == (3, ["EMPIAR-11759"])
    assert client.get(f"{base}/Other/search?query=*:*").json()["totalHits"] == 0
    assert client.get(f"{base}/BioImages-EMPIAR/search?query=*").json()["totalHits"] == 0


def test_it_counts(portal: DemoPortal, client: httpx.Client) -> None:
    client.get(FILE, headers={"Range": "bytes=0-9"})
    client.head(FILE)
    assert portal.bytes_served == 10
    assert portal.requests[FILE] == 2


def test_trouble_passes(portal: DemoPortal, client: httpx.Client) -> None:
    portal.trouble(Trouble.SERVER_ERROR, FILE, times=1)
    assert [client.get(FILE).status_code for _ in range(2)] == [500, 200]
    portal.trouble(Trouble.CUT, FILE)
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(FILE)
    portal.heal()
    portal.trouble(Trouble.RESET, times=1)
    with pytest.raises(httpx.TransportError):
        client.get(FILE)
    assert client.get(FILE).status_code == 200


def test_a_second_portal_finds_the_files(tmp_path: Path) -> None:
    first = DemoPortal(tmp_path, retina_shape=(2, 30, 20))
    first.stop()
    made = {path: path.stat().st_ino for path in first.tree.rglob("*")}
    second = DemoPortal(tmp_path, retina_shape=(2, 30, 20))
    second.stop()
    assert {path: path.stat().st_ino for path in second.tree.rglob("*")} == made
    assert [path.name for path in tmp_path.iterdir()] == [first.tree.name]


def test_generated_bytes_are_the_same_everywhere(tmp_path: Path) -> None:
    trees = []
    for name in ("a", "b"):
        portal = DemoPortal(tmp_path / name, retina_shape=(2, 30, 20))
        portal.stop()
        trees.append(
            {p.relative_to(portal.tree): p.read_bytes() for p in portal.tree.rglob("*") if p.is_file()}
        )
    assert trees[0] == trees[1]


def test_large_sections_repeat_a_tile(tmp_path: Path) -> None:
    portal = DemoPortal(tmp_path, retina_shape=(1, 1100, 2100))
    portal.stop()
    (section,) = portal.tree.glob("11759/data/*.dm3")
    assert section.stat().st_size > 1100 * 2100


@pytest.mark.integration
def test_the_command_prints_its_address_and_ends_on_a_signal(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "em_pipeline.demo.portal",
        "--folder",
        str(tmp_path),
        "--shape",
        "2,30,20",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONWARNINGS": "error"})
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        assert httpx.get(f"{url}/empiar/api/entry/11759/").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
