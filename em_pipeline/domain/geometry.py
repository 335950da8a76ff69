"""Boxes and voxel sizes. Axis order is z, y, x everywhere; lengths are nanometres, indices are voxels."""

import math
from collections.abc import Iterator
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Values this close are the same measurement written with fewer digits (8.0 and 7.998 nm).
RELATIVE_TOLERANCE = 5e-3

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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


class BoundingBox(BaseModel):
    """Half-open box `[start, stop)` in voxels, z-y-x.

    Raises a pydantic `ValidationError` where a start is negative or not below its stop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: Shape
    stop: Shape

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if any(a < 0 or b <= a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"box {tuple(self.start)}..{tuple(self.stop)} (z-y-x) is empty or negative")
        return self

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


class VoxelSize(BaseModel):
    """Physical extent of one voxel in nanometres, z-y-x; all three known and positive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    z: Positive
    y: Positive
    x: Positive

    def __iter__(self) -> Iterator[float]:  # type: ignore[override]
        return iter((self.z, self.y, self.x))

    def __str__(self) -> str:
        return " × ".join(f"{v:.6g}" for v in self) + " nm"


class PartialVoxelSize(BaseModel):
    """What one file or person knows of the voxel size, nm, z-y-x; None where it says nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    z: Positive | None = None
    y: Positive | None = None
    x: Positive | None = None

    def __iter__(self) -> Iterator[float | None]:  # type: ignore[override]
        return iter((self.z, self.y, self.x))

    def filled_from(self, other: "PartialVoxelSize") -> "PartialVoxelSize":
        """This, with what it lacks taken from `other`."""
        return PartialVoxelSize(z=self.z or other.z, y=self.y or other.y, x=self.x or other.x)

    def complete(self) -> VoxelSize | None:
        """The voxel size, or None where an axis is unknown."""
        if self.z is None or self.y is None or self.x is None:
            return None
        return VoxelSize(z=self.z, y=self.y, x=self.x)


def whole_ratio(size: float, other: float) -> float | None:
    """`size` / `other` where it is a whole number, or one over a whole number, within rounding; else None."""
    ratio = size / other
    multiple = max(1, round(max(ratio, 1 / ratio)))
    exact = float(multiple) if ratio >= 1 else 1 / multiple
    return exact if math.isclose(ratio, exact, rel_tol=RELATIVE_TOLERANCE) else None
