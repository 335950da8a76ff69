"""The `info` document of a neuroglancer precomputed volume.

Specification: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
It counts and lists in x, y, z; everything here is z-y-x.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import SAID_LABELS
from em_pipeline.domain.wording import figure
from em_pipeline.formats.base import check_chunk
from em_pipeline.formats.bounded_json import parse_json
from em_pipeline.formats.dvid import check_not_dvid
from em_pipeline.formats.precomputed_grid import ChunkGrid
from em_pipeline.formats.precomputed_gzip import GZIP_MAGIC, gunzip
from em_pipeline.formats.sharded import Sharding

INFO_TYPE = "neuroglancer_multiscale_volume"
KINDS = ("image", "segmentation")
DATA_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32")
# Encoding → data types it can hold, None for all.
ENCODINGS: Mapping[str, tuple[str, ...] | None] = {
    "raw": None,
    "jpeg": ("uint8",),
    "png": ("uint8", "uint16"),
    "compressed_segmentation": ("uint32", "uint64"),
    "compresso": ("uint8", "uint16", "uint32", "uint64"),
}
# Real documents have a few kilobytes.
MOST_INFO_BYTES = 4 * 1024 * 1024
# The default of the compressed_segmentation format's only implementation.
BLOCK_SIZE = (8, 8, 8)


@dataclass(frozen=True)
class Scale:
    """One level: `index` in the document and `key`; `shape`, `chunk`, `voxel_offset` in voxels z-y-x.

    `voxel_nm` is the voxel's size, nanometres z-y-x. `block_size` (x-y-z) is compressed_segmentation's.
    """

    index: int
    key: str
    shape: Shape
    chunk: Shape
    voxel_nm: tuple[float, float, float]
    voxel_offset: tuple[int, int, int]
    encoding: str
    dtype: np.dtype[Any]
    block_size: tuple[int, int, int]
    sharding: Sharding | None

    @property
    def grid(self) -> ChunkGrid:
        return ChunkGrid(self.shape, self.chunk, self.voxel_offset)

    @property
    def bytes(self) -> int:
        """Size of the whole level once decoded."""
        return self.shape.voxels * self.dtype.itemsize

    @property
    def translation_nm(self) -> tuple[float, float, float]:
        """Centre of the first voxel, in the coordinates that neuroglancer shows: (voxel_offset + ½) · size.

        In precomputed, voxel i reaches from i to i+1, so its centre lies half a voxel further. Centres of
        all levels and of other volumes in the same coordinates are comparable.
        """
        z, y, x = ((o + 0.5) * n for o, n in zip(self.voxel_offset, self.voxel_nm, strict=True))
        return z, y, x

    def part_at(self, box: BoundingBox, origin: tuple[int, int, int]) -> BoundingBox | None:
        """The voxels of this scale where `box` lies, whose voxels are as large and counted from `origin`.

        `origin` is the position of the box's volume (z-y-x voxels), as `voxel_offset` is that of this one.
        None where they do not meet.
        """
        shift = [a - b for a, b in zip(origin, self.voxel_offset, strict=True)]
        start = [max(0, a + d) for a, d in zip(box.start, shift, strict=True)]
        stop = [min(b + d, n) for b, d, n in zip(box.stop, shift, self.shape, strict=True)]
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return BoundingBox(start=Shape(*start), stop=Shape(*stop))

    def __str__(self) -> str:
        sizes = "×".join(map(str, self.shape))
        return f"{self.index} ({self.key}: {sizes}, {'×'.join(map(figure, self.voxel_nm))} nm)"


@dataclass(frozen=True)
class Info:
    """A volume: `kind` is image or segmentation, None where the document does not say (some writers of
    images omit it); `scales` as listed; `document` is the parsed JSON."""

    kind: str | None
    data_type: str
    scales: tuple[Scale, ...]
    document: Mapping[str, Any]

    @property
    def said_labels(self) -> dict[str, str]:
        """For the metadata of its volumes (`SAID_LABELS`); empty where it is no segmentation."""
        return {SAID_LABELS: "`info` says type: segmentation"} if self.kind == "segmentation" else {}

    def scale(self, level: int | str | None) -> Scale:
        """The scale of that number or key; None is the finest. Raises `NotFound` with those there are."""
        if level is None:
            return min(self.scales, key=lambda scale: math.prod(scale.voxel_nm))
        for scale in self.scales:
            if level == scale.key:
                return scale
        number = str(level)
        if number.isdecimal() and int(number) < len(self.scales):
            return self.scales[int(number)]
        raise NotFound(
            f"Choose level {level!r}",
            f"the volume has the levels {'; '.join(map(str, self.scales))}",
            "Name one of them by its number or key",
        )

    def scale_of(self, voxel_nm: tuple[float, float, float], where: str) -> Scale:
        """The scale whose voxels have that size, nanometres z-y-x. Raises `InputRefused` where none has."""
        for scale in self.scales:
            if np.allclose(scale.voxel_nm, voxel_nm, rtol=1e-6, atol=0):
                return scale
        raise InputRefused(
            f"Match {where} with voxels of {voxel_nm} nm (z-y-x)",
            f"it has the levels {'; '.join(map(str, self.scales))}",
            "Choose a level of the image that both have",
        )


def parse_info(data: bytes | str, where: str) -> Info:
    """Read an `info` document, gzipped or not (some stores keep it so); `where` names it in messages.

    Raises `UnsupportedFormat` for what is no precomputed volume, for several channels, and for data types
    and encodings that are not read (jxl, kempressed, fpzip, …).
    """
    tried = f"Read {where}"
    try:
        if isinstance(data, bytes) and data.startswith(GZIP_MAGIC):
            data = gunzip(data, MOST_INFO_BYTES)
        document = parse_json(data)
    except ValueError as error:
        raise UnsupportedFormat(
            tried, f"it is not JSON ({error})", "Give the folder that holds `info`"
        ) from error
    if isinstance(document, dict):
        check_not_dvid(document, tried)
    if (
        not isinstance(document, dict)
        or not isinstance(document.get("scales"), list)
        or not document["scales"]
    ):
        raise UnsupportedFormat(tried, "it lists no scales, so it describes no volume", "Meshes are not read")
    kind, data_type = document.get("type"), document.get("data_type")
    if document.get("@type", INFO_TYPE) != INFO_TYPE or kind not in (None, *KINDS):
        raise UnsupportedFormat(tried, f"its types are {document.get('@type')!r} and {kind!r}", "")
    if data_type not in DATA_TYPES:
        raise UnsupportedFormat(tried, f"its data type is {data_type!r}", f"Read are {', '.join(DATA_TYPES)}")
    if document.get("num_channels", 1) != 1:
        raise UnsupportedFormat(tried, f"it has {document['num_channels']} channels", "Volumes have one")
    try:
        scales = [_scale(n, raw, data_type, where) for n, raw in enumerate(document["scales"])]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UnsupportedFormat(
            tried, f"a scale is incomplete: {error!r}", "The document is damaged"
        ) from error
    return Info(kind, data_type, tuple(scales), document)


def _scale(index: int, raw: Mapping[str, Any], data_type: str, where: str) -> Scale:
    key, encoding = str(raw["key"]), str(raw["encoding"])
    tried = f"Read the scale {key!r} of {where}"
    if any(part in ("", "..") for part in key.strip("/").split("/")) or "\\" in key or "\0" in key:
        raise UnsupportedFormat(tried, "its key leads out of the volume", "Nothing was read from there")
    if encoding not in ENCODINGS:
        raise UnsupportedFormat(tried, f"its encoding is {encoding!r}", f"Read are {', '.join(ENCODINGS)}")
    held = ENCODINGS[encoding]
    if held is not None and data_type not in held:
        raise UnsupportedFormat(tried, f"its encoding {encoding} cannot hold {data_type}", "")
    shape, chunk = Shape(*_triple(raw["size"], int)), Shape(*_triple(raw["chunk_sizes"][0], int))
    voxel_nm = _triple(raw["resolution"], float)
    if min(*shape, *chunk) < 1 or not all(math.isfinite(n) and n > 0 for n in voxel_nm):
        raise UnsupportedFormat(
            tried, f"its size is {shape}, its chunks {chunk}, its voxels {voxel_nm} nm", ""
        )
    # Chunks larger than the volume are stored clipped to it.
    clipped = [min(c, n) for c, n in zip(chunk, shape, strict=True)]
    check_chunk(tried, clipped, np.dtype(data_type))
    block_size = _triple(raw.get("compressed_segmentation_block_size", BLOCK_SIZE), int)[::-1]
    if min(block_size) < 1:
        raise UnsupportedFormat(tried, f"its blocks are {block_size} (x-y-z) voxels", "")
    sharding = raw.get("sharding")
    return Scale(
        index=index,
        key=key.strip("/"),
        shape=shape,
        chunk=Shape(*clipped),
        voxel_nm=voxel_nm,
        voxel_offset=_triple(raw.get("voxel_offset") or (0, 0, 0), int),
        encoding=encoding,
        dtype=np.dtype(data_type),
        block_size=block_size,
        sharding=Sharding.parse(sharding, f"{where}, scale {key}") if sharding else None,
    )


def _triple(values: Sequence[Any], kind: type) -> tuple[Any, Any, Any]:
    """Three numbers given as x, y, z, in the order z, y, x."""
    x, y, z = values
    if any(isinstance(n, bool) or not isinstance(n, int | float) or kind(n) != n for n in (x, y, z)):
        raise ValueError(f"{values!r} are not three numbers of the kind {kind.__name__}")
    return kind(z), kind(y), kind(x)
