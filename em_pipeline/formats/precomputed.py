"""Neuroglancer precomputed volumes in a folder: as written there, or the part of one that was downloaded.

In a folder that a download made, chunks have the names they have in an unsharded volume and the bytes they
have at their source, wherever these lay there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats.base import ClaimSheet, FileVolume, jsonable
from em_pipeline.formats.precomputed_codecs import decode_chunk, decoding_bytes
from em_pipeline.formats.precomputed_grid import ChunkVoxels
from em_pipeline.formats.precomputed_held import HeldChunks, held_chunks, missing_of, read_bytes
from em_pipeline.formats.precomputed_info import Info, Scale, parse_info

EXTRACTOR = "formats.precomputed"
TITLE = "neuroglancer precomputed"


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
    info = parse_info(read_bytes(folder / "info"), f"{folder.name}/info")
    scale = info.scale(level)
    part = box or BoundingBox.of_shape(scale.shape)
    held = held_chunks(folder / scale.key, scale, part)
    if not len(held.cells):
        count, where = scale.grid.count(part), f"{tuple(part.start)}..{tuple(part.stop)} (z-y-x)"
        raise UnsupportedFormat(
            f"Open level {scale} of {folder.name}",
            f"none of the {count:,} chunks of {where} is there",
            "Download them again, or choose a level and a box that hold data",
        )
    voxels = _Decoded(scale, held)
    return FileVolume(
        scale.shape,
        scale.dtype,
        scale.chunk,
        ChunkVoxels(scale.grid, voxels.load, decoding_bytes(scale)),
        claims_of(info, scale, folder / "info"),
        {"level": scale.index, "key": scale.key, "info": jsonable(dict(info.document)), **info.said_labels},
        scale.translation_nm,
        missing_of(held, scale, part),
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
    held: HeldChunks

    def load(self, chunk: BoundingBox) -> NDArray[Any] | None:
        data = self.held.read(chunk)
        if data is None:
            return None
        name = f"{self.scale.key}/{self.scale.grid.name(chunk)}"
        return decode_chunk(data, self.scale, chunk.shape, name)
