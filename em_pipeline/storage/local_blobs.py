"""A folder of blobs on a disk of this machine."""

import fcntl
import os
import shutil
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from em_pipeline.domain.blobs import Run
from em_pipeline.domain.errors import Busy, NotFound
from em_pipeline.storage.direct_io import HELD_BACK, AppendedFile, DirectFile
from em_pipeline.storage.local_files import (
    ensure_folder,
    fsync_path,
    is_temporary,
    remove_entry,
    storage_errors,
    temporary_beside,
)


class LocalBlobs:
    """Implements `Blobs` in the folder `root`, made by the first write.

    What is being written lies under temporary names in `root` itself, never among the blobs of a folder
    below, so that a tree can be renamed without taking leftovers along. `grown` is the kind of file that
    `create` begins.
    """

    def __init__(self, root: Path, top: Path | None = None, grown: type[AppendedFile] = DirectFile) -> None:
        self.root = root.absolute()
        self._top = top or self.root
        self._grown = grown

    def __repr__(self) -> str:
        return f"LocalBlobs({str(self.root)!r})"

    @property
    def url(self) -> str:
        return str(self.root)

    @property
    def sink_bytes(self) -> int:
        return HELD_BACK

    @property
    def requests_at_once(self) -> int:
        return 0

    def below(self, prefix: str) -> "LocalBlobs":
        return LocalBlobs(self._path(prefix), self._top, self._grown)

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with storage_errors(f"Read {path}"):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise NotFound(f"Read {path}", "there is no such file") from error

    def read_range(self, name: str, start: int, nbytes: int) -> bytes:
        with _reading(self._path(name)) as descriptor:
            return _read_fully(descriptor, start, nbytes)

    def read_runs(
        self,
        runs: Iterable[Run],
        held: int,  # noqa: ARG002 - a piece is read as it is taken
    ) -> Generator[bytes, None, None]:
        for run in runs:
            start = run.start
            with _reading(self._path(run.name)) as descriptor:
                for nbytes in run.pieces:
                    yield _read_fully(descriptor, start, nbytes)
                    start += nbytes

    def size(self, name: str) -> int | None:
        path = self._path(name)
        with storage_errors(f"Look at {path}"):
            try:
                told = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return told.st_size if stat.S_ISREG(told.st_mode) else None

    def write(self, name: str, payload: bytes) -> None:
        sink = _LocalSink(self._path(name), self._top, AppendedFile)
        try:
            sink.append(payload)
            sink.commit()
        finally:
            sink.abandon()

    def create(self, name: str) -> "_LocalSink":
        return _LocalSink(self._path(name), self._top, self._grown)

    def create_scratch(self, name: str) -> "_ScratchSink":
        return _ScratchSink(self._path(name), self._top)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with storage_errors(f"Delete {path}"):
            if path.is_dir():
                return
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            fsync_path(path.parent)

    def delete_all(self, prefix: str = "") -> None:
        folder = self._path(prefix) if prefix else self.root
        with storage_errors(f"Delete {folder}"):
            if not folder.is_dir():
                return
            if folder == self._top:
                for entry in folder.iterdir():
                    remove_entry(entry)
                fsync_path(folder)
                return
            doomed = temporary_beside(self._top / "doomed")
            folder.rename(doomed)
            fsync_path(folder.parent)
            shutil.rmtree(doomed)

    def names(self, prefix: str = "") -> Iterator[str]:
        folder = self._path(prefix) if prefix else self.root
        found = []
        with storage_errors(f"List {folder}"):
            for here, folders, files in os.walk(folder, onerror=_raise_unless_missing):
                folders[:] = [name for name in folders if not is_temporary(name)]
                for name in files:
                    if not is_temporary(name):
                        found.append((Path(here) / name).relative_to(self.root).as_posix())
        yield from sorted(found)

    def clear_unfinished(self) -> None:
        with storage_errors(f"Clear {self._top}"):
            if self._top.exists():
                for entry in self._top.iterdir():
                    if is_temporary(entry.name):
                        remove_entry(entry)

    @contextmanager
    def hold(self) -> Iterator[None]:
        ensure_folder(self.root)
        with storage_errors(f"Open {self.root}"):
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with storage_errors(f"Lock {self.root}"):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise Busy(
                        f"Write in {self.root}", "another process is writing there", "Wait for it to end"
                    ) from error
            try:
                yield
            finally:
                # Not only closed: a child forked meanwhile has it open too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def kvstore(self) -> dict[str, Any]:
        return {"driver": "file", "path": f"{self.root}/"}

    def _path(self, name: str) -> Path:
        return self.root / name


class _LocalSink:
    """A file under a temporary name until it is committed."""

    def __init__(self, path: Path, top: Path, kind: type[AppendedFile]) -> None:
        self._path = path
        self._tried = f"Write {path}"
        self._closed = False
        self._failed = False
        ensure_folder(top)
        self._partial = temporary_beside(top / "partial")
        with storage_errors(self._tried):
            self._file = kind(self._partial)

    def append(self, payload: bytes | memoryview) -> None:
        with self._failing_for_good():
            self._file.append(payload)

    def commit(self) -> None:
        with self._failing_for_good():
            self._file.sync()
            self._settle()
            fsync_path(self._path.parent)

    def abandon(self) -> None:
        if self._closed:
            return
        self._closed = True
        with storage_errors(f"Remove {self._partial}"):
            try:
                self._file.close()
            finally:
                self._partial.unlink(missing_ok=True)

    def _settle(self) -> None:
        ensure_folder(self._path.parent)
        self._partial.replace(self._path)
        self._closed = True
        self._file.close()

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """A file of which anything is missing stays unfinished, whatever is called after."""
        if self._closed or self._failed:
            raise ValueError(f"{self._path} was committed or abandoned, or could not be written")
        self._failed = True
        with storage_errors(self._tried):
            yield
        self._failed = False


class _ScratchSink(_LocalSink):
    """One that is read again from the page cache, and whose loss costs only time."""

    def __init__(self, path: Path, top: Path) -> None:
        super().__init__(path, top, AppendedFile)

    def commit(self) -> None:
        with self._failing_for_good():
            self._settle()


@contextmanager
def _reading(path: Path) -> Iterator[int]:
    """A descriptor of the file. Raises `NotFound`, and `StorageFailed` also for what fails in the block."""
    with storage_errors(f"Read {path}"):
        try:
            with path.open("rb", buffering=0) as file:
                yield file.fileno()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(f"Read {path}", "there is no such file") from error


def _read_fully(descriptor: int, start: int, nbytes: int) -> bytes:
    parts = []
    while nbytes and (part := os.pread(descriptor, nbytes, start)):
        parts.append(part)
        start, nbytes = start + len(part), nbytes - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
