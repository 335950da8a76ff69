"""Whether a stored volume is, byte for byte, the one its ledger describes.

`verify_stored` reads every byte and compares checksums; `verify_decoded` also decodes every chunk and
measures its voxels again. Both look for what is missing, altered and not expected, and name each fault. A
volume's label images are volumes of their own: each is verified by itself, with its own ledger.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.ledger import Ledger, LedgerRow
from em_pipeline.volumes.metadata import LevelInfo, VolumeInfo, labels, parse, read_documents, shard_path
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.shard import NOT_STORED, decode_index, encode_index, index_nbytes
from em_pipeline.volumes.statistics import measure

STEP = "verify"


class FaultKind(StrEnum):
    """What is wrong."""

    LEDGER = "ledger"  # missing, unreadable, or not the one expected
    DOCUMENT = "document"  # a zarr.json is missing or altered
    MISSING_SHARD = "missing-shard"
    TRUNCATED_SHARD = "truncated-shard"
    TRAILING_BYTES = "trailing-bytes"
    INDEX = "index"  # a shard's index is altered
    CHUNK = "chunk"  # stored bytes differ from the ledger's checksum
    VOXELS = "voxels"  # bytes are as written but do not decode to the voxels measured then
    UNEXPECTED_FILE = "unexpected-file"


@dataclass(frozen=True)
class Fault:
    """One fault. `shard` is the path below the volume; None where the fault is not a shard's or chunk's."""

    level: int | None
    chunk: Shape | None
    shard: str | None
    kind: FaultKind
    message: str

    def __str__(self) -> str:
        chunk = None if self.chunk is None else f"level {self.level} chunk {tuple(self.chunk)} (z, y, x)"
        places = [place for place in (chunk, self.shard and f"shard {self.shard}") if place]
        return f"{self.kind}: {', '.join(places)}{': ' if places else ''}{self.message}"


@dataclass(frozen=True)
class VerifyResult:
    """`chunks` and `bytes` that were compared; `faults` is empty for a sound volume."""

    chunks: int
    bytes: int
    seconds: float
    faults: tuple[Fault, ...]

    @property
    def passed(self) -> bool:
        return not self.faults


CheckChunk = Callable[[LevelInfo, LedgerRow, bytes], str | None]
"""What is wrong with a chunk whose bytes are as written; None where nothing is."""


def verify_stored(
    volume: Path, ledger: Path, *, threads: int, progress: Progress, ledger_sha256: str | None = None
) -> VerifyResult:
    """Compare every stored byte with the ledger, and the ledger with `ledger_sha256` where given.

    Never raises for what it finds: a fault is a result.
    """
    return _verify(volume, ledger, lambda *_: _accept, threads, progress, ledger_sha256)


def verify_decoded(
    volume: Path, ledger: Path, *, threads: int, progress: Progress, ledger_sha256: str | None = None
) -> VerifyResult:
    """Like `verify_stored`, and decode every chunk: its voxels must have the statistics the ledger holds."""
    return _verify(volume, ledger, _voxel_check, threads, progress, ledger_sha256)


def _verify(
    volume: Path,
    ledger: Path,
    checker: Callable[[VolumeInfo, Ledger], CheckChunk],
    threads: int,
    progress: Progress,
    ledger_sha256: str | None,
) -> VerifyResult:
    started = monotonic()
    try:
        book = Ledger.read(ledger)
        book.rows  # noqa: B018 - decoded here, where a damaged one is a fault of the ledger
    except (NotFound, ChunkCorrupt) as error:
        fault = Fault(None, None, None, FaultKind.LEDGER, str(error))
        return VerifyResult(0, 0, monotonic() - started, (fault,))
    if ledger_sha256 not in (None, book.sha256):
        message = f"its SHA-256 is {book.sha256}, expected {ledger_sha256}"
        fault = Fault(None, None, None, FaultKind.LEDGER, message)
        return VerifyResult(0, 0, monotonic() - started, (fault,))
    faults: list[Fault] = []
    try:
        found = read_documents(volume)
        info = parse(found)
    except (NotFound, ChunkCorrupt) as error:
        faults.append(Fault(None, None, None, FaultKind.DOCUMENT, str(error)))
        return VerifyResult(0, 0, monotonic() - started, tuple(faults))
    faults += _document_faults(book, found)
    if tuple(level.chunk_grid for level in info.levels) != book.grids:
        message = "its levels do not have the chunks that the ledger lists"
        faults.append(Fault(None, None, None, FaultKind.DOCUMENT, message))
        return VerifyResult(0, 0, monotonic() - started, tuple(faults))
    shards = [shard for level in info.levels for shard in _shards(book, level)]
    faults += _unexpected(volume, {*found, *(shard.path for shard in shards if shard.nbytes)}, labels(found))
    progress.start(STEP, sum(shard.nbytes for shard in shards), "bytes")
    check = partial(_check_shard, volume, checker(info, book), progress)
    with ThreadPoolExecutor(threads, "verify") as pool:
        for shard_faults in pool.map(check, (shard for shard in shards if shard.nbytes)):
            faults += shard_faults
    chunks, nbytes = len(book.rows), sum(shard.nbytes for shard in shards)
    return VerifyResult(chunks, nbytes, monotonic() - started, tuple(faults))


@dataclass(frozen=True)
class _Shard:
    """A shard as the ledger says it was written: its chunks lie one after the other in C order."""

    level: LevelInfo
    path: str
    rows: tuple[LedgerRow, ...]
    index: NDArray[np.uint64]
    nbytes: int


def _shards(ledger: Ledger, level: LevelInfo) -> Iterator[_Shard]:
    rows = ledger.level_rows(level.index)
    for shard in np.ndindex(*level.shard_grid):
        first = Shape(*(s * n for s, n in zip(shard, level.chunks_per_shard, strict=True)))
        index = np.full((level.chunks_per_shard.voxels, 2), NOT_STORED, np.uint64)
        offset, stored = 0, []
        box = BoundingBox.at(first, level.chunks_per_shard).clipped(level.chunk_grid)
        for place in np.argwhere(rows["nbytes"][box.slices]) if box else ():
            chunk = Shape(*(int(a + b) for a, b in zip(first, place, strict=True)))
            row = ledger.row(level.index, chunk)
            index[np.ravel_multi_index(tuple(place), level.chunks_per_shard)] = (offset, row.nbytes)
            stored.append(row)
            offset += row.nbytes
        nbytes = offset + index_nbytes(level.chunks_per_shard) if stored else 0
        yield _Shard(level, shard_path(level.index, Shape(*shard)), tuple(stored), index, nbytes)


def _check_shard(volume: Path, check: CheckChunk, progress: Progress, shard: _Shard) -> list[Fault]:
    """Faults of one shard. Chunks are looked for where they were written, whatever the index says now."""
    try:
        with (volume / shard.path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            faults = list(_frame_faults(shard, size, file.fileno()))
            for row, (offset, _) in zip(
                shard.rows, shard.index[shard.index[:, 1] != NOT_STORED], strict=True
            ):
                payload = os.pread(file.fileno(), min(row.nbytes, size), int(offset))
                if (fault := _chunk_fault(shard, row, payload, check)) is not None:
                    faults.append(fault)
    except FileNotFoundError:
        faults = [_lost(shard, row, "its shard is missing") for row in shard.rows]
    except OSError as error:
        faults = [_lost(shard, row, f"its shard cannot be read: {error}") for row in shard.rows]
    progress.advance(STEP, shard.nbytes)
    return faults


def _lost(shard: _Shard, row: LedgerRow, message: str) -> Fault:
    return Fault(row.level, row.index, shard.path, FaultKind.MISSING_SHARD, message)


def _frame_faults(shard: _Shard, size: int, descriptor: int) -> Iterator[Fault]:
    """Faults of a shard's length and of its index."""
    level = shard.level.index
    if size < shard.nbytes:
        message = f"it has {size} bytes of {shard.nbytes}"
        yield Fault(level, None, shard.path, FaultKind.TRUNCATED_SHARD, message)
        return
    if size > shard.nbytes:
        message = f"{size - shard.nbytes} bytes follow its {shard.nbytes}"
        yield Fault(level, None, shard.path, FaultKind.TRAILING_BYTES, message)
    expected = encode_index(shard.index)
    stored = os.pread(descriptor, len(expected), shard.nbytes - len(expected))
    if stored == expected:
        return
    try:
        decode_index(stored, shard.path)
        message = "its checksum is right, but it does not place the chunks where they were written"
    except ChunkCorrupt as error:
        message = error.found
    yield Fault(level, None, shard.path, FaultKind.INDEX, message)


def _chunk_fault(shard: _Shard, row: LedgerRow, payload: bytes, check: CheckChunk) -> Fault | None:
    kind = FaultKind.CHUNK
    message: str | None
    if len(payload) != row.nbytes:
        message = f"only {len(payload)} of its {row.nbytes} bytes are there"
    elif (found := crc32c(payload)) != row.crc32c:
        message = f"its crc32c is {found:08x}, the ledger's {row.crc32c:08x}"
    else:
        kind, message = FaultKind.VOXELS, check(shard.level, row, payload)
    return None if message is None else Fault(row.level, row.index, shard.path, kind, message)


def _accept(level: LevelInfo, row: LedgerRow, payload: bytes) -> str | None:  # noqa: ARG001
    return None


def _voxel_check(info: VolumeInfo, ledger: Ledger) -> CheckChunk:
    missing = ledger.missing.pyramid([level.shape for level in info.levels]) if ledger.missing else None
    return partial(_check_voxels, info, missing)


def _check_voxels(
    info: VolumeInfo,
    missing: Sequence[Missing] | None,
    level: LevelInfo,
    row: LedgerRow,
    payload: bytes,
) -> str | None:
    try:
        data = info.codec.decode(payload, level.dtype, level.chunk_shape)
    except ChunkCorrupt as error:
        return error.found
    valid = level.valid_shape(row.index)
    start = Shape(*(i * c for i, c in zip(row.index, level.chunk_shape, strict=True)))
    gone = missing[level.index].within(BoundingBox.at(start, valid)) if missing else None
    voxels = data[BoundingBox.of_shape(valid).slices]
    held = np.ones(valid, bool) if gone is None else ~gone
    summary, _ = measure(voxels[held])
    # repr tells every float apart and takes two NaNs for the same.
    if repr(summary) != repr(row.summary):
        return f"its voxels are {summary}, the ledger says {row.summary}"
    voxels[held] = 0
    return "what is not the source's (past the edge, or absent) is not the fill value" if data.any() else None


def _document_faults(ledger: Ledger, found: dict[str, bytes]) -> Iterator[Fault]:
    for path in sorted({*ledger.documents, *found}):
        if path not in found:
            yield Fault(None, None, None, FaultKind.DOCUMENT, f"{path} is missing")
        elif hashlib.sha256(found[path]).hexdigest() != ledger.documents.get(path):
            yield Fault(None, None, None, FaultKind.DOCUMENT, f"{path} is not the one that was written")


def _unexpected(volume: Path, expected: Iterable[str], labels: Sequence[str]) -> Iterator[Fault]:
    """Files that no document and no ledger knows; label images answer for themselves."""
    known = set(expected)
    theirs = tuple(f"labels/{label}/" for label in labels)
    for path in sorted(volume.rglob("*")):
        name = path.relative_to(volume).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in known and not name.startswith(theirs):
            yield Fault(None, None, name, FaultKind.UNEXPECTED_FILE, f"{name} is not part of the volume")
