"""Grey values that a DVID server gave as raw boxes, and what its instance says of itself.

API: https://github.com/janelia-flyem/dvid/blob/master/datatype/imageblk/imageblk.go (help of `uint8blk`).
`raw/0_1_2/<size>/<offset>` names both in x, y, z, and answers with the voxels, x fastest: a z-y-x array.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import NotFound, UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.base import ClaimSheet, FileVolume, jsonable
from em_pipeline.formats.bounded_json import parse_json
from em_pipeline.formats.precomputed_grid import ChunkGrid, ChunkVoxels
from em_pipeline.formats.units import length_nm

EXTRACTOR = "formats.dvid"
TITLE = "DVID raw boxes"
INFO_NAME = "info.json"
# DVID's type of instance → data type of its voxels.
GREY_TYPES = {"uint8blk": np.dtype(np.uint8)}
# Blocks along each side of what is asked for at once: of 64³ blocks, 2 MiB.
BLOCKS_AT_ONCE = 2


@dataclass(frozen=True)
class DvidInstance:
    """A grey-value instance: `shape` and the `first` voxel (MinPoint), its `block`s in voxels, z-y-x.

    `voxel_nm` are nanometres z-y-x, None where the unit is unknown. `document` is the answer of
    `/api/node/<uuid>/<instance>/info`.
    """

    type_name: str
    shape: Shape
    first: tuple[int, int, int]
    block: Shape
    voxel_nm: tuple[float | None, float | None, float | None]
    dtype: np.dtype[Any]
    document: Mapping[str, Any]

    @property
    def grid(self) -> ChunkGrid:
        """The boxes that are asked for: whole blocks, as DVID counts them."""
        sides = zip(self.block, self.shape, strict=True)
        return ChunkGrid(self.shape, Shape(*(min(n * BLOCKS_AT_ONCE, all_) for n, all_ in sides)), self.first)

    def raw_path(self, box: BoundingBox) -> str:
        """`raw/…` for `box` (voxels z-y-x from the instance's first). A busy server answers 503 to it."""
        size = "_".join(str(n) for n in box.shape[::-1])
        offset = "_".join(str(a + first) for a, first in zip(box.start[::-1], self.first[::-1], strict=True))
        return f"raw/0_1_2/{size}/{offset}?throttle=true"

    def claims(self, sheet: ClaimSheet) -> tuple[Claim, ...]:
        """What the document says, with evidence in the name of `sheet`."""
        sheet.layout(
            self.shape, self.dtype, self.grid.chunk, TITLE, "none", "Extended.MinPoint, Extended.MaxPoint"
        )
        sheet.axes("zyx", "raw/0_1_2", "xyz")
        raw, units = (self.document["Extended"].get(key) for key in ("VoxelSize", "VoxelUnits"))
        for axis, size in zip("zyx", self.voxel_nm, strict=True):
            sheet.voxel_size(axis, size, "Extended.VoxelSize", raw, units[0] if units else None)
        return tuple(sheet.claims)


def parse_instance(data: bytes | str, where: str) -> DvidInstance:
    """Read the `info` of an instance; `where` names it in messages. `MaxPoint` is its last voxel.

    Raises `UnsupportedFormat` for instances of labels and others, for those that nothing was written to
    (their points are null), and for what is no such document.
    """
    tried = f"Read {where}"
    try:
        document = parse_json(data)
        type_name, extended = document["Base"]["TypeName"], document["Extended"]
        points = extended["MinPoint"], extended["MaxPoint"]
        block, sizes = extended["BlockSize"], extended["VoxelSize"]
        units = extended.get("VoxelUnits") or [None] * 3
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedFormat(tried, f"it is no answer of a DVID instance ({error!r})", "") from error
    if not isinstance(type_name, str) or type_name not in GREY_TYPES:
        raise UnsupportedFormat(
            tried, f"the instance holds {type_name}", f"Images are of the type {', '.join(GREY_TYPES)}"
        )
    if not all(isinstance(given, list) for given in (block, sizes, units)):
        raise UnsupportedFormat(tried, f"its blocks, sizes and units are {block}, {sizes} and {units}", "")
    if None in points:
        raise UnsupportedFormat(tried, "nothing was ever written to the instance", "Choose another node")
    try:
        first, last, blocks = (tuple(int(n) for n in reversed(point)) for point in (*points, block))
        shape = Shape(*(b - a + 1 for a, b in zip(first, last, strict=True)))
        # DVID writes units in the plural.
        x, y, z = (
            length_nm(size, str(unit).removesuffix("s")) for size, unit in zip(sizes, units, strict=True)
        )
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UnsupportedFormat(tried, f"its points are damaged: {error}", "") from error
    if min(*shape, *blocks) < 1:
        raise UnsupportedFormat(tried, f"it reaches from {points[0]} to {points[1]} (x-y-z)", "")
    return DvidInstance(
        type_name, shape, (first[0], first[1], first[2]), Shape(*blocks), (z, y, x),
        GREY_TYPES[type_name], document,
    )  # fmt: skip


def check_not_dvid(document: Mapping[str, Any], tried: str) -> None:
    """Raise `UnsupportedFormat` where a document is the `info` of a DVID instance."""
    base = document.get("Base")
    if isinstance(base, Mapping) and "TypeName" in base:
        raise UnsupportedFormat(
            tried,
            f"it is a DVID instance of {base['TypeName']}, and by an address DVID is inspected, not ingested",
            "Hemibrain's grey values come with `em ingest flyem-hemibrain --image-set dvid --roi …`; of "
            "others, give the precomputed volume that the same data are kept as",
        )


def open_dvid(folder: Path, *, box: BoundingBox | None = None) -> FileVolume:
    """The instance whose `info.json` and raw boxes a download put into `folder`, whole; z-y-x.

    `box` (voxels z-y-x from the instance's first) says which part is held, by default all. Voxels that DVID
    never wrote are its background, so nothing is `missing`. Raises `NotFound` for a folder without
    `info.json` or, on reading, a box that is not held, and `UnsupportedFormat` for a damaged one.
    """
    path = folder / INFO_NAME
    if not path.is_file():
        raise NotFound(f"Open {folder.name}", f"it has no {INFO_NAME}", "Download it again")
    instance = parse_instance(path.read_bytes(), path.name)
    part = box or BoundingBox.of_shape(instance.shape)
    lost = [
        name for name in map(instance.grid.name, instance.grid.boxes(part)) if not (folder / name).is_file()
    ]
    if lost:
        raise NotFound(f"Open {folder.name}", f"{len(lost)} boxes are not held, such as {lost[0]}", "")
    return FileVolume(
        instance.shape,
        instance.dtype,
        instance.grid.chunk,
        ChunkVoxels(
            instance.grid,
            _Boxes(folder, instance).load,
            2 * instance.grid.chunk.voxels * instance.dtype.itemsize,
        ),
        instance.claims(ClaimSheet(path, EXTRACTOR)),
        {"info": jsonable(dict(instance.document))},
        _translation_nm(instance),
    )


def _translation_nm(instance: DvidInstance) -> tuple[float, float, float]:
    """Centre of the first voxel, in the coordinates of `formats.precomputed_info.Scale.translation_nm`."""
    z, y, x = (
        (first + 0.5) * size if size else 0.0
        for first, size in zip(instance.first, instance.voxel_nm, strict=True)
    )
    return z, y, x


@dataclass(frozen=True)
class _Boxes:
    folder: Path
    instance: DvidInstance

    def load(self, chunk: BoundingBox) -> NDArray[Any]:
        name = self.instance.grid.name(chunk)
        path = self.folder / name
        if not path.is_file():
            raise NotFound(
                f"Read the box {name}", "it is not held", "Read inside the box that was downloaded"
            )
        data = path.read_bytes()
        needed = chunk.shape.voxels * self.instance.dtype.itemsize
        if len(data) != needed:
            raise UnsupportedFormat(
                f"Read the box {name}", f"it has {len(data):,} bytes, not {needed:,}", "Download it again"
            )
        return np.frombuffer(data, self.instance.dtype).reshape(chunk.shape)
