"""Blobs on a disk, beyond what `test_blobs` asks of every place: leftovers, refusals, durability."""

import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from em_pipeline.domain.blobs import BlobSink
from em_pipeline.domain.errors import Busy, StorageFailed
from em_pipeline.storage.direct_io import AppendedFile
from em_pipeline.storage.local_blobs import LocalBlobs

MIB = 1 << 20


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "place")


def everything(blobs: LocalBlobs) -> list[str]:
    return sorted(path.relative_to(blobs.root).as_posix() for path in blobs.root.rglob("*") if path.is_file())


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """The system refuses files of this process beyond so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def append_and_commit(sink: BlobSink, payload: bytes) -> None:
    """What is appended may be written only by the time of `commit`."""
    sink.append(payload)
    sink.commit()


@pytest.mark.parametrize("kind", ["create", "create_scratch"])
@pytest.mark.parametrize("limit", [2 * MIB, 2 * MIB + 77])
def test_a_disk_that_takes_no_more_leaves_the_old_blob_and_no_leftover(
    blobs: LocalBlobs, kind: str, limit: int
) -> None:
    blobs.write("a/x", b"old")
    sink = getattr(blobs, kind)("a/x")
    with largest_file(limit):
        sink.append(bytes(2 * MIB))
        with pytest.raises(StorageFailed, match=r"(?i)too large.*free space"):
            append_and_commit(sink, bytes(9 * MIB))
        with pytest.raises(ValueError, match="could not be written"):
            sink.append(b"more")
        with pytest.raises(ValueError, match="could not be written"):
            sink.commit()
    sink.abandon()
    assert blobs.read("a/x") == b"old"
    assert everything(blobs) == ["a/x"]


def test_a_tail_that_the_disk_refused_is_never_taken_for_written(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = AppendedFile.sync
    refusals = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def refuse(file: AppendedFile) -> None:
        if refusals:
            raise refusals.pop()
        really(file)

    monkeypatch.setattr(AppendedFile, "sync", refuse)
    sink = blobs.create("x")
    sink.append(b"1234567")
    with pytest.raises(StorageFailed, match="No space left"):
        sink.commit()
    with pytest.raises(ValueError, match="could not be written"):
        sink.commit()
    sink.abandon()
    assert everything(blobs) == []


@pytest.mark.parametrize("ended", ["commit", "abandon"])
def test_a_blob_that_is_finished_takes_no_more(blobs: LocalBlobs, ended: str) -> None:
    sink = blobs.create("x")
    getattr(sink, ended)()
    # The number of the closed file may be another file's by now.
    other = os.open(blobs.root / "other", os.O_RDWR | os.O_CREAT)
    for use in (lambda: sink.append(b"astray"), sink.commit):
        with pytest.raises(ValueError, match="committed or abandoned"):
            use()
    assert os.fstat(other).st_size == 0
    os.close(other)


def test_the_content_and_the_name_are_flushed_before_a_commit_returns(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name[:8]}")
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    blobs.write("a/x", b"")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    sink = blobs.create("a/x")
    sink.append(b"1")
    sink.commit()
    assert steps == ["fsync .em-tmp-", "rename", "fsync a"]
    steps.clear()
    blobs.delete("a/x")
    assert steps == ["fsync a"]
    steps.clear()
    scratch = blobs.create_scratch("a/y")
    scratch.append(b"1")
    scratch.commit()
    assert steps == ["rename"]


WRITER = """
import sys, time
from pathlib import Path
from em_pipeline.storage.local_blobs import LocalBlobs
blobs = LocalBlobs(Path(sys.argv[1]))
with blobs.hold():
    for kind in (blobs.create, blobs.create_scratch):
        sink = kind("volume/x")
        sink.append(bytes(5 << 20))
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.mark.integration
def test_what_a_killed_writer_left_is_hidden_then_removed_and_never_in_the_volume(blobs: LocalBlobs) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(blobs.root)], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(Busy), blobs.hold():
            pytest.fail("held twice")
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert list(blobs.names()) == []
    assert len(everything(blobs)) == 2
    assert not (blobs.root / "volume").exists()
    with blobs.hold():
        blobs.below("volume").clear_unfinished()
    assert everything(blobs) == []


def test_a_forked_child_does_not_keep_a_folder_that_was_left(blobs: LocalBlobs) -> None:
    with blobs.hold():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with blobs.hold():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_named_relatively_is_the_same_from_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(LocalBlobs(Path("place")).below("a"))
    monkeypatch.chdir("/")
    pickle.loads(sent).write("x", b"1")
    assert (tmp_path / "place" / "a" / "x").read_bytes() == b"1"


def test_a_blob_is_no_folder(blobs: LocalBlobs) -> None:
    blobs.write("a", b"1")
    blobs.delete_all("a")
    assert blobs.read("a") == b"1"
    sink = blobs.create("a/b")
    with pytest.raises(StorageFailed, match="Make the folder"):
        sink.commit()
    sink.abandon()
    assert everything(blobs) == ["a"]


def test_what_the_disk_refuses_is_said_and_never_absence(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "there")

    blobs.write("a/x", b"old")
    for owner, name, attempt in (
        (Path, "read_bytes", lambda: blobs.read("a/x")),
        (Path, "open", lambda: blobs.read_range("a/x", 0, 1)),
        (Path, "stat", lambda: blobs.size("a/x")),
        (Path, "unlink", lambda: blobs.delete("a/x")),
        (Path, "rename", lambda: blobs.delete_all("a")),
        (os, "open", lambda: blobs.create("a/y")),
        (os, "scandir", lambda: list(blobs.names())),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            with pytest.raises(StorageFailed, match=r"there: Input/output error"):
                attempt()
    assert everything(blobs) == ["a/x"]
