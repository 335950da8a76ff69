"""Files past the page cache: the same bytes whatever is appended and whatever the file system refuses."""

import errno
import fcntl
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from em_pipeline.storage import direct_io
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


def test_what_is_staged_is_no_business_of_a_forked_child() -> None:
    stage = direct_io._device().free_stage()
    stage[0] = 1
    child = os.fork()
    if child == 0:
        stage[0] = 2
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert stage[0] == 1
    direct_io._device.cache_clear()  # nobody has the stage


def test_a_forked_child_writes_with_threads_of_its_own(tmp_path: Path) -> None:
    written(tmp_path / "before", [1_000_000])
    child = os.fork()
    if child == 0:
        written(tmp_path / "child", [1_000_000] * 5)
        os._exit(0)
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


def test_a_file_is_closed_only_once_nothing_of_it_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, events = os.pwrite, []

    def slow(descriptor: int, view: memoryview, offset: int) -> int:
        time.sleep(0.05)
        events.append("written")
        return really(descriptor, view, offset)

    file = DirectFile(tmp_path / "x")
    closed = os.close
    monkeypatch.setattr(os, "pwrite", slow)
    monkeypatch.setattr(os, "close", lambda descriptor: (events.append("closed"), closed(descriptor)))
    file.append(memoryview(PATTERN)[:300_000])
    file.close()
    assert events == ["written", "closed"]


def test_an_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old"
