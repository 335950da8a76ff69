"""What a killed or repeated download keeps, files that stay in place, and names that may not be used."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from em_pipeline.domain.errors import (
    Busy,
    ChecksumMismatch,
    InputRefused,
    NotFound,
    RecordInvalid,
    SourceUnavailable,
    StorageFailed,
)
from em_pipeline.domain.files import Manifest, RemoteFile
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.download import DownloadPolicy, download
from em_pipeline.storage.lock import file_lock
from em_pipeline_tests.portals.faulty import Fault, FaultyServer, faulty_server
from em_pipeline_tests.storage.downloads import Watcher, hold

PART = 16_384
CONNECTIONS = 3
FILES = {
    "/big.bin": random.Random(1).randbytes(24 * PART + 5),
    "/small.bin": random.Random(2).randbytes(100),
    "/other.bin": random.Random(3).randbytes(3 * PART),
}
POLICY = DownloadPolicy(
    connections=CONNECTIONS, read_timeout_s=20.0, retries=2, backoff_s=0.01, part_size=PART, request_size=PART
)
pytestmark = pytest.mark.usefixtures("unhurried")


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server(FILES) as running:
        yield running


def listing(server: FaultyServer) -> list[RemoteFile]:
    return [
        RemoteFile(url=server.url + path, path=f"d{path}", size=len(data)) for path, data in FILES.items()
    ]


def run(files: list[RemoteFile], folder: Path) -> Manifest:
    return download(files, folder, dataset_id="files-a", revision="r1", policy=POLICY, progress=Silent())


def assert_all_held(manifest: Manifest, folder: Path) -> None:
    assert [file.path for file in manifest.files] == [f"d{path}" for path in FILES]
    for file, data in zip(manifest.files, FILES.values(), strict=True):
        assert (folder / file.path).read_bytes() == data
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_what_is_whole_is_never_fetched_again(server: FaultyServer, tmp_path: Path) -> None:
    first = run(listing(server), tmp_path)
    assert_all_held(first, tmp_path)
    asked = len(server.requests)
    again = run(listing(server), tmp_path)
    assert again == first
    assert again.digest == first.digest
    assert len(server.requests) == asked


def test_a_moved_copy_is_recognised_by_its_bytes_and_a_damaged_one_is_fetched(
    server: FaultyServer, tmp_path: Path
) -> None:
    run(listing(server), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    asked = len(server.requests)
    run(listing(server), tmp_path / "b")
    assert len(server.requests) == asked
    damaged = tmp_path / "b/d/small.bin"
    damaged.write_bytes(b"?" * 100)
    assert_all_held(run(listing(server), tmp_path / "b"), tmp_path / "b")
    assert len(server.requests) == asked + 1


CLIENT = """
import json, sys
from pathlib import Path
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.download import DownloadPolicy, download
files = [RemoteFile(**entry) for entry in json.loads(sys.argv[1])]
policy = DownloadPolicy(**json.loads(sys.argv[3]))
download(files, Path(sys.argv[2]), dataset_id="files-a", revision="r1", policy=policy, progress=Silent())
"""


@pytest.mark.integration
def test_downloads_killed_at_any_moment_resume_and_fetch_little_twice(
    server: FaultyServer, tmp_path: Path
) -> None:
    files = json.dumps([file.model_dump() for file in listing(server)])
    policy = json.dumps(
        {"connections": CONNECTIONS, "part_size": PART, "request_size": PART, "backoff_s": 0.01}
    )
    server.always = Fault(delay_s=0.02)
    total = sum(len(data) for data in FILES.values())
    dice = random.Random(0)
    kills = 0
    for _ in range(4):
        command = [sys.executable, "-c", CLIENT, files, str(tmp_path), policy]
        enough = server.sent + dice.randint(1, total // 8)
        with subprocess.Popen(command) as client:
            while server.sent < enough and client.poll() is None:
                time.sleep(0.005)
            kills += client.poll() is None
            client.send_signal(signal.SIGKILL)
        assert (
            not (tmp_path / "d/big.bin").exists()
            or (tmp_path / "d/big.bin").read_bytes() == FILES["/big.bin"]
        )
    assert kills >= 2
    server.always = None
    assert_all_held(run(listing(server), tmp_path), tmp_path)
    # Each kill may lose the parts in flight, and what the kernel had buffered of them.
    assert server.sent <= total + kills * CONNECTIONS * PART


def test_finished_parts_survive_an_outage(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [None] * 14 + [Fault(status=500)] * 100
    with pytest.raises(SourceUnavailable):
        run(listing(server), tmp_path)
    assert not (tmp_path / "d/big.bin").exists()
    server.faults = []
    held = server.sent
    assert held >= 10 * PART
    assert_all_held(run(listing(server), tmp_path), tmp_path)
    assert server.sent <= sum(len(data) for data in FILES.values()) + CONNECTIONS * PART


def test_a_file_that_changed_between_runs_is_fetched_from_its_beginning(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.faults = [None] * 12 + [Fault(status=500)] * 100
    with pytest.raises(SourceUnavailable):
        run(listing(server), tmp_path)
    new = random.Random(9).randbytes(len(FILES["/big.bin"]))
    server.faults = []
    server.files["/big.bin"], server.etags["/big.bin"] = new, '"new"'
    run(listing(server), tmp_path)
    assert (tmp_path / "d/big.bin").read_bytes() == new


@pytest.mark.parametrize("damage", ["journal torn", "journal nonsense", "part shorter", "part gone"])
def test_damaged_leftovers_never_become_data(server: FaultyServer, tmp_path: Path, damage: str) -> None:
    server.faults = [None] * 12 + [Fault(status=500)] * 100
    with pytest.raises(SourceUnavailable):
        run(listing(server), tmp_path)
    server.faults = []
    work = tmp_path / ".download"
    journals, parts = list(work.glob("*.journal")), list(work.glob("*.part"))
    assert journals
    for path in journals if damage.startswith("journal") else parts:
        if damage == "journal torn":
            path.write_text(path.read_text() + "2")
        elif damage == "journal nonsense":
            path.write_text("{")
        elif damage == "part shorter":
            os.truncate(path, 10)
        else:
            path.unlink()
    assert_all_held(run(listing(server), tmp_path), tmp_path)


def test_a_kill_between_record_and_renaming_loses_nothing(server: FaultyServer, tmp_path: Path) -> None:
    run(listing(server), tmp_path)
    name = hashlib.sha256(b"d/big.bin").hexdigest()
    (tmp_path / "d/big.bin").rename(tmp_path / ".download" / f"{name}.part")
    asked = len(server.requests)
    assert_all_held(run(listing(server), tmp_path), tmp_path)
    assert len(server.requests) == asked


def test_files_in_place_are_hashed_once_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "my data #1.tif"
    source.write_bytes(FILES["/big.bin"])
    file = RemoteFile(url=source.as_uri(), path="my data #1.tif")
    manifest = run([file], tmp_path / "raw")
    assert manifest.files[0].in_place
    assert manifest.files[0].sha256 == hashlib.sha256(FILES["/big.bin"]).hexdigest()
    assert not (tmp_path / "raw/my data #1.tif").exists()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "new", None)
        assert run([file], tmp_path / "raw") == manifest
    source.write_bytes(b"changed")
    assert run([file], tmp_path / "raw").files[0].size == 7


def test_hashing_in_place_is_not_called_a_download(server: FaultyServer, tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    source.write_bytes(FILES["/big.bin"])
    here = RemoteFile(url=source.as_uri(), path="a.tif", size=source.stat().st_size)
    for files, step in (([here], "hash"), ([here, *listing(server)], "download")):
        watcher = Watcher()
        hold(files, tmp_path / step, watcher=watcher)
        assert watcher.step == step
        assert set(watcher.advanced) == {step}


def test_bad_files_in_place_are_refused_and_kept(tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    source.write_bytes(b"abc")
    url = source.as_uri()
    cases = [
        (RemoteFile(url=url, path="a", checksum="md5:" + "0" * 32), ChecksumMismatch),
        (RemoteFile(url=url, path="a", size=4), RecordInvalid),
        (RemoteFile(url=url + ".gone", path="a"), NotFound),
        (RemoteFile(url=tmp_path.as_uri(), path="a"), InputRefused),
        (RemoteFile(url="file://elsewhere/a", path="a"), InputRefused),
    ]
    for file, error in cases:
        with pytest.raises(error):
            run([file], tmp_path / "raw")
    assert source.read_bytes() == b"abc"


@pytest.mark.parametrize(
    "paths",
    [
        ["a.tif", "a.tif"],
        ["a.tif", "A.TIF"],
        ["é", "e\u0301"],
        ["a", "a/b"],
        [".download/lock"],
        [".em-tmp-x"],
        ["a/.em-tmp-x/b"],
        ["x" * 300],
        [],
    ],
)
def test_listings_that_cannot_be_held_are_refused(
    server: FaultyServer, tmp_path: Path, paths: list[str]
) -> None:
    with pytest.raises(RecordInvalid):
        run([RemoteFile(url=f"{server.url}/small.bin", path=path) for path in paths], tmp_path)
    assert server.requests == []


def test_names_never_leave_the_folder(server: FaultyServer, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"mine")
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    for path in ("link/x", "link/deeper/x"):
        with pytest.raises(InputRefused, match="link"):
            run([RemoteFile(url=f"{server.url}/small.bin", path=path)], folder)
    (folder / "victim").symlink_to(outside / "victim")
    run([RemoteFile(url=f"{server.url}/small.bin", path="victim")], folder)
    assert (folder / "victim").read_bytes() == FILES["/small.bin"]
    escaping = RemoteFile.model_construct(
        url=f"{server.url}/small.bin", path="../x", checksum=None, size=None
    )
    with pytest.raises(RecordInvalid):
        run([escaping], folder)
    assert sorted(p.name for p in outside.iterdir()) == ["victim"]
    assert (outside / "victim").read_bytes() == b"mine"


def test_too_little_space_is_said_before_anything_is_fetched(server: FaultyServer, tmp_path: Path) -> None:
    huge = RemoteFile(url=f"{server.url}/small.bin", path="a", size=2**60)
    with pytest.raises(StorageFailed, match=f"{2**60} bytes are needed and \\d+ are free"):
        run([huge], tmp_path)
    assert server.requests == []


def test_a_disk_that_fills_up(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) >= len(FILES["/small.bin"]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)  # the lock's holder

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageFailed, match=r"No space left.*free space"):
            run(listing(server), tmp_path)
    run(listing(server), tmp_path)


def test_one_download_at_a_time_per_folder(server: FaultyServer, tmp_path: Path) -> None:
    with file_lock(tmp_path / ".download/lock", "x"), pytest.raises(Busy, match=f"process {os.getpid()}"):
        run(listing(server), tmp_path)


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="s3://"):
        run([RemoteFile(url="sftp://host/a", path="a")], tmp_path)
