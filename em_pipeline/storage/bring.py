"""Raw files from the store back to this machine, whole and verified, continuing where a killed run stopped.

Ranges are asked for several at once, of one file or of many small ones, and appended in order: what is in a
part is a beginning of its file.
"""

import hashlib
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChecksumMismatch, StorageFailed
from em_pipeline.domain.files import RawFile
from em_pipeline.domain.progress import Progress
from em_pipeline.storage.holdings import Holdings, WholeRecord
from em_pipeline.storage.listing import WORK
from em_pipeline.storage.local_files import ensure_folder, fsync_path, storage_errors

STEP: Final = "bring"
PIECE: Final = 8 << 20
_AT_ONCE: Final = 8
HELD_BYTES: Final = _AT_ONCE * PIECE
"""Memory that `bring` takes at most."""


def bring(files: Sequence[RawFile], source: Blobs, folder: Path, progress: Progress) -> None:
    """Put `files`, blobs of `source` under their paths, below `folder`. Holds up to `HELD_BYTES`.

    For one process at a time. Raises `NotFound` for one that is not there, `ChecksumMismatch` for one that is
    not what the manifest says, `StorageFailed` for too little disk space and where disk or store refuse.
    """
    ensure_folder(folder / WORK)
    holdings = Holdings(folder / WORK)
    with storage_errors(f"Bring files to {folder}"):
        parts = [_Part(file, folder) for file in files]
        _check_space(parts, folder)
        progress.start(STEP, sum(file.size for file in files), "bytes")
        progress.advance(STEP, sum(part.held for part in parts))
        for part, payload in _payloads(parts, source):
            part.append(payload)
            progress.advance(STEP, len(payload))
            if part.held >= part.file.size:
                holdings.remember([WholeRecord(file=part.file, mtime_ns=part.settle(source), checksum=None)])


class _Part:
    """A file of which the first `held` bytes are on the disk."""

    def __init__(self, file: RawFile, folder: Path) -> None:
        self.file = file
        self._target = folder / file.path
        self._path = (
            folder / WORK / f"{file.sha256}.{hashlib.sha256(file.path.encode()).hexdigest()[:16]}.part"
        )
        self._digest = hashlib.sha256()
        self.held = self._path.stat().st_size if self._path.exists() else 0
        if self.held > file.size:
            self._path.unlink()
            self.held = 0
        self._hashed = 0

    def append(self, payload: bytes) -> None:
        if self._hashed < self.held:
            self._hash_what_is_there()
        with self._path.open("ab") as opened:
            opened.write(payload)
        self._digest.update(payload)
        self.held += len(payload)
        self._hashed = self.held

    def settle(self, source: Blobs) -> int:
        """Give the file its name; its modification time in nanoseconds. Raises `ChecksumMismatch`."""
        if (found := self._digest.hexdigest()) != self.file.sha256:
            self._path.unlink()
            raise ChecksumMismatch(
                f"Bring {source.url}/{self.file.path}",
                f"its SHA-256 is {found}, the manifest's {self.file.sha256}",
                "Ingest the dataset again: it is fetched from the portal",
            )
        fsync_path(self._path)
        mtime_ns = self._path.stat().st_mtime_ns
        ensure_folder(self._target.parent)
        self._path.replace(self._target)
        fsync_path(self._target.parent)
        return mtime_ns

    def _hash_what_is_there(self) -> None:
        with self._path.open("rb") as opened:
            while block := opened.read(PIECE):
                self._digest.update(block)


def _payloads(parts: Sequence[_Part], source: Blobs) -> Iterator[tuple[_Part, bytes]]:
    """What each part still lacks, in order, while what follows is on its way."""
    waiting: deque[tuple[_Part, int, Future[bytes]]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, STEP) as pool:
        try:
            for part, start, nbytes in _ranges(parts):
                asked = pool.submit(source.read_range, part.file.path, start, nbytes)
                waiting.append((part, nbytes, asked))
                if len(waiting) >= _AT_ONCE:
                    yield _arrived(*waiting.popleft(), source)
            while waiting:
                yield _arrived(*waiting.popleft(), source)
        finally:
            pool.shutdown(cancel_futures=True)


def _ranges(parts: Sequence[_Part]) -> Iterator[tuple[_Part, int, int]]:
    for part in parts:
        begin, size = part.held, part.file.size
        yield part, begin, min(PIECE, size - begin)
        for start in range(begin + PIECE, size, PIECE):
            yield part, start, min(PIECE, size - start)


def _arrived(part: _Part, nbytes: int, asked: Future[bytes], source: Blobs) -> tuple[_Part, bytes]:
    payload = asked.result()
    if len(payload) != nbytes:
        raise ChecksumMismatch(
            f"Bring {source.url}/{part.file.path}",
            f"it ends after {part.held + len(payload)} of {part.file.size} bytes",
            "Ingest the dataset again: it is fetched from the portal",
        )
    return part, payload


def _check_space(parts: Sequence[_Part], folder: Path) -> None:
    needed, free = sum(part.file.size - part.held for part in parts), shutil.disk_usage(folder).free
    if needed > free:
        raise StorageFailed(
            f"Bring files to {folder}",
            f"{needed} bytes are needed and {free} are free",
            "Free some space, or point EM_SPOOL at a larger disk",
        )
