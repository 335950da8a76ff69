"""Whether a stored volume is, byte for byte, the one its ledger describes.

`verify_stored` reads every byte and compares checksums; `verify_decoded` also decodes every chunk and
measures its voxels again. Both look for what is missing, altered and not expected, and name each fault. A
volume's label images are volumes of their own: each is verified by itself, with its own ledger.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.ledger import Ledger, LedgerRow
from em_pipeline.volumes.metadata import LevelInfo, VolumeInfo, labels, parse, read_documents, shard_path
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.places import is_remote
from em_pipeline.volumes.shard import decode_index, expected_index, index_nbytes
from em_pipeline.volumes.statistics import measure

STEP = "verify"
# Read at once: few steps of Python for each byte, and small enough to be hashed while it is in a cache.
PIECE = 4 << 20
# Of an object store, whose answers are waited for.
REQUESTS = 16


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
    """`chunks` of the ledger, `bytes` of shards that were read; `faults` is empty for a sound volume."""

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
    volume: Blobs,
    ledgers: Blobs,
    name: str,
    *,
    threads: int,
    progress: Progress,
    ledger_sha256: str | None = None,
) -> VerifyResult:
    """Compare every stored byte with the ledger `name`, and that with `ledger_sha256` where given.

    Never raises for what it finds: a fault is a result. `StorageFailed` where the storage refuses or does
    not answer, which says nothing of the bytes. Each thread holds about `PIECE` bytes; there are `threads`,
    of an object store at least `REQUESTS`.
    """
    return _verify(volume, (ledgers, name), lambda *_: None, threads, progress, ledger_sha256)


def verify_decoded(
    volume: Blobs,
    ledgers: Blobs,
    name: str,
    *,
    threads: int,
    progress: Progress,
    ledger_sha256: str | None = None,
) -> VerifyResult:
    """Like `verify_stored`, and decode every chunk: its voxels must have the statistics the ledger holds."""
    return _verify(volume, (ledgers, name), _voxel_check, threads, progress, ledger_sha256)


def _verify(
    volume: Blobs,
    ledger: tuple[Blobs, str],
    checker: Callable[[VolumeInfo, Ledger], CheckChunk | None],
    threads: int,
    progress: Progress,
    ledger_sha256: str | None,
) -> VerifyResult:
    started = monotonic()

    def ended(faults: Sequence[Fault], chunks: int = 0, nbytes: int = 0) -> VerifyResult:
        return VerifyResult(chunks, nbytes, monotonic() - started, tuple(faults))

    try:
        book = Ledger.read(*ledger)
    except (NotFound, ChunkCorrupt) as error:
        return ended([_unplaced(FaultKind.LEDGER, str(error))])
    if ledger_sha256 not in (None, book.sha256):
        message = f"its SHA-256 is {book.sha256}, expected {ledger_sha256}"
        return ended([_unplaced(FaultKind.LEDGER, message)])
    try:
        found = read_documents(volume)
        info = parse(found)
    except (NotFound, ChunkCorrupt) as error:
        return ended([_unplaced(FaultKind.DOCUMENT, str(error))])
    faults = list(_document_faults(book, found))
    if tuple(level.chunk_grid for level in info.levels) != book.grids:
        message = "its levels do not have the chunks that the ledger lists"
        return ended([*faults, _unplaced(FaultKind.DOCUMENT, message)])
    shards = [shard for level in info.levels for shard in _shards(book, level)]
    faults += _unexpected(volume, {*found, *(shard.path for shard in shards)}, labels(found))
    progress.start(STEP, sum(shard.nbytes for shard in shards), "bytes")
    nbytes = 0
    check = partial(_check_shard, volume, book, checker(info, book), progress)
    with ThreadPoolExecutor(max(threads, REQUESTS) if is_remote(volume) else threads, STEP) as pool:
        try:
            for shard_faults, read in pool.map(check, shards):
                faults += shard_faults
                nbytes += read
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return ended(faults, len(book.rows), nbytes)


@dataclass(frozen=True)
class _Shard:
    """A shard as the ledger says it was written: its chunks lie one after the other in C order.

    `chunks` are positions in the level's chunk grid, `places` in the shard; both flat, of stored chunks only.
    """

    level: LevelInfo
    path: str
    chunks: NDArray[np.int64]
    places: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checksums: NDArray[np.uint32]
    nbytes: int

    def index(self) -> bytes:
        lengths = np.zeros(self.level.chunks_per_shard.voxels, np.int64)
        lengths[self.places] = self.lengths
        return expected_index(lengths)

    def row(self, ledger: Ledger, nth: int) -> LedgerRow:
        """The ledger's row of its `nth` stored chunk."""
        z, y, x = np.unravel_index(self.chunks[nth], self.level.chunk_grid)
        return ledger.row(self.level.index, (int(z), int(y), int(x)))


def _shards(ledger: Ledger, level: LevelInfo) -> Iterator[_Shard]:
    """The shards of a level that have a chunk stored."""
    rows = ledger.level_rows(level.index)
    in_level = np.arange(level.chunk_grid.voxels).reshape(level.chunk_grid)
    in_shard = np.arange(level.chunks_per_shard.voxels).reshape(level.chunks_per_shard)
    for box in BoundingBox.of_shape(level.chunk_grid).tiles(level.chunks_per_shard):
        lengths = rows["nbytes"][box.slices]
        stored = lengths > 0
        if not stored.any():
            continue
        shard = Shape(*(a // n for a, n in zip(box.start, level.chunks_per_shard, strict=True)))
        yield _Shard(
            level,
            shard_path(level.index, shard),
            in_level[box.slices][stored],
            in_shard[BoundingBox.of_shape(box.shape).slices][stored],
            lengths[stored],
            rows["crc32c"][box.slices][stored],
            int(lengths.sum()) + index_nbytes(level.chunks_per_shard),
        )


def _check_shard(
    volume: Blobs, ledger: Ledger, check: CheckChunk | None, progress: Progress, shard: _Shard
) -> tuple[list[Fault], int]:
    """Faults of one shard, and the bytes read of it.

    Chunks are looked for where they were written, whatever the index says now.
    """
    try:
        faults, read = _shard_faults(volume, ledger, check, shard)
    except NotFound:
        read = 0
        rows = [shard.row(ledger, nth) for nth in range(len(shard.chunks))]
        faults = [
            Fault(row.level, row.index, shard.path, FaultKind.MISSING_SHARD, "its shard is missing")
            for row in rows
        ]
    progress.advance(STEP, shard.nbytes)
    return faults, read


def _shard_faults(
    volume: Blobs, ledger: Ledger, check: CheckChunk | None, shard: _Shard
) -> tuple[list[Fault], int]:
    """Its faults and the bytes read. Raises `NotFound` without the shard."""
    faults: list[Fault] = []
    read = 0
    lengths, checksums = shard.lengths.tolist(), shard.checksums.tolist()
    stops = np.cumsum(shard.lengths)
    for first, last in _pieces(stops):
        start = int(stops[first]) - lengths[first]
        # The last piece has the index, and would have whatever follows it.
        stop = int(stops[last - 1]) if last < len(stops) else shard.nbytes + 1
        piece = payload = np.empty(0, np.uint8)  # the last one goes before the next one comes
        piece = np.frombuffer(volume.read_range(shard.path, start, stop - start), np.uint8)
        read += len(piece)
        at = 0
        for nth in range(first, last):
            payload = piece[at : at + lengths[nth]]
            at += lengths[nth]
            if check is None and len(payload) == lengths[nth] and crc32c(payload) == checksums[nth]:
                continue
            if (fault := _chunk_fault(shard, shard.row(ledger, nth), payload.tobytes(), check)) is not None:
                faults.append(fault)
    index = piece[at : at + shard.nbytes - int(stops[-1])]
    return [*_frame_faults(volume, shard, read, index), *faults], read


def _pieces(stops: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) chunk of runs of about `PIECE` bytes. `stops` is where each chunk ends."""
    first = 0
    while first < len(stops):
        start = int(stops[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(stops, start + PIECE, "right")))
        yield first, last
        first = last


def _frame_faults(volume: Blobs, shard: _Shard, size: int, index: NDArray[np.uint8]) -> Iterator[Fault]:
    """Faults of a shard's length and of its index. `size` is at most one more than it should be."""
    level = shard.level.index
    if size < shard.nbytes:
        message = f"it has {size} bytes of {shard.nbytes}"
        yield Fault(level, None, shard.path, FaultKind.TRUNCATED_SHARD, message)
        return
    if size > shard.nbytes:
        more = (volume.size(shard.path) or size) - shard.nbytes
        message = f"{more} bytes follow its {shard.nbytes}"
        yield Fault(level, None, shard.path, FaultKind.TRAILING_BYTES, message)
    if (stored := index.tobytes()) == shard.index():
        return
    try:
        decode_index(stored, shard.path)
        message = "its checksum is right, but it does not place the chunks where they were written"
    except ChunkCorrupt as error:
        message = error.found
    yield Fault(level, None, shard.path, FaultKind.INDEX, message)


def _chunk_fault(shard: _Shard, row: LedgerRow, payload: bytes, check: CheckChunk | None) -> Fault | None:
    kind, message = FaultKind.CHUNK, None
    if len(payload) != row.nbytes:
        message = f"only {len(payload)} of its {row.nbytes} bytes are there"
    elif (found := crc32c(payload)) != row.crc32c:
        message = f"its crc32c is {found:08x}, the ledger's {row.crc32c:08x}"
    elif check is not None:
        kind, message = FaultKind.VOXELS, check(shard.level, row, payload)
    return None if message is None else Fault(row.level, row.index, shard.path, kind, message)


def _unplaced(kind: FaultKind, message: str) -> Fault:
    return Fault(None, None, None, kind, message)


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
            yield _unplaced(FaultKind.DOCUMENT, f"{path} is missing")
        elif hashlib.sha256(found[path]).hexdigest() != ledger.documents.get(path):
            yield _unplaced(FaultKind.DOCUMENT, f"{path} is not the one that was written")


def _unexpected(volume: Blobs, expected: Collection[str], labels: Sequence[str]) -> Iterator[Fault]:
    """Blobs that no document and no ledger knows; label images answer for themselves."""
    theirs = tuple(f"labels/{label}/" for label in labels)
    for name in volume.names():
        if name not in expected and not name.startswith(theirs):
            yield Fault(None, None, name, FaultKind.UNEXPECTED_FILE, f"{name} is not part of the volume")
