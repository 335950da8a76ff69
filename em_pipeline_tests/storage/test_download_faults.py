"""One test per way a server can fail: identical bytes or a clear error, never wrong data."""

import hashlib
import random
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from em_pipeline.domain.errors import (
    ChecksumMismatch,
    EmError,
    InputRefused,
    NotFound,
    RecordInvalid,
    SourceUnavailable,
)
from em_pipeline.domain.files import Manifest, RemoteFile
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.download import DownloadPolicy, download
from em_pipeline_tests.portals.faulty import Fault, FaultyServer, faulty_server

PART = 32_768
DATA = random.Random(7).randbytes(10 * PART + 777)
OTHER = random.Random(8).randbytes(len(DATA))
LONGER = OTHER + b"more"
HTML = b"<!DOCTYPE html><html><body>Down for maintenance</body></html>"
PATIENT = DownloadPolicy(
    connections=4,
    connect_timeout_s=20.0,
    read_timeout_s=20.0,
    retries=3,
    backoff_s=0.01,
    longest_wait_s=2.0,
    part_size=PART,
    request_size=PART,
)
# For servers that fall silent; so soon, a busy machine may look like one.
HASTY = replace(PATIENT, read_timeout_s=0.4)
# Longer than a busy machine is silent.
FIRM = replace(PATIENT, read_timeout_s=1.5)
pytestmark = pytest.mark.usefixtures("unhurried")


class Watcher(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total = 0
        self.done = 0

    def start(self, step: str, total: int, unit: str) -> None:
        self.total = total

    def advance(self, step: str, amount: int) -> None:
        assert amount >= 0
        self.done += amount

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server({"/a.bin": DATA}) as running:
        yield running


def fetch(
    server: FaultyServer,
    folder: Path,
    *,
    policy: DownloadPolicy = PATIENT,
    watcher: Watcher | None = None,
    **listed: object,
) -> Manifest:
    file = RemoteFile.model_validate({"url": f"{server.url}/a.bin", "path": "sub/a.bin", **listed})
    return download(
        [file],
        folder,
        dataset_id="files-a",
        revision="r1",
        policy=policy,
        progress=watcher or Watcher(),
    )


def assert_holds(manifest: Manifest, folder: Path, data: bytes = DATA) -> None:
    (file,) = manifest.files
    assert (folder / file.path).read_bytes() == data
    assert file.size == len(data)
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert not [p for p in (folder / ".download").iterdir() if p.suffix in (".part", ".journal")]


def test_parts_of_a_good_server_become_the_file(server: FaultyServer, tmp_path: Path) -> None:
    watcher = Watcher()
    manifest = fetch(server, tmp_path, watcher=watcher, size=len(DATA))
    assert_holds(manifest, tmp_path)
    assert manifest.files[0].etag == server.etags["/a.bin"]
    assert server.sent == len(DATA)
    # A few bytes, which tell what there is, then each part.
    assert len(server.requests) == 12
    assert len({request.client for request in server.requests}) <= PATIENT.connections
    assert (watcher.total, watcher.done, watcher.notes) == (len(DATA), len(DATA), [])


CURABLE = {
    "stall": Fault(stall_after=9_000),
    "silence from the start": Fault(stall_after=0),
    "reset mid-body": Fault(reset_after=9_000),
    "short body": Fault(drop=5_000),
    "long body": Fault(surplus=10),
    "long chunked body": Fault(surplus=10, chunked=True),
    "truncated chunks": Fault(chunked=True, drop=5_000),
    "500": Fault(status=500),
    "502 web page": Fault(status=502, body=HTML, headers={"Content-Type": "text/html"}),
    "429": Fault(status=429, headers={"Retry-After": "0"}),
    "wrong Content-Range": Fault(headers={"Content-Range": f"bytes 1-{PART}/{len(DATA)}"}),
    "a shifted part": Fault(
        status=206,
        body=DATA[1:PART],
        headers={"Content-Range": f"bytes 1-{PART - 1}/{len(DATA)}"},
        chunked=True,
    ),
    "Content-Range of another size": Fault(headers={"Content-Range": f"bytes 0-{PART - 1}/{PART}"}),
    "no Content-Range": Fault(status=206, body=DATA[:PART]),
    "not a number of bytes": Fault(headers={"Content-Range": "bytes a-b/c"}),
    "a part without its length": Fault(no_length=True, drop=100),
    "slow": Fault(delay_s=0.02),
    "whole file in place of a part": Fault(ignore_range=True),
    "chunked": Fault(chunked=True),
}


def policy_for(fault: Fault | None) -> DownloadPolicy:
    return HASTY if fault is not None and fault.stall_after is not None else PATIENT


@pytest.mark.parametrize("position", [0, 3])
@pytest.mark.parametrize("name", CURABLE)
def test_a_passing_fault_is_cured(server: FaultyServer, tmp_path: Path, name: str, position: int) -> None:
    server.faults = [None] * position + [CURABLE[name]]
    assert_holds(fetch(server, tmp_path, policy=policy_for(CURABLE[name]), size=len(DATA)), tmp_path)


@pytest.mark.parametrize("position", [0, 3])
def test_two_faults_in_a_row_are_cured(server: FaultyServer, tmp_path: Path, position: int) -> None:
    server.faults = [None] * position + [Fault(reset_after=100), Fault(status=503), Fault(drop=1)]
    assert_holds(fetch(server, tmp_path), tmp_path)


def test_a_stalled_part_is_asked_for_again_on_a_new_connection_from_where_it_got(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.faults = [Fault(stall_after=8_192)]
    watcher = Watcher()
    began = time.monotonic()
    assert_holds(fetch(server, tmp_path, policy=FIRM, watcher=watcher), tmp_path)
    assert time.monotonic() - began < 20  # the server is silent for 30 s
    again = [request for request in server.requests if request.range == f"bytes=8192-{PART - 1}"]
    assert len(again) == 1
    assert again[0].client != server.requests[0].client
    assert server.sent == len(DATA)
    assert any("no bytes for 1.5 s" in note for note in watcher.notes)


def test_a_trickle_counts_as_a_stall(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [Fault(delay_s=0.05, piece=8)]
    watcher = Watcher()
    assert_holds(fetch(server, tmp_path, policy=FIRM, watcher=watcher), tmp_path)
    assert any(re.search(r"only \d+ bytes in", note) for note in watcher.notes)


def test_retry_after_is_waited_for(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [Fault(status=503, headers={"Retry-After": "1"})]
    began = time.monotonic()
    assert_holds(fetch(server, tmp_path), tmp_path)
    assert time.monotonic() - began >= 1


def test_a_wait_beyond_patience_is_an_outage(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [Fault(status=503, headers={"Retry-After": "3600"})]
    with pytest.raises(SourceUnavailable, match="asks to wait 3600 s"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1


LASTING: dict[str, tuple[Fault, type[EmError], str]] = {
    "500": (Fault(status=500), SourceUnavailable, "4 attempts failed, the last with: HTTP 500"),
    "stall": (Fault(stall_after=0), SourceUnavailable, "no bytes for 0.4 s"),
    "reset": (Fault(reset_after=0), SourceUnavailable, "4 attempts failed"),
    "long body": (Fault(surplus=9), SourceUnavailable, "Content-Length"),
    "404": (Fault(status=404), NotFound, "HTTP 404"),
    "410": (Fault(status=410), NotFound, "HTTP 410"),
    "401": (Fault(status=401), InputRefused, "HTTP 401.*not public"),
    "403": (Fault(status=403), InputRefused, "HTTP 403.*not public"),
    "418": (Fault(status=418), RecordInvalid, "HTTP 418"),
    "HTML by type": (
        Fault(body=b"x" * len(DATA), headers={"Content-Type": "text/html"}),
        SourceUnavailable,
        "4 attempts failed.*web page",
    ),
    "HTML by its bytes": (Fault(body=HTML), SourceUnavailable, "web page"),
    "gzip": (Fault(headers={"Content-Encoding": "gzip"}), RecordInvalid, "Content-Encoding gzip"),
    "redirect to a file": (
        Fault(status=302, headers={"Location": "file:///etc/passwd"}),
        RecordInvalid,
        "redirects to 'file:///etc/passwd'",
    ),
    "redirects without end": (
        Fault(status=302, headers={"Location": "/a.bin"}),
        RecordInvalid,
        "more than 5 redirects",
    ),
    "no length at all": (Fault(ignore_range=True, no_length=True), RecordInvalid, "how long"),
    "weaker than listed": (Fault(body=b"short"), RecordInvalid, "its size went from"),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_fault_is_a_clear_error(server: FaultyServer, tmp_path: Path, name: str) -> None:
    server.always, error, said = LASTING[name]
    listed = {"size": len(DATA)} if name == "weaker than listed" else {}
    with pytest.raises(error, match=said) as caught:
        fetch(server, tmp_path, policy=policy_for(server.always), **listed)
    assert f"{server.url}/a.bin" in str(caught.value)
    assert not (tmp_path / "sub/a.bin").exists()


def test_nobody_listening_is_an_outage(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        file = RemoteFile(url=f"http://127.0.0.1:{taken.getsockname()[1]}/a", path="a")
        with pytest.raises(SourceUnavailable, match=r"4 attempts.*refused"):
            download([file], tmp_path, dataset_id="d", revision="r", policy=PATIENT, progress=Silent())


def test_redirects_to_another_server_are_followed(server: FaultyServer, tmp_path: Path) -> None:
    with faulty_server({}) as front:
        front.always = Fault(status=307, headers={"Location": f"{server.url}/a.bin"})
        assert_holds(fetch(front, tmp_path), tmp_path)


@pytest.mark.parametrize("retries_range", [True, False])
@pytest.mark.parametrize(
    "fault",
    [None, Fault(reset_after=50_000), Fault(drop=9), Fault(chunked=True, drop=9), Fault(stall_after=99)],
)
def test_a_server_without_ranges_is_read_in_one_stream(
    server: FaultyServer, tmp_path: Path, fault: Fault | None, retries_range: bool
) -> None:
    server.ranges = False
    server.faults = [fault]
    listed = {"size": len(DATA)} if retries_range else {}
    policy = policy_for(fault)
    assert_holds(fetch(server, tmp_path, policy=policy, **listed), tmp_path)
    needed = 1 if fault is None else 2
    assert needed <= len(server.requests) <= (needed if policy is PATIENT else 1 + HASTY.retries)


def test_a_stream_that_changes_between_attempts_is_hashed_as_it_ended(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.ranges = False
    server.faults = [Fault(drop=9), Fault(become=OTHER)]
    assert_holds(fetch(server, tmp_path), tmp_path, OTHER)


def test_a_stream_that_ends_early_without_saying_its_length_is_noticed(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.always = Fault(ignore_range=True, no_length=True, drop=9)
    with pytest.raises(SourceUnavailable, match=f"{len(DATA) - 9} of {len(DATA)} bytes"):
        fetch(server, tmp_path, size=len(DATA))


def test_ranges_lost_midway_restart_the_file_as_a_stream(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [None, None, *[Fault(ignore_range=True)] * 60]
    watcher = Watcher()
    assert_holds(fetch(server, tmp_path, watcher=watcher, size=len(DATA)), tmp_path)
    assert any("from its beginning" in note for note in watcher.notes)


@pytest.mark.parametrize("ignore_if_range", [True, False])
@pytest.mark.parametrize("new", [OTHER, LONGER, OTHER[:PART]])
def test_a_file_that_changes_midway_is_restarted(
    server: FaultyServer, tmp_path: Path, new: bytes, ignore_if_range: bool
) -> None:
    server.always = Fault(ignore_if_range=ignore_if_range)
    server.faults = [None, None, None, Fault(become=new, ignore_if_range=ignore_if_range)]
    watcher = Watcher()
    assert_holds(fetch(server, tmp_path, watcher=watcher), tmp_path, new)
    assert any("from its beginning" in note for note in watcher.notes)


def test_a_file_that_never_stays_the_same_is_an_outage(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [Fault(ignore_if_range=True, etag=f'"{n}"') for n in range(300)]
    with pytest.raises(SourceUnavailable, match="changed 4 times"):
        fetch(server, tmp_path)


def test_a_file_that_changed_since_it_was_listed_is_refused(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(RecordInvalid, match="since it was listed, its ETag went"):
        fetch(server, tmp_path, etag='"listed"')
    with pytest.raises(RecordInvalid, match=re.escape(f"its size went from 5 to {len(DATA)}")):
        fetch(server, tmp_path, size=5)


@pytest.mark.parametrize("algorithm", ["md5", "sha256", "sha512"])
def test_a_promised_checksum_is_verified(server: FaultyServer, tmp_path: Path, algorithm: str) -> None:
    right = hashlib.new(algorithm, DATA).hexdigest()
    wrong = hashlib.new(algorithm, OTHER).hexdigest()
    with pytest.raises(ChecksumMismatch, match=wrong):
        fetch(server, tmp_path, checksum=f"{algorithm}:{wrong}")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["lock"]
    assert_holds(fetch(server, tmp_path, checksum=f"{algorithm}:{right}"), tmp_path)


def test_an_unknown_checksum_is_refused_before_anything_is_fetched(
    server: FaultyServer, tmp_path: Path
) -> None:
    for bad in ("crc99:00", "md5:zz", "abc", "sha256:"):
        with pytest.raises(RecordInvalid, match="checksum"):
            fetch(server, tmp_path, checksum=bad)
    assert server.requests == []


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1])
@pytest.mark.parametrize("known", [True, False])
def test_sizes_at_the_edges_of_parts(tmp_path: Path, size: int, ranges: bool, known: bool) -> None:
    with faulty_server({"/a.bin": DATA[:size]}) as server:
        server.ranges = ranges
        listed = {"size": size} if known else {}
        assert_holds(fetch(server, tmp_path, **listed), tmp_path, DATA[:size])


def test_requests_keep_to_the_rate(server: FaultyServer, tmp_path: Path) -> None:
    policy = DownloadPolicy(connections=4, requests_per_second=20, part_size=PART, request_size=PART)
    began = time.monotonic()
    assert_holds(fetch(server, tmp_path, policy=policy), tmp_path)
    assert time.monotonic() - began >= 10 / 20
