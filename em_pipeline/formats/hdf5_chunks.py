"""Voxels of an HDF5 dataset. h5py serves one thread at a time: plain and gzip chunks are decoded outside it.

Every chunk that a box meets is decoded once and copied from there into its place, so that a read needs memory
for one chunk, whatever the box.

Filter numbers and the shuffle filter: https://docs.hdfgroup.org/hdf5/v1_14/group___h5_z.html.
"""

import math
from array import array as packed
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.arrays import SPATIAL, as_stored, stored_index
from em_pipeline.formats.gaps import gaps, in_voxels
from em_pipeline.formats.scratch import scratch

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
    piece_bytes: int

    @property
    def scratch_bytes(self) -> int:
        """A chunk as stored, unshuffled and decoded; or the part of a plane that is in the box."""
        return 3 * self.piece_bytes

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        index = stored_index(box, self.axes)
        target = as_stored(out, self.axes)
        with opened_hdf5(self.path) as file:
            stored = file[self.name]
            filters = _filters(stored)
            try:
                for piece, whole in _pieces(stored, index):
                    into = zip(piece, index, strict=True)
                    target[tuple(slice(p.start - i.start, p.stop - i.start) for p, i in into)] = (
                        _by_chunk(stored, filters, piece, whole)
                        if filters is not None and filters in DECODED_HERE
                        else stored[piece]
                    )
            except (OSError, RuntimeError, ValueError) as error:
                where = f"the voxels {tuple(box.start)}..{tuple(box.stop)} of {self.name!r}"
                raise _damaged(self.path, f"{where} cannot be decoded: {error}") from error


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


def _pieces(stored: Any, index: tuple[slice, ...]) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """What of each chunk is at `index`, and the whole chunk; of datasets without chunks, planes."""
    sizes = stored.chunks or (*(1,) * (len(index) - 2), *stored.shape[-2:])
    ranges = (range(s.start - s.start % n, s.stop, n) for s, n in zip(index, sizes, strict=True))
    for corner in product(*ranges):
        whole = tuple(slice(first, first + n) for first, n in zip(corner, sizes, strict=True))
        spans = zip(index, whole, strict=True)
        yield tuple(slice(max(s.start, w.start), min(s.stop, w.stop)) for s, w in spans), whole


def _by_chunk(
    stored: Any, filters: list[int], piece: tuple[slice, ...], whole: tuple[slice, ...]
) -> NDArray[Any]:
    voxels = _chunk(stored, filters, tuple(span.start for span in whole))
    inside = zip(piece, whole, strict=True)
    return voxels[tuple(slice(p.start - w.start, p.stop - w.start) for p, w in inside)]


def _chunk(stored: Any, filters: list[int], corner: tuple[int, ...]) -> NDArray[Any]:
    """The decoded chunk that begins at `corner`; valid until this thread asks for another."""
    if stored.id.get_chunk_info_by_coord(corner).byte_offset is None:
        return np.broadcast_to(np.asarray(stored.fillvalue, stored.dtype), stored.chunks)
    left_out, data = stored.id.read_direct_chunk(corner)
    decoded = np.frombuffer(data, np.uint8)
    size = math.prod(stored.chunks) * stored.dtype.itemsize
    for number, name in reversed(list(enumerate(filters))):
        if left_out >> number & 1:  # writers leave a filter out of a chunk where it failed
            continue
        decoded = _inflated(decoded, size) if name == DEFLATE else _unshuffled(decoded, stored.dtype.itemsize)
    voxels: NDArray[Any] = decoded.view(stored.dtype).reshape(stored.chunks)
    return voxels


def _inflated(data: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    decode: Any = imagecodecs.deflate_decode
    found: NDArray[np.uint8] = decode(data, out=scratch("inflated", size))
    return found


def _unshuffled(data: NDArray[np.uint8], itemsize: int) -> NDArray[np.uint8]:
    """The filter stores all first bytes, then all second bytes, and so on."""
    plain = scratch("unshuffled", len(data))
    plain.reshape(-1, itemsize)[...] = data.reshape(itemsize, -1).T
    return plain


def _damaged(path: Path, found: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"Read {path.name}", found, "The file is truncated or damaged: download or copy it again"
    )
