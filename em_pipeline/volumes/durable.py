"""Files that are either whole on the disk or not there."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from em_pipeline.domain.errors import StorageFailed


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turns an operating system's refusal (disk full, no permission) into `StorageFailed`."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            doing,
            f"{error.strerror or error} ({error.filename or 'while writing'})",
            "Free space or mend the disk, then run the same again: finished units are kept",
        ) from error


def write_whole(path: Path, payload: bytes) -> None:
    """`payload` as `path`: a temporary name, fsync, rename, fsync of the folder. Raises `StorageFailed`."""
    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(f"Write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folders([path.parent])


def sync_folders(folders: Iterable[Path]) -> None:
    """Make the names in these folders survive a power cut."""
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_fully(descriptor: int, payload: bytes | memoryview, offset: int) -> None:
    """`payload` at `offset`, however many calls it takes."""
    view = memoryview(payload)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
