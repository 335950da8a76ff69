"""Neuroglancer precomputed volumes in a folder: as written there, or the part of one that was downloaded.

In a folder that a download made, chunks have the names they have in an unsharded volume and the bytes they
have at their source, wherever these lay there.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from em_pipeline.domain.errors import NotFound, UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats.base import ClaimSheet, FileVolume, jsonable, opened
from em_pipeline.formats.precomputed_codecs import decode_chunk, decoding_bytes
from em_pipeline.formats.precomputed_grid import ChunkVoxels
from em_pipeline.formats.precomputed_info import Info, Scale, parse_info
from em_pipeline.formats.sharded import ChunkPlace, ShardIndexes

EXTRACTOR = "formats.precomputed"
TITLE = "neuroglancer precomputed"
# A chunk's bytes as stored; None where it was never written.
ReadChunk = Callable[[BoundingBox], bytes | None]


def open_precomputed(
    folder: Path, *, level: int | str | None = None, box: BoundingBox | None = None
) -> FileVolume:
    """The level of that number or key, by default the finest, whole; z-y-x, the stored data type.

    Reads chunk files (also with the suffix `.gz`, as cloud-volume writes them on disks) and shards. `box`
    (voxels z-y-x, from the level's first) says which part the folder holds, by default all: in it, chunks
    that are not there were never written and are listed in `missing`; outside, reading raises `NotFound`.
    `voxel_size_nm` is the scale's resolution; `translation_nm` see `Scale.translation_nm`. Raises
    `NotFound` for a folder without `info` and for unknown levels, and `UnsupportedFormat` for a folder that
    holds no chunk of the box at all, which is more likely lost than empty.
    """
    info = parse_info(_bytes(folder / "info"), f"{folder.name}/info")
    scale = info.scale(level)
    part = box or BoundingBox.of_shape(scale.shape)
    read, missing = _reader(folder, scale, part)
    count = scale.grid.count(part)
    if len(missing) == count:
        raise UnsupportedFormat(
            f"Open level {scale} of {folder.name}",
            f"none of the {count:,} chunks of {tuple(part.start)}..{tuple(part.stop)} (z-y-x) is there",
            "Download them again, or choose a level and a box that hold data",
        )
    voxels = _Decoded(scale, read)
    return FileVolume(
        scale.shape,
        scale.dtype,
        scale.chunk,
        ChunkVoxels(scale.grid, voxels.load, decoding_bytes(scale)),
        claims_of(info, scale, folder / "info"),
        {"level": scale.index, "key": scale.key, "info": jsonable(dict(info.document))},
        scale.translation_nm,
        missing,
    )


def claims_of(info: Info, scale: Scale, document: Path) -> tuple[Claim, ...]:
    """What the `info` document says of that scale, with evidence."""
    sheet = ClaimSheet(document, EXTRACTOR)
    at = f"scales[{scale.index}]"
    sheet.layout(scale.shape, scale.dtype, scale.chunk, TITLE, scale.encoding, at)
    # Stored in Fortran order (https://github.com/google/neuroglancer, precomputed/volume.md).
    sheet.axes("czyx", at, "xyzc")
    raw = info.document["scales"][scale.index]["resolution"]
    for axis, size in zip("zyx", scale.voxel_nm, strict=True):
        sheet.voxel_size(axis, size, f"{at}.resolution", raw, "nm")
    return tuple(sheet.claims)


@dataclass(frozen=True)
class _Decoded:
    scale: Scale
    read: ReadChunk

    def load(self, chunk: BoundingBox) -> NDArray[Any] | None:
        data = self.read(chunk)
        if data is None:
            return None
        name = f"{self.scale.key}/{self.scale.grid.name(chunk)}"
        return decode_chunk(data, self.scale, chunk.shape, name)


def _reader(folder: Path, scale: Scale, part: BoundingBox) -> tuple[ReadChunk, tuple[BoundingBox, ...]]:
    """How to read a chunk of the level, and which chunks that meet `part` were never written."""
    chunks = folder / scale.key
    held = frozenset(child.name for child in chunks.iterdir()) if chunks.is_dir() else frozenset()
    if scale.sharding is not None and any(name.endswith(".shard") for name in held):
        shards = ShardIndexes(scale.sharding, _Ranges(chunks), scale.key)
        places = _Shards(chunks, scale, shards)
        return places.read, tuple(c for c in scale.grid.boxes(part) if places.place(c) is None)
    files = _Files(chunks, scale, part, held)
    return files.read, tuple(c for c in scale.grid.boxes(part) if files.name(c) is None)


@dataclass(frozen=True)
class _Files:
    """One file for each chunk. `held` are the names in the folder when it was opened."""

    folder: Path
    scale: Scale
    part: BoundingBox
    held: frozenset[str]

    def name(self, chunk: BoundingBox) -> str | None:
        plain = self.scale.grid.name(chunk)
        return next((name for name in (plain, f"{plain}.gz") if name in self.held), None)

    def read(self, chunk: BoundingBox) -> bytes | None:
        name = self.name(chunk)
        if name is not None:
            return _bytes(self.folder / name)
        if _meet(chunk, self.part):
            return None
        raise NotFound(
            f"Read the chunk {self.scale.key}/{self.scale.grid.name(chunk)}",
            f"only those of {tuple(self.part.start)}..{tuple(self.part.stop)} (z-y-x) are held",
            "Read inside that box",
        )


@dataclass(frozen=True)
class _Shards:
    folder: Path
    scale: Scale
    indexes: ShardIndexes

    def place(self, chunk: BoundingBox) -> ChunkPlace | None:
        return self.indexes.locate(self.scale.grid.morton(chunk))

    def read(self, chunk: BoundingBox) -> bytes | None:
        place = self.place(chunk)
        return None if place is None else _Ranges(self.folder)(*place)


@dataclass(frozen=True)
class _Ranges:
    """A `ReadRange` of the files in a folder."""

    folder: Path

    def __call__(self, name: str, offset: int, size: int) -> bytes | None:
        path = self.folder / name
        return _bytes(path, offset, size) if path.is_file() else None


def _bytes(path: Path, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes from `offset`, by default all; fewer where the file ends first."""
    with opened(path) as descriptor:
        there = os.fstat(descriptor).st_size - offset
        left = there if size is None else min(size, there)
        pieces: list[bytes] = []
        while left > 0 and (piece := os.pread(descriptor, left, offset)):
            pieces.append(piece)
            left, offset = left - len(piece), offset + len(piece)
    return b"".join(pieces)


def _meet(a: BoundingBox, b: BoundingBox) -> bool:
    sides = zip(a.start, a.stop, b.start, b.stop, strict=True)
    return all(first < other_stop and other < stop for first, stop, other, other_stop in sides)
