"""Files past the page cache: the same bytes whatever is appended and whatever the file system refuses."""

import errno
import fcntl
import os
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from em_pipeline.storage.direct_io import BLOCK, AppendedFile, DirectFile

# Where there is one, a file system in memory: older ones refuse to be written past the page cache.
FOLDERS = [folder for folder in (Path(tempfile.gettempdir()), Path("/dev/shm")) if folder.is_dir()]
PATTERN = bytes(range(251)) * 40_000
sizes = st.lists(st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 70_001]), max_size=12)


def written(path: Path, lengths: list[int], kind: type[AppendedFile] = DirectFile) -> bytes:
    """Append pieces of the pattern of these lengths; what the file then holds must be them."""
    file = kind(path)
    at = 0
    for length in lengths:
        file.append(memoryview(PATTERN)[at : at + length])
        at += length
    file.sync()
    file.close()
    assert path.read_bytes() == PATTERN[:at]
    return path.read_bytes()


@given(lengths=sizes)
@example(lengths=[(4 << 20) + 1, 3, 4 << 20])
@settings(max_examples=40)
def test_appended_pieces_are_the_file(lengths: list[int]) -> None:
    for kind in (DirectFile, AppendedFile):
        with tempfile.TemporaryDirectory() as folder:
            written(Path(folder) / "x", lengths, kind)


@pytest.mark.parametrize("where", FOLDERS, ids=str)
def test_every_file_system_here_is_written(where: Path) -> None:
    with tempfile.TemporaryDirectory(dir=where) as folder:
        written(Path(folder) / "x", [1, BLOCK, 3 * BLOCK + 5, 0, 9_000_000])


def test_a_file_system_that_refuses_the_flag_is_written_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "no such flag")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refuse)
        written(tmp_path / "refused", [1, BLOCK, 70_001])
    with monkeypatch.context() as patch:
        patch.delattr(os, "O_DIRECT", raising=False)
        written(tmp_path / "unknown", [1, BLOCK, 70_001])


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def test_a_file_system_that_takes_the_flag_and_refuses_writes_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.pwrite
    refused = []

    def refuse(descriptor: int, view: memoryview, offset: int) -> int:
        if is_direct(descriptor):
            refused.append(len(view))
            raise OSError(errno.EINVAL, "not aligned to what this disk wants")
        return really(descriptor, view, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    written(tmp_path / "x", [BLOCK + 1, 70_001, 9_000_000])
    assert len(refused) <= 2  # both of those under way when the flag was taken off


def test_writes_that_fall_short_go_on_where_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.pwrite

    def some(descriptor: int, view: memoryview, offset: int) -> int:
        if is_direct(descriptor) and (offset % BLOCK or len(view) % BLOCK):
            raise OSError(errno.EINVAL, "not aligned")
        # A disk may take any part of what it is given.
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        count = really(descriptor, view[: max(1, len(view) // 2 + 11)], offset)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        return count

    monkeypatch.setattr(os, "pwrite", some)
    written(tmp_path / "x", [3 * BLOCK, 70_001, BLOCK - 1])


def test_small_pieces_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.pwrite
    lengths = []

    def noted(descriptor: int, view: memoryview, offset: int) -> int:
        lengths.append(len(view))
        return really(descriptor, view, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    written(tmp_path / "x", [11_000] * 16)
    assert len(lengths) == 2


def test_a_forked_child_writes_with_threads_of_its_own(tmp_path: Path) -> None:
    written(tmp_path / "before", [1_000_000])
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            written(tmp_path / "child", [1_000_000] * 5)
            failed = 0
        finally:
            os._exit(failed)  # it would go on with the tests
    assert os.waitpid(child, 0)[1] == 0


def test_whoever_appends_goes_on_while_the_device_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, may_write = os.pwrite, threading.Event()

    def wait(descriptor: int, view: memoryview, offset: int) -> int:
        assert may_write.wait(30)
        return really(descriptor, view, offset)

    monkeypatch.setattr(os, "pwrite", wait)
    file = DirectFile(tmp_path / "x")
    file.append(memoryview(PATTERN)[:300_000])
    file.append(memoryview(PATTERN)[300_000:600_000])
    may_write.set()
    file.sync()
    file.close()
    assert (tmp_path / "x").read_bytes() == PATTERN[:600_000]


def append_often(file: DirectFile) -> None:
    for _ in range(1000):
        file.append(memoryview(PATTERN)[:300_000])


def test_a_write_that_failed_behind_is_raised_by_what_is_called_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def full(descriptor: int, view: memoryview, offset: int) -> int:
        tried.append(offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    appended, synced = DirectFile(tmp_path / "appended"), DirectFile(tmp_path / "synced")
    with pytest.raises(OSError, match="No space left"):
        append_often(appended)
    assert len(tried) < 1000
    synced.append(memoryview(PATTERN)[:300_000])
    with pytest.raises(OSError, match="No space left"):
        synced.sync()
    for file in (appended, synced):
        file.close()


def test_a_write_that_comes_after_its_file_was_closed_meets_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, may_write, wrote = os.pwrite, threading.Event(), threading.Event()

    def late(descriptor: int, view: memoryview, offset: int) -> int:
        assert may_write.wait(30)
        count = really(descriptor, view, offset)
        wrote.set()
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", late)
        file = DirectFile(tmp_path / "x")
        file.append(memoryview(PATTERN)[:300_000])
        file.close()
        others = [os.open(tmp_path / f"other{n}", os.O_RDWR | os.O_CREAT) for n in range(4)]
        may_write.set()
        assert wrote.wait(30)
    for descriptor in others:
        assert os.fstat(descriptor).st_size == 0
        os.close(descriptor)


def test_who_was_interrupted_in_sync_may_sync_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really, may_write = os.pwrite, threading.Event()

    def late(descriptor: int, view: memoryview, offset: int) -> int:
        assert may_write.wait(30)
        return really(descriptor, view, offset)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", late)
    file = DirectFile(tmp_path / "x")
    file.append(memoryview(PATTERN)[:300_000])
    with monkeypatch.context() as patch:
        patch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.sync()
    may_write.set()
    file.sync()
    file.close()
    assert (tmp_path / "x").read_bytes() == PATTERN[:300_000]


def test_an_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_file_that_cannot_be_made_leaves_neither_itself_nor_a_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def none_left(descriptor: int) -> int:
        made.append(descriptor)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        DirectFile(tmp_path / "x")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(*made)


def test_a_failed_write_that_somebody_keeps_does_not_keep_its_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_to = set()

    def refuse(descriptor: int, view: memoryview, offset: int) -> int:
        first = descriptor not in written_to
        written_to.add(descriptor)
        raise OSError(errno.EINVAL if first else errno.ENOSPC, "refused")

    monkeypatch.setattr(os, "pwrite", refuse)
    file = DirectFile(tmp_path / "x")
    file.append(memoryview(PATTERN)[:300_000])
    with pytest.raises(OSError, match="refused") as failed:
        file.sync()
    assert failed.value.errno == errno.ENOSPC
    assert failed.value.__context__ is None
    file.close()
