"""Chunks and blocks of a written volume, each checked against the ledger when it is read.

A chunk costs one read of a part of its shard, and the first of a shard one more for the shard's index. No
file stays open between reads; the indices of the shards used last stay in memory.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChunkCorrupt, InputRefused, NotFound
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.ledger import NOTHING_STORED, STORED, ChunkState, Ledger, LedgerRow
from em_pipeline.volumes.metadata import LevelInfo, parse, read_documents
from em_pipeline.volumes.shard import ShardIndex, index_nbytes, read_shard_index

_INDICES_HELD: Final = 1024  # 1 KiB each for 4 × 4 × 4 chunks


@dataclass(frozen=True)
class ChunkRead:
    """A whole chunk (z, y, x), padding included, and how much of it is true voxels."""

    state: ChunkState
    data: NDArray[Any]
    valid_fraction: float


@dataclass(frozen=True)
class Block:
    """Voxels of any box of a level, z-y-x; where the box reaches past the volume they are the fill value.

    So they are where the source holds nothing: `absent` marks those voxels (z, y, x), None where there are
    none. `valid_fraction` is the share of the box that is the source's voxels; `states` are those of the
    chunks it was cut from, by chunk index.
    """

    data: NDArray[Any]
    level: int
    box: BoundingBox
    valid_fraction: float
    states: Mapping[Shape, ChunkState]
    absent: NDArray[np.bool_] | None = None


class VolumeReader:
    """Reads one volume. Safe to use from several threads. Build with `open`."""

    def __init__(self, volume: Blobs, ledger: Ledger, documents: Mapping[str, bytes]) -> None:
        self.volume = volume
        self.ledger = ledger
        self.info = info = parse(documents)
        self._document_bytes = sum(map(len, documents.values()))
        shapes = [level.shape for level in info.levels]
        self._missing = ledger.missing.pyramid(shapes) if ledger.missing else None
        self._closed = False
        self._shard_index = lru_cache(maxsize=_INDICES_HELD)(self._read_shard_index)

    @classmethod
    def open(cls, volume: Blobs, ledgers: Blobs, name: str) -> Self:
        """Check the documents of `volume` against its ledger, `name` in `ledgers`, and hold both.

        Raises `NotFound` where either is missing, `ChunkCorrupt` where a document is altered or incomplete.
        """
        book = Ledger.read(ledgers, name)
        found = read_documents(volume)
        for path, digest in book.documents.items():
            if path not in found or hashlib.sha256(found[path]).hexdigest() != digest:
                raise ChunkCorrupt(f"Open the volume {volume.url}", f"{path} is not the one that was written")
        reader = cls(volume, book, found)
        if tuple(level.chunk_grid for level in reader.levels) != book.grids:
            raise ChunkCorrupt(f"Open the volume {volume.url}", "its levels are not those of the ledger")
        return reader

    @property
    def levels(self) -> tuple[LevelInfo, ...]:
        return self.info.levels

    @property
    def stored_bytes(self) -> int:
        """Bytes of the volume's documents and shards, without its label images."""
        shards = sum(self._shard_bytes(level) for level in self.levels)
        return self._document_bytes + shards

    def read_chunk(self, level: int, index: tuple[int, int, int]) -> ChunkRead:
        """One chunk, decoded; where its state is `absent`, its voxels mean nothing.

        `index` is z, y, x in chunks. Raises `NotFound` for a chunk that does not exist, `ChunkCorrupt` for
        one that is missing or altered.
        """
        row = self.ledger.row(level, index)
        info = self.levels[level]
        if row.state in NOTHING_STORED:
            return ChunkRead(row.state, np.zeros(info.chunk_shape, info.dtype), row.valid_fraction)
        payload = self._payload(row)
        try:
            data = self.info.codec.decode(payload, info.dtype, info.chunk_shape)
        except ChunkCorrupt as error:
            raise self._corrupt(row, error.found) from error
        return ChunkRead(row.state, data, row.valid_fraction)

    def read_block(self, level: int, box: BoundingBox) -> Block:
        """Voxels of `box` (of that level, z-y-x), which may reach past the volume's far edges.

        Raises `InputRefused` for a box wholly outside, else like `read_chunk`.
        """
        info = self._level(level)
        inside = box.clipped(info.shape)
        if inside is None:
            raise InputRefused(
                f"Read {_span(box)} of level {level}",
                f"it lies outside the volume of {' × '.join(map(str, info.shape))} voxels (z, y, x)",
            )
        data = np.zeros(box.shape, info.dtype)
        states: dict[Shape, ChunkState] = {}
        for part in inside.tiles(info.chunk_shape):
            index = Shape(*(a // c for a, c in zip(part.start, info.chunk_shape, strict=True)))
            chunk = self.read_chunk(level, index)
            states[index] = chunk.state
            if chunk.state in STORED:
                in_chunk = _relative(part, tuple(i * c for i, c in zip(index, info.chunk_shape, strict=True)))
                data[_relative(part, box.start)] = chunk.data[in_chunk]
        absent = self._absent(level, box, inside)
        held = inside.shape.voxels - (0 if absent is None else np.count_nonzero(absent))
        return Block(data, level, box, held / box.shape.voxels, states, absent)

    def close(self) -> None:
        """Forget what is cached; later reads raise `InputRefused`."""
        self._closed = True
        self._shard_index.cache_clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _absent(self, level: int, box: BoundingBox, inside: BoundingBox) -> NDArray[np.bool_] | None:
        """Which voxels of `box` the source does not hold, though they are `inside` the volume."""
        found = self._missing[level].within(inside) if self._missing else None
        if found is None:
            return None
        absent = np.zeros(box.shape, bool)
        absent[_relative(inside, box.start)] = found
        return absent

    def _level(self, level: int) -> LevelInfo:
        if not 0 <= level < len(self.levels):
            raise NotFound(f"Find level {level}", f"the volume has levels 0 to {len(self.levels) - 1}")
        return self.levels[level]

    def _payload(self, row: LedgerRow) -> bytes:
        """The stored bytes of a chunk, or `ChunkCorrupt`."""
        if self._closed:
            raise InputRefused(f"Read a chunk of {self.volume.url}", "the reader is closed")
        if row.state not in STORED:
            raise self._corrupt(row, f"the source's voxels were {row.state}")
        info = self.levels[row.level]
        shard, place = info.locate(row.index)
        try:
            first = Shape(*(i - p for i, p in zip(row.index, place, strict=True)))
            index = self._shard_index(row.level, shard, first)
        except ChunkCorrupt as error:
            raise self._corrupt(row, error.found) from error
        entry = index[np.ravel_multi_index(place, info.chunks_per_shard)]
        offset, nbytes = int(entry[0]), int(entry[1])
        if nbytes != row.nbytes:
            raise self._corrupt(row, f"the shard's index gives it {nbytes} bytes, the ledger {row.nbytes}")
        payload = self._read(row, shard, offset, nbytes)
        if len(payload) != row.nbytes:
            raise self._corrupt(row, f"only {len(payload)} of its {row.nbytes} bytes are there")
        if (found := crc32c(payload)) != row.crc32c:
            raise self._corrupt(row, f"its crc32c is {found:08x}, the ledger's {row.crc32c:08x}")
        return payload

    def _read(self, row: LedgerRow, shard: str, offset: int, nbytes: int) -> bytes:
        try:
            return self.volume.read_range(shard, offset, nbytes)
        except NotFound as error:
            raise self._corrupt(row, "the shard is missing") from error

    def _read_shard_index(self, level: int, shard: str, first: Shape) -> ShardIndex:
        """The index of a shard, whose `first` chunk is given: it follows the chunks that the ledger knows."""
        info = self.levels[level]
        box = BoundingBox.at(first, info.chunks_per_shard).clipped(info.chunk_grid)
        end = int(self.ledger.level_rows(level)["nbytes"][box.slices].sum()) if box else 0
        return read_shard_index(self.volume, shard, info.chunks_per_shard, end)

    def _shard_bytes(self, level: LevelInfo) -> int:
        lengths = self.ledger.level_rows(level.index)["nbytes"]
        shards = {tuple(place) for place in np.argwhere(lengths) // level.chunks_per_shard}
        return int(lengths.sum()) + len(shards) * index_nbytes(level.chunks_per_shard)

    def _corrupt(self, row: LedgerRow, found: str) -> ChunkCorrupt:
        shard, _ = self.levels[row.level].locate(row.index)
        where = f"chunk {tuple(row.index)} of level {row.level} in shard {shard} of {self.volume.url}"
        # Which dataset this is only the catalogue knows.
        to_do = "Run `em verify ID --discard`, then `em ingest ID`, ID of its dataset: it is written again"
        return ChunkCorrupt(f"Read {where}", found, to_do)


def _relative(box: BoundingBox, origin: tuple[int, ...]) -> tuple[slice, slice, slice]:
    z, y, x = (slice(a - o, b - o) for a, b, o in zip(box.start, box.stop, origin, strict=True))
    return z, y, x


def _span(box: BoundingBox) -> str:
    return f"voxels {tuple(box.start)} to {tuple(box.stop)}"
