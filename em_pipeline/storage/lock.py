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
    ensure_folder(path.parent)
    with storage_errors(tried):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
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
    finally:
        os.close(descriptor)
