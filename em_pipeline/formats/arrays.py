"""Arrays stored as many objects (zarr chunks and shards, N5 blocks): what their documents say, and which keys
hold which voxels.

Nothing here touches a disk or a network: documents come through a `Fetch`, so the same code describes a
remote container before a byte of it is downloaded, and the local mirror afterwards.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape
from em_pipeline.formats.base import ClaimSheet, check_chunk, jsonable
from em_pipeline.formats.bounded_json import parse_json
from em_pipeline.formats.gaps import in_voxels
from em_pipeline.formats.units import length_nm

# Key below the container → its bytes, or None where there is certainly no such object.
Fetch = Callable[[str], bytes | None]
# Values that are exact in the wider type: numpy has no bool or half that the volumes we write could keep.
WIDENED: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.bool_): np.dtype(np.uint8),
    np.dtype(np.float16): np.dtype(np.float32),
}
SPATIAL = ("z", "y", "x")
# Java writers give "without end" as 2^63-1; no real axis comes near this.
LONGEST_AXIS = 2**40


class Documents:
    """Reads metadata documents through `fetch`, each once, and keeps those that are there in `found`."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._asked: dict[str, bytes | None] = {}

    @property
    def found(self) -> dict[str, bytes]:
        return {key: data for key, data in self._asked.items() if data is not None}

    def json(self, key: str) -> dict[str, Any] | None:
        """The JSON object under `key`, or None. Raises `UnsupportedFormat` for content of another kind."""
        if key not in self._asked:
            self._asked[key] = self._fetch(key)
        data = self._asked[key]
        if data is None:
            return None
        try:
            document = parse_json(data)
        except ValueError as error:
            raise damaged(key, f"it is not JSON ({error})") from error
        if not isinstance(document, dict):
            raise damaged(key, f"it holds a {type(document).__name__}, not an object")
        return document


@dataclass(frozen=True)
class StoredArray:
    """One array as its own document describes it; all tuples in the order of the stored axes.

    `chunk` is decoded whole, `stored` is what one key holds (a zarr v3 shard of chunks, else the chunk).
    A key is `path`/`prefix` followed by the indices joined by `separator`, which is a default where it is not
    `separator_said`. `driver` is tensorstore's name.
    """

    driver: str
    path: str
    document: str
    file_format: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    stored: tuple[int, ...]
    dtype: np.dtype[Any]
    prefix: str
    separator: str
    compression: str
    axis_names: tuple[str, ...] | None
    attributes: dict[str, Any]
    separator_said: bool = True

    def key(self, index: Sequence[int]) -> str:
        """Key of the object at `index` of the grid, below the container."""
        return joined(self.path, self.prefix + self.separator.join(map(str, index)))

    def index(self, name: str) -> tuple[int, ...] | None:
        """The inverse of `key` for a name below the array; None for what is no object of the grid."""
        if not name.startswith(self.prefix):
            return None
        parts = name[len(self.prefix) :].split(self.separator)
        if len(parts) != len(self.shape) or not all(p.isascii() and p.isdigit() for p in parts):
            return None
        return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class Calibration:
    """Scale and translation of the voxels by axis name, in `units`, and where a document says so."""

    scale: Mapping[str, float]
    translation: Mapping[str, float]
    units: Mapping[str, str | None]
    document: str
    field: str
    raw: Any

    def voxel_nm(self, axis: str) -> float | None:
        """None where the axis has no scale, or one without a unit of length."""
        return length_nm(self.scale.get(axis), self.units.get(axis))

    def translation_nm(self, axis: str) -> float:
        """Position of the first voxel's centre; 0 where it cannot be known."""
        unit_nm = length_nm(1.0, self.units.get(axis))
        place = self.translation.get(axis, 0.0) * (unit_nm or 0.0)
        return place if math.isfinite(place) else 0.0


@dataclass(frozen=True)
class ArrayLayout:
    """One level of an image, its voxels as z-y-x, and the objects it is stored in.

    `path` is that of the array inside the container, `level` and `name` its place in the multiscale (`name`
    is the path below the multiscale). `shape` and `chunk_shape` (decoded whole) are z-y-x; an axis not
    stored has length 1. `dtype` is that of the voxels read, native byte order: bool is read as uint8 and
    float16 as float32. `axes` are named as stored. `voxel_size_nm` and `translation_nm` are nanometres.
    `absent` are names of levels that the image lists and that are not there.
    `documents` are the bytes of every metadata document that was read to know this, by key: a mirror that
    holds them describes itself.
    """

    path: str
    level: int
    name: str
    shape: Shape
    chunk_shape: Shape
    dtype: np.dtype[Any]
    axes: tuple[str, ...]
    voxel_size_nm: PartialVoxelSize
    translation_nm: tuple[float, float, float]
    claims: tuple[Claim, ...]
    documents: Mapping[str, bytes] = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    array: StoredArray = field(repr=False)
    at: Mapping[str, int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()

    @property
    def object_shape(self) -> Shape:
        """Voxels under one key, z-y-x: a shard, or the chunk where there are no shards."""
        return Shape(*(self._along(self.array.stored, axis) for axis in SPATIAL))

    @property
    def grid_shape(self) -> Shape:
        """How many objects the whole array has, z-y-x."""
        return Shape(*(-(-n // s) for n, s in zip(self.shape, self.object_shape, strict=True)))

    def objects(self, box: BoundingBox) -> Iterator[tuple[str, BoundingBox]]:
        """Key of every stored object that meets `box` (z-y-x), and the voxels it holds, clipped to the array.

        In C order of z, y, x. The keys are where objects would be: fill chunks may never have been written.
        Raises `InputRefused` for a box outside the array.
        """
        if not box.within(self.shape):
            raise InputRefused(
                f"List the objects of the box {tuple(box.start)}..{tuple(box.stop)} (z-y-x) of {self.name}",
                f"that level has only {tuple(self.shape)} voxels",
                "Clip the box to the level",
            )
        size = self.object_shape
        ranges = (range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, size, strict=True))
        for index in product(*ranges):
            cell = BoundingBox.at(Shape(*index), (1, 1, 1))
            yield self.key(cell.start), in_voxels(cell, size, self.shape)

    def key(self, index: Shape) -> str:
        """Key of the object at `index` of the grid, z-y-x."""
        return self.array.key([self._stored_index(axis, index) for axis in self.axes])

    def grid_index(self, name: str) -> Shape | None:
        """Index z-y-x of the object called `name` below the array; None for what is no part of this image."""
        stored = self.array.index(name)
        if stored is None:
            return None
        by_axis = dict(zip(self.axes, stored, strict=True))
        index = Shape(*(by_axis.get(axis, 0) for axis in SPATIAL))
        inside = all(i < n for i, n in zip(index, self.grid_shape, strict=True))
        fixed = all(self._stored_index(axis, index) == i for axis, i in by_axis.items())
        return index if inside and fixed else None

    def _along(self, values: Sequence[int], axis: str) -> int:
        return values[self.axes.index(axis)] if axis in self.axes else 1

    def _stored_index(self, axis: str, index: Shape) -> int:
        if axis in SPATIAL:
            return int(getattr(index, axis))
        return self.at.get(axis, 0) // self._along(self.array.stored, axis)


def lay_out(
    array: StoredArray,
    level: int,
    name: str,
    axes: Sequence[str],
    calibration: Calibration | None,
    at: Mapping[str, int],
    notes: Sequence[str] = (),
) -> ArrayLayout:
    """The layout of `array` whose stored axes are called `axes`; its `documents` are filled in by the caller.

    `at` picks an index along axes other than z, y, x that are longer than 1; without one they are refused,
    as are repeated and unknown axes, axes without end, and voxels that are not real numbers
    (`UnsupportedFormat`).
    """
    tried = f"Read the array {array.path or '/'!r}"
    _check_axes(tried, array, axes, at)
    check_chunk(tried, array.chunk, array.dtype)
    dtype = WIDENED.get(array.dtype, array.dtype)
    if dtype.kind not in "uif":
        raise UnsupportedFormat(tried, f"its voxels are {array.dtype}", "Integers, floats and bool are read")
    along = dict(zip(axes, zip(array.shape, array.chunk, strict=True), strict=True))
    shape = Shape(*(along.get(axis, (1, 1))[0] for axis in SPATIAL))
    written = Shape(*(along.get(axis, (1, 1))[1] for axis in SPATIAL))
    chunk = Shape(*(min(pair) for pair in zip(written, shape, strict=True)))
    claims = _claims(array, axes, shape, dtype, written, calibration)
    z, y, x = (calibration.translation_nm(axis) if calibration else 0.0 for axis in SPATIAL)
    return ArrayLayout(
        path=array.path,
        level=level,
        name=name,
        shape=shape,
        chunk_shape=chunk,
        dtype=dtype,
        axes=tuple(axes),
        voxel_size_nm=PartialVoxelSize(**{c.field[-1]: c.value for c in claims if "voxel_size" in c.field}),
        translation_nm=(z, y, x),
        claims=claims,
        documents={},
        metadata={
            "format": array.file_format,
            "path": array.path,
            "level": level,
            "axes": list(axes),
            "calibration": jsonable(calibration.raw) if calibration else None,
            "notes": list(notes),
        },
        array=array,
        at=dict(at),
    )


def _claims(
    array: StoredArray,
    axes: Sequence[str],
    shape: Shape,
    dtype: np.dtype[Any],
    chunk: Shape,
    calibration: Calibration | None,
) -> tuple[Claim, ...]:
    extractor = "formats.n5" if array.driver == "n5" else "formats.zarr_arrays"
    stored = sheet_of(array.document, extractor)
    stored.layout(shape, dtype, chunk, array.file_format, array.compression, "array metadata")
    channels = dict(zip(axes, array.shape, strict=True)).get("c", 1)
    slowest_first = axes[::-1] if array.driver == "n5" else axes
    stored.axes(slowest_first, "array metadata", list(axes), channels)
    if calibration is None:
        return tuple(stored.claims)
    placed = sheet_of(calibration.document, extractor)
    for axis in SPATIAL:
        size, unit = calibration.voxel_nm(axis), calibration.units.get(axis)
        placed.voxel_size(axis, size, calibration.field, calibration.raw, unit)
    return (*stored.claims, *placed.claims)


def choose_level(levels: Sequence[ArrayLayout], level: int | str | None) -> ArrayLayout:
    """The level of that number or name (`s4`, or a path's last part); None is the finest.

    Raises `NotFound`, listing the levels there are; also for None where the finest is listed and not there.
    """
    finest = min(levels, key=lambda layout: layout.level)
    if level is None and not (finest.level and finest.absent):
        return finest
    for layout in levels:
        if layout.level == level or (isinstance(level, str) and layout.name == level.strip("/")):
            return layout
    for layout in levels:
        if str(level) in (str(layout.level), layout.name.rpartition("/")[2]):
            return layout
    there = ", ".join(f"{it.level} ({it.name}, {'×'.join(map(str, it.shape))})" for it in levels)
    wanted = "the finest level" if level is None else f"level {level!r}"
    raise NotFound(f"Choose {wanted}", f"the image has the levels {there}", "Name one of them")


def spatial_axes(lengths: Sequence[int]) -> tuple[str, ...]:
    """Names for axes that nothing names, slowest first: z, y, x are the last, and others are called d0, d1 …

    While there are more than three, the slowest of length 1 is none of them.
    """
    kept = list(range(len(lengths)))
    for dim, length in enumerate(lengths):
        if len(kept) > 3 and length == 1:
            kept.remove(dim)
    kept = kept[-3:]
    spatial = dict(zip(kept, SPATIAL[3 - len(kept) :], strict=True))
    return tuple(spatial.get(dim, f"d{dim}") for dim in range(len(lengths)))


def stored_index(
    box: BoundingBox, axes: Sequence[str], at: Mapping[str, int] | None = None
) -> tuple[slice, ...]:
    """Index of `box` (z-y-x) in an array of these `axes`; along others it is the entry `at`, by default 0."""
    spans = dict(zip(SPATIAL, box.slices, strict=True))
    places = {axis: (at or {}).get(axis, 0) for axis in axes}
    return tuple(spans.get(axis, slice(places[axis], places[axis] + 1)) for axis in axes)


def as_stored(voxels: NDArray[Any], axes: Sequence[str]) -> NDArray[Any]:
    """A view of `voxels` (z-y-x) whose axes are those stored, `axes`; others than z, y, x have length 1."""
    kept = voxels[tuple(slice(None) if axis in axes else 0 for axis in SPATIAL)]
    present = [axis for axis in SPATIAL if axis in axes]
    turned = kept.transpose([present.index(axis) for axis in axes if axis in SPATIAL])
    return turned[tuple(slice(None) if axis in SPATIAL else None for axis in axes)]


def joined(*parts: str) -> str:
    """Keys joined by one slash. Raises `UnsupportedFormat` for a path that could leave the container."""
    path = "/".join(part.strip("/") for part in parts if part.strip("/"))
    unsafe = path and any(part in ("..", ".", "") for part in path.split("/"))
    if unsafe or "\\" in path or "\0" in path:
        raise UnsupportedFormat("Follow a path in a container", f"{path!r} is not a plain path below it")
    return path


def sheet_of(key: str, extractor: str) -> ClaimSheet:
    """A claim sheet whose evidence names the document by its key inside the container."""
    sheet = ClaimSheet(Path(PurePosixPath(key).name), extractor)
    sheet.where = key
    return sheet


@contextmanager
def understood(key: str) -> Iterator[None]:
    """Turns what Python raises for values of the wrong kind into `damaged(key)`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise damaged(key, f"it makes no sense ({error!r})") from error


def lengths_of(values: Any, least: int) -> tuple[int, ...]:
    """Lengths of axes, none below `least`. Raises `TypeError` and `ValueError` for what is no such list."""
    if not isinstance(values, list) or any(isinstance(v, bool) or int(v) != v for v in values):
        raise TypeError(f"{values!r} are no lengths")
    if any(value < least for value in values):
        raise ValueError(f"the lengths {values} are too small")
    return tuple(int(value) for value in values)


def damaged(key: str, found: str) -> UnsupportedFormat:
    """The error for a metadata document that cannot be understood."""
    return UnsupportedFormat(
        f"Read the metadata document {key!r}", found, "The container is damaged, or of a kind not read"
    )


def _check_axes(tried: str, array: StoredArray, axes: Sequence[str], at: Mapping[str, int]) -> None:
    if len(axes) != len(array.shape) or len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes):
        raise UnsupportedFormat(
            tried, f"its {len(array.shape)} axes are {list(axes)} of lengths {list(array.shape)}",
            "Images with the axes (z,) y, x are read",
        )  # fmt: skip
    for axis, length in zip(axes, array.shape, strict=True):
        if not 0 < length < LONGEST_AXIS:
            raise UnsupportedFormat(
                tried, f"its axis {axis} has length {length}, so it is a table or stream, not an image"
            )
        if axis not in SPATIAL and ((length > 1 and axis not in at) or at.get(axis, 0) >= length):
            raise UnsupportedFormat(
                tried, f"its axis {axis} has {length} entries, and volumes have only z, y and x",
                f"Choose one entry along {axis}, or export it as an image of its own",
            )  # fmt: skip
