"""Voxels of an HDF5 dataset. h5py serves one thread at a time: plain and gzip chunks are decoded outside it.

Filter numbers and the shuffle filter: https://docs.hdfgroup.org/hdf5/v1_14/group___h5_z.html.
"""

import zlib
from array import array as packed
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.arrays import SPATIAL, stored_index
from em_pipeline.formats.gaps import gaps, in_voxels

DEFLATE, SHUFFLE = 1, 2
DECODED_HERE: tuple[list[int], ...] = ([], [DEFLATE], [SHUFFLE, DEFLATE])


@contextmanager
def opened_hdf5(path: Path) -> Iterator[Any]:
    """The file, open for reading. Raises `NotFound`, `InputRefused`, `UnsupportedFormat` where damaged."""
    import h5py

    if not path.exists():
        raise NotFound(f"Open {path.name}", "there is no such file", f"Looked for {path}")
    try:
        file = h5py.File(path, "r", locking=False)
    except PermissionError as error:
        raise InputRefused(f"Open {path.name}", str(error), "Make the file readable") from error
    except OSError as error:
        raise _damaged(path, str(error)) from error
    with file:
        try:
            yield file
        except (RuntimeError, OSError, KeyError) as error:
            # h5py raises these for damaged heaps and trees, which it reads only when they are needed.
            raise _damaged(path, str(error)) from error


@dataclass(frozen=True)
class Hdf5Voxels:
    """The dataset `name`, whose stored axes are called `axes`."""

    path: Path
    name: str
    axes: tuple[str, ...]
    dtype: np.dtype[Any]

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        chosen, order = stored_index(box, self.axes)
        index = tuple(part if isinstance(part, slice) else slice(part, part + 1) for part in chosen)
        with opened_hdf5(self.path) as file:
            stored = file[self.name]
            try:
                voxels = _by_chunk(stored, index) if _filters(stored) in DECODED_HERE else stored[index]
            except (OSError, RuntimeError, ValueError, zlib.error) as error:
                where = f"the voxels {tuple(box.start)}..{tuple(box.stop)} of {self.name!r}"
                raise _damaged(self.path, f"{where} cannot be decoded: {error}") from error
        spatial = tuple(slice(None) if axis in SPATIAL else 0 for axis in self.axes)
        (out if "z" in self.axes else out[0])[...] = voxels[spatial].transpose(order)


def never_written(path: Path, name: str, axes: Sequence[str], shape: Shape) -> tuple[BoundingBox, ...]:
    """Boxes, z-y-x, of the dataset's chunks that the file has no bytes for; they read as its fill value."""
    found = packed("q")
    with opened_hdf5(path) as file:
        stored = file[name]
        if stored.chunks is None:
            written = stored.id.get_storage_size() > 0
            return () if written else (BoundingBox.of_shape(shape),)
        lengths = dict(zip(axes, stored.chunks, strict=True))
        stored.id.chunk_iter(lambda chunk: found.extend(chunk.chunk_offset))
    corners = np.frombuffer(found, np.int64).reshape(-1, len(axes))
    size = Shape(*(lengths.get(axis, 1) for axis in SPATIAL))
    columns = [corners[:, axes.index(axis)] if axis in axes else 0 * corners[:, 0] for axis in SPATIAL]
    present = np.stack(columns, axis=1) // np.array(size)
    grid = Shape(*(-(-n // c) for n, c in zip(shape, size, strict=True)))
    inside = present[(present < np.array(grid)).all(axis=1)]
    return tuple(in_voxels(box, size, shape) for box in gaps(BoundingBox.of_shape(grid), inside))


def _filters(stored: Any) -> list[int] | None:
    """Numbers of the filters of a chunked dataset in order of writing; None for one that is not chunked."""
    if stored.chunks is None:
        return None
    settings = stored.id.get_create_plist()
    return [settings.get_filter(number)[0] for number in range(settings.get_nfilters())]


def _by_chunk(stored: Any, index: tuple[slice, ...]) -> NDArray[Any]:
    """The voxels at `index`, in the order of the stored axes."""
    filters = _filters(stored) or []
    voxels = np.empty([span.stop - span.start for span in index], stored.dtype)
    ranges = (range(s.start - s.start % n, s.stop, n) for s, n in zip(index, stored.chunks, strict=True))
    for corner in product(*ranges):
        chunk = _chunk(stored, filters, corner)
        inner, outer = [], []
        for span, first, length in zip(index, corner, stored.chunks, strict=True):
            start, stop = max(span.start, first), min(span.stop, first + length)
            inner.append(slice(start - first, stop - first))
            outer.append(slice(start - span.start, stop - span.start))
        voxels[tuple(outer)] = chunk[tuple(inner)]
    return voxels


def _chunk(stored: Any, filters: list[int], corner: tuple[int, ...]) -> NDArray[Any]:
    if stored.id.get_chunk_info_by_coord(corner).byte_offset is None:
        return np.full(stored.chunks, stored.fillvalue, stored.dtype)
    left_out, data = stored.id.read_direct_chunk(corner)
    for number, name in reversed(list(enumerate(filters))):
        if left_out >> number & 1:  # writers leave a filter out of a chunk where it failed
            continue
        data = zlib.decompress(data) if name == DEFLATE else _unshuffled(data, stored.dtype.itemsize)
    return np.frombuffer(data, stored.dtype).reshape(stored.chunks)


def _unshuffled(data: bytes, itemsize: int) -> bytes:
    """The filter stores all first bytes, then all second bytes, and so on."""
    return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()


def _damaged(path: Path, found: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"Read {path.name}", found, "The file is truncated or damaged: download or copy it again"
    )
