"""The downsampled voxels of a level, kept raw until the next level is made from them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import ChunkCorrupt
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.volumes.durable import storage_errors, write_fully


class Scratch:
    """A raw, sparse file of voxels in C order (z, y, x), read and written box by box.

    Plain pread and pwrite, not a memory map: a full disk then is an error and not a killed process.
    Several threads may read and write boxes that do not overlap.
    """

    def __init__(self, path: Path, shape: Shape, dtype: np.dtype[Any], descriptor: int) -> None:
        self.path = path
        self._shape = shape
        self._dtype = dtype
        self._descriptor = descriptor

    @classmethod
    def prepare(cls, path: Path, shape: Shape, dtype: np.dtype[Any]) -> Self:
        """One to write to: what an older one of the name holds stays. Raises `StorageFailed`."""
        with storage_errors(f"Create {path}"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(descriptor, shape.voxels * dtype.itemsize)
        return cls(path, shape, dtype, descriptor)

    @classmethod
    def reopen(cls, path: Path, shape: Shape, dtype: np.dtype[Any]) -> Self:
        """The one that finished units wrote to. Raises `ChunkCorrupt` where it is missing or truncated."""
        expected = shape.voxels * dtype.itemsize
        if not path.exists() or path.stat().st_size != expected:
            raise ChunkCorrupt(
                f"Resume from {path}",
                f"it is missing or does not have {expected} bytes, though finished units wrote to it",
                "Run the same again: the units that wrote to it are repeated",
            )
        with storage_errors(f"Open {path}"):
            return cls(path, shape, dtype, os.open(path, os.O_RDWR))

    def read(self, box: BoundingBox, out: NDArray[Any]) -> NDArray[Any]:
        """Voxels of `box` into the C-contiguous `out`. Raises `ChunkCorrupt` where the file ends early."""
        with storage_errors(f"Read {self.path}"):
            for offset, run in self._runs(box, out):
                view = run.data.cast("B")
                while view:
                    if not (count := os.preadv(self._descriptor, [view], offset)):
                        raise ChunkCorrupt(f"Read {self.path}", f"it ends at byte {offset}")
                    view, offset = view[count:], offset + count
        return out

    def write(self, box: BoundingBox, values: NDArray[Any]) -> None:
        """Store C-contiguous `values` as the voxels of `box`. Raises `StorageFailed`."""
        with storage_errors(f"Write {self.path}"):
            for offset, run in self._runs(box, values):
                write_fully(self._descriptor, run.data.cast("B"), offset)

    def sync(self) -> None:
        """Everything written so far survives a power cut. Raises `StorageFailed`."""
        with storage_errors(f"Write {self.path}"):
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _runs(self, box: BoundingBox, values: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Offset and voxels of each contiguous run of the box: planes where it spans x, else rows."""
        _, height, width = self._shape
        z0, y0, x0 = box.start
        whole_rows = box.shape.x == width
        for z, plane in enumerate(values, z0):
            parts = [plane] if whole_rows else plane
            for y, run in enumerate(parts, y0):
                yield ((z * height + y) * width + x0) * self._dtype.itemsize, run
