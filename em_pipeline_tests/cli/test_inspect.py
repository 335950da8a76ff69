"""`em inspect` and the options of `em ingest`, as a person uses them."""

import json
import socket
from pathlib import Path

import pytest

from em_pipeline.demo.portal import DemoPortal
from em_pipeline_tests.commands import em, run
from em_pipeline_tests.formats.sparse_tiff import EPFL, itk
from em_pipeline_tests.ingest.test_inspection import dm3, ome_zarr
from em_pipeline_tests.portals.folder import Folder

CORNER = ("--roi", "2:10,0:64,16:80", "--name", "corner")


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, str]:
    """An environment without database or portal: looking at files needs neither."""
    return {"HOME": str(tmp_path), "EM_HOME": str(tmp_path / "home"), "COLUMNS": "200"}


def test_a_huge_file_in_a_table_with_its_cost(plain: dict[str, str], tmp_path: Path) -> None:
    itk(tmp_path / "a.tif")
    with Folder(tmp_path) as folder:
        done = run(plain, "em", "inspect", f"{folder.url}/a.tif")
        requests, served = folder.asked, folder.bytes_served
    assert done.returncode == 0, done.stderr
    assert "1065×1536×2048 uint8" in done.stdout
    assert "1065 pages, 8 IFDs read" in done.stdout
    assert "nothing says the voxel size along z, y, x" in done.stdout
    assert f"Read {served:,} bytes of 3.1 GiB in {requests} requests." in done.stdout
    assert not (tmp_path / "home").exists()


def test_json_has_everything_under_stable_names(plain: dict[str, str], tmp_path: Path) -> None:
    itk(tmp_path / "a.tif")
    found = em(plain, "inspect", str(tmp_path / "a.tif"))
    assert list(found) == [
        "target", "kind", "size_bytes", "images", "labels", "notes", "bytes_read", "requests"
    ]  # fmt: skip
    (image,) = found["images"]
    assert list(image) == [
        "name", "shape", "dtype", "voxel_size_nm", "translation_nm", "axes", "chunk_shape", "compression",
        "byte_order", "format", "notes", "evidence", "headers",
    ]  # fmt: skip
    assert image["shape"] == list(EPFL)
    assert image["voxel_size_nm"] == [None, None, None]
    assert image["byte_order"] == "little-endian"
    assert image["headers"]["pages"]["count"] == 1065


def test_evidence_and_headers_are_shown(plain: dict[str, str], tmp_path: Path) -> None:
    path = dm3(tmp_path / "a.dm3")
    brief = run(plain, "em", "inspect", str(path)).stdout
    assert "voxel size along z" in brief
    assert "more with --headers" in brief
    whole = run(plain, "em", "inspect", str(path), "--headers").stdout
    assert "more with --headers" not in whole
    assert "Microscope Info" in whole
    assert len(whole.splitlines()) > len(brief.splitlines())


def test_levels_and_labels_are_listed(plain: dict[str, str], tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", 2, 3)
    shown = run(plain, "em", "inspect", str(tmp_path / "a.zarr")).stdout
    assert all(text in shown for text in ("s0", "512×512×512", "s2", "128×128×128", "20×16×16", "mito"))


@pytest.mark.parametrize(("scheme", "setting"), [("s3", "EM_S3_ENDPOINT"), ("gs", "EM_GS_ENDPOINT")])
def test_objects_are_looked_at_in_the_store_of_the_settings(
    plain: dict[str, str], tmp_path: Path, scheme: str, setting: str
) -> None:
    ome_zarr(tmp_path / "bucket" / "a.zarr", 2, 1)
    with Folder(tmp_path) as folder:
        found = em({**plain, setting: folder.url}, "inspect", f"{scheme}://bucket/a.zarr")
    assert found["images"][0]["shape"] == [512, 512, 512]
    assert found["requests"] > 0


@pytest.mark.integration
def test_a_dataset_is_inspected_at_its_portal(environment: dict[str, str]) -> None:
    found = em(environment, "inspect", "EMPIAR-11759")
    assert found["images"][0]["shape"] == [1, 110, 99]
    assert found["images"][0]["voxel_size_nm"][0] == 50
    assert any("first of the 16 files" in note for note in found["notes"])
    assert em(environment, "ls", "--all") == em(environment, "ls", "--all")


def test_an_outage_is_one(plain: dict[str, str], tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        url = folder.url
    done = run({**plain, "EM_DOWNLOAD_RETRIES": "0"}, "em", "inspect", f"{url}/a.tif", "--json")
    assert done.returncode == 4
    assert json.loads(done.stderr.splitlines()[-1])["error"] == "source-unavailable"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--roi", "1:2,3:4"], "z0:z1,y0:y1,x0:x1"),
        (["--roi", "5:2,0:1,0:1"], "below its stop"),
        (["--roi", "0:1,0:1,0:1", "--random-crop", "1,1,1", "--seed", "1"], "both given"),
        (["--random-crop", "1,1,1"], "--seed N is missing"),
        (["--level", ""], "s4"),
        (["--raw-shape", "1,1,1"], "--raw-dtype"),
    ],
)
def test_regions_that_make_no_sense_are_refused_before_anything_starts(
    plain: dict[str, str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    for command in ("ingest", "register"):
        done = run(plain, "em", command, "openorganelle-x", *arguments)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.integration
def test_a_box_and_a_random_crop_are_registered_beside_the_whole(
    environment: dict[str, str], portal: DemoPortal
) -> None:
    box = em(environment, "register", "empiar-11759", "--roi", "2:10,0:64,16:80")
    assert box["dataset_id"] == "empiar-11759-z2-10_y0-64_x16-80"
    crop = ["register", "empiar-11759", "--random-crop", "8,32,32", "--seed", "7"]
    assert em(environment, *crop)["dataset_id"] == "empiar-11759-8x32x32-seed7"
    assert em(environment, *crop)["new"] is False
    portal.stop()
    large = run(environment, "em", *crop[:-1], "8")
    assert large.returncode == 4, large.stderr


@pytest.mark.integration
def test_a_box_is_ingested(environment: dict[str, str]) -> None:
    made = em(environment, "ingest", "empiar-11759", *CORNER)
    assert (made["dataset_id"], made["shape"]) == ("empiar-11759-corner", [8, 64, 64])
    assert em(environment, "ingest", "empiar-11759-corner")["changed"] is False
    refused = run(environment, "em", "rm", "empiar-11759-corner", "--yes")
    assert refused.returncode == 2
    assert "--volume" in refused.stderr
    assert run(environment, "em", "rm", "empiar-11759-corner", "--volume", "--json").returncode == 2
    gone = em(environment, "rm", "empiar-11759-corner", "--volume", "--raw", "--yes")
    assert {"volumes/empiar-11759-corner", "raw/empiar-11759-corner"} <= set(gone["deleted"])
    assert "empiar-11759-corner" not in {row["dataset_id"] for row in em(environment, "ls", "--all")}
    assert em(environment, "register", "empiar-11759", *CORNER)["new"] is True


def test_a_host_that_refuses_connections_is_said_so_soon(plain: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        done = run(plain, "em", "inspect", f"http://127.0.0.1:{taken.getsockname()[1]}/a.tif")
    assert done.returncode == 4
    assert "3 attempts failed, the last with: ConnectError" in done.stderr
    assert "try again later\n" in done.stderr
