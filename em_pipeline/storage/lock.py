"""One writer per dataset: on a disk, locks that the kernel releases, however their holder ends."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from em_pipeline.domain.errors import Busy
from em_pipeline.storage import keys
from em_pipeline.storage.local_files import ensure_folder, storage_errors

if TYPE_CHECKING:
    from em_pipeline.storage.store import Store


@contextmanager
def dataset_lock(store: "Store", dataset_id: str) -> Iterator[None]:
    """Hold the dataset against every other process and thread; raises `Busy` at once where it is held."""
    with store.lock(keys.lock(dataset_id), f"Work on {dataset_id}"):
        yield


@contextmanager
def file_lock(path: Path, tried: str) -> Iterator[None]:
    """Hold an exclusive flock(2) on `path`, which is made and stays. Raises `Busy`, naming the holder."""
    with _lock_file(path, tried) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise Busy(
                tried,
                f"{holder or 'another process'} is at it",
                "Wait for it to end, or end it; what it finished is kept",
            ) from error
        with storage_errors(tried):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield


@contextmanager
def turn(path: Path, tried: str) -> Iterator[None]:
    """Wait for the flock(2) on `path`, for as long as others hold it, and hold it."""
    with _lock_file(path, tried) as descriptor:
        with storage_errors(tried):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _lock_file(path: Path, tried: str) -> Iterator[int]:
    ensure_folder(path.parent)
    with storage_errors(tried):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
