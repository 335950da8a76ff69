"""Boxes and voxel sizes. Axis order is z, y, x everywhere; lengths are nanometres, indices are voxels.

Dataclasses of the standard library, which check themselves: pydantic takes part of a second to load, which
working on voxels does not need. Models have them as fields all the same, and forbid keys that they lack.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import index
from typing import Any, ClassVar, Final, NamedTuple, Self

from em_pipeline.domain.wording import figure

# Values this close are the same measurement written with fewer digits (8.0 and 7.998 nm).
RELATIVE_TOLERANCE = 5e-3
_WHOLE: Final = frozenset((int,))


class Shape(NamedTuple):
    """Extent of a volume in voxels, z-y-x."""

    z: int
    y: int
    x: int

    @property
    def voxels(self) -> int:
        return self.z * self.y * self.x

    def __str__(self) -> str:
        return f"{self.z}×{self.y}×{self.x}"


def shape_of(lengths: Iterable[int]) -> Shape:
    """Three whole numbers of any type as a `Shape` of `int`. Raises `ValueError` where they are not."""
    try:
        return Shape(*map(index, lengths))
    except TypeError as error:
        raise ValueError(f"{lengths!r} is not three whole numbers (z-y-x)") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundingBox:
    """Half-open box `[start, stop)` in voxels, z-y-x.

    Raises `ValueError` where a start is negative or not below its stop.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        # Made for every chunk that is read or written: shapes of `int` are taken as they are.
        if not (
            type(self.start) is type(self.stop) is Shape
            and _WHOLE.issuperset(map(type, self.start + self.stop))
        ):
            object.__setattr__(self, "start", shape_of(self.start))
            object.__setattr__(self, "stop", shape_of(self.stop))
        (z0, y0, x0), (z1, y1, x1) = self.start, self.stop
        if not (0 <= z0 < z1 and 0 <= y0 < y1 and 0 <= x0 < x1):
            raise ValueError(f"box {tuple(self.start)}..{tuple(self.stop)} (z-y-x) is empty or negative")

    @classmethod
    def of_shape(cls, shape: tuple[int, int, int]) -> Self:
        """The whole of a volume of that shape."""
        return cls(start=Shape(0, 0, 0), stop=Shape(*shape))

    @classmethod
    def at(cls, start: tuple[int, int, int], size: tuple[int, int, int]) -> Self:
        """Box of `size` voxels beginning at `start`."""
        stop = Shape(*(a + n for a, n in zip(start, size, strict=True)))
        return cls(start=Shape(*start), stop=stop)

    @property
    def shape(self) -> Shape:
        return Shape(*(b - a for a, b in zip(self.start, self.stop, strict=True)))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of this box in a z-y-x array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def clipped(self, shape: tuple[int, int, int]) -> Self | None:
        """The part inside a volume of `shape`, or None where they do not meet."""
        stop = tuple(min(b, n) for b, n in zip(self.stop, shape, strict=True))
        if any(b <= a for a, b in zip(self.start, stop, strict=True)):
            return None
        return type(self)(start=self.start, stop=Shape(*stop))

    def within(self, shape: tuple[int, int, int]) -> bool:
        return all(b <= n for b, n in zip(self.stop, shape, strict=True))

    def shifted(self, by: tuple[int, int, int]) -> Self:
        """The same box moved by `by` voxels."""
        return type(self).at(Shape(*(a + d for a, d in zip(self.start, by, strict=True))), self.shape)

    def tiles(self, tile: tuple[int, int, int]) -> Iterator[Self]:
        """Cut into boxes aligned to multiples of `tile` from the origin, in C order, clipped to this box."""
        ranges = [range(a // t, -(-b // t)) for a, b, t in zip(self.start, self.stop, tile, strict=True)]
        for z in ranges[0]:
            for y in ranges[1]:
                for x in ranges[2]:
                    corner = (z * tile[0], y * tile[1], x * tile[2])
                    start = (max(c, a) for c, a in zip(corner, self.start, strict=True))
                    stop = (min(c + t, b) for c, t, b in zip(corner, tile, self.stop, strict=True))
                    yield type(self)(start=Shape(*start), stop=Shape(*stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class VoxelSize:
    """Physical extent of one voxel in nanometres, z-y-x; all three known, positive and finite.

    Raises `ValueError` where one is not.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    z: float
    y: float
    x: float

    def __post_init__(self) -> None:
        for axis in "zyx":
            object.__setattr__(self, axis, _length(axis, getattr(self, axis)))

    def __iter__(self) -> Iterator[float]:
        return iter((self.z, self.y, self.x))

    def __str__(self) -> str:
        return " × ".join(figure(v) for v in self) + " nm"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialVoxelSize:
    """What one file or person knows of the voxel size, nm, z-y-x; None where it says nothing.

    Raises `ValueError` for a length that is not positive and finite.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    z: float | None = None
    y: float | None = None
    x: float | None = None

    def __post_init__(self) -> None:
        for axis in "zyx":
            if (length := getattr(self, axis)) is not None:
                object.__setattr__(self, axis, _length(axis, length))

    def __iter__(self) -> Iterator[float | None]:
        return iter((self.z, self.y, self.x))

    def filled_from(self, other: "PartialVoxelSize") -> "PartialVoxelSize":
        """This, with what it lacks taken from `other`."""
        return PartialVoxelSize(z=self.z or other.z, y=self.y or other.y, x=self.x or other.x)

    def complete(self) -> VoxelSize | None:
        """The voxel size, or None where an axis is unknown."""
        if self.z is None or self.y is None or self.x is None:
            return None
        return VoxelSize(z=self.z, y=self.y, x=self.x)


def _length(axis: str, value: Any) -> float:
    """A length along an axis. Raises `ValueError` where it is not positive and finite."""
    try:
        length = float(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{axis} = {value!r} is no length") from error
    if not 0 < length < math.inf:
        raise ValueError(f"{axis} = {value!r} is no length above 0 nm")
    return length


def whole_ratio(size: float, other: float) -> float | None:
    """`size` / `other` where it is a whole number, or one over a whole number, within rounding; else None."""
    ratio = size / other
    multiple = max(1, round(max(ratio, 1 / ratio)))
    exact = float(multiple) if ratio >= 1 else 1 / multiple
    return exact if math.isclose(ratio, exact, rel_tol=RELATIVE_TOLERANCE) else None
