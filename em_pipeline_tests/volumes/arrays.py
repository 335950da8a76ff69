"""A `LazyVolume` over an array in memory, for tests of whatever reads volumes."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape


class ArrayVolume:
    """`array` (z, y, x) as a source. `voxel_size` is nanometres, z-y-x; `reads` lists every box asked for."""

    def __init__(
        self,
        array: NDArray[Any],
        *,
        voxel_size: tuple[float, float, float] | None = (8.0, 8.0, 8.0),
        translation_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
        chunk_shape: Shape | None = None,
        claims: Sequence[Claim] = (),
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.array = np.ascontiguousarray(array)
        self._voxel_size = voxel_size
        self.translation_nm = translation_nm
        self.missing: tuple[BoundingBox, ...] = ()
        self.chunk_shape = chunk_shape or Shape(1, 1, array.shape[2])
        self.scratch_bytes = 0
        self.claims = tuple(claims)
        self.metadata = metadata or {}
        self.reads: list[BoundingBox] = []

    @property
    def shape(self) -> Shape:
        return Shape(*self.array.shape)

    @property
    def decode_shape(self) -> Shape:
        return self.chunk_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def voxel_size_nm(self) -> PartialVoxelSize:
        z, y, x = self._voxel_size or (None, None, None)
        return PartialVoxelSize(z=z, y=y, x=x)

    def read(self, box: BoundingBox, out: NDArray[Any] | None = None) -> NDArray[Any]:
        if not box.within(self.shape):
            raise InputRefused(f"Read {box}", f"the volume's shape is {tuple(self.shape)}")
        self.reads.append(box)
        part = self.array[box.slices]
        if out is None:
            return part.copy()
        out[...] = part
        return out

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FailingVolume(ArrayVolume):
    """Raises `error` on the read after `reads_allowed` good ones."""

    def __init__(self, array: NDArray[Any], error: Exception, reads_allowed: int, **options: Any) -> None:
        super().__init__(array, **options)
        self.error = error
        self.reads_allowed = reads_allowed

    def read(self, box: BoundingBox, out: NDArray[Any] | None = None) -> NDArray[Any]:
        if len(self.reads) >= self.reads_allowed:
            raise self.error
        return super().read(box, out)
