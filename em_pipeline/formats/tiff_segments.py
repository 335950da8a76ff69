"""Voxels of TIFF planes that are cut into strips or tiles, each encoded by itself.

Stored segments that follow each other in the file are read in one go. Strips are decoded straight into the
array that is asked for where they lie in it whole; others, and tiles, into memory that is used again.
Encodings and the horizontal predictor: TIFF 6.0 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf),
sections 13 and 14; deflate: Adobe's TIFF Technical Note "TIFF trilogy", zlib streams.
"""

import math
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.base import opened, read_exactly
from em_pipeline.formats.scratch import BAND_BYTES, scratch, scratch_array
from em_pipeline.formats.tiff_jpeg import decode_segment

BROKEN = (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError, RuntimeError, AttributeError,
          ZeroDivisionError, AssertionError, struct.error, zlib.error, OverflowError)  # fmt: skip
# Stored bytes that are read at once, so that they are still in a core's cache when they are decoded; and the
# most between two segments that is read along with them.
READ_AT_ONCE = 256 << 10
GAP = 4096
# Number in the file → decoder of a whole segment into `out`.
DECODERS: Mapping[int, Callable[..., Any]] = {
    5: imagecodecs.lzw_decode,
    8: imagecodecs.deflate_decode,
    32773: imagecodecs.packbits_decode,
    32946: imagecodecs.deflate_decode,
    50000: imagecodecs.zstd_decode,
}
PLAIN, NO_PREDICTOR, HORIZONTAL = 1, 1, 2


Decode = Callable[[memoryview, int, NDArray[np.uint8]], int]
"""Writes the segment of that index in its plane, stored as those bytes, into an array; gives how many bytes.

Raises one of `BROKEN` where it is damaged.
"""


class SegmentDecoder(Protocol):
    """Decodes strips or tiles into rows of `stored` voxels. Safe in several threads, and may be pickled."""

    @property
    def stored(self) -> np.dtype[Any]: ...

    def decode(self) -> Decode: ...

    def finish(self, rows: NDArray[Any], native: NDArray[Any]) -> None:
        """Make of decoded rows the voxels, in native byte order; the two may be one array."""
        ...


@dataclass(frozen=True)
class CodedSegments:
    """Segments of whole bytes per voxel, decoded by one call each."""

    compression: int
    predictor: int
    stored: np.dtype[Any]

    @classmethod
    def of(cls, page: tifffile.TiffPage, stored: np.dtype[Any]) -> "CodedSegments | None":
        """None for a page that is encoded in another way."""
        compression, predictor = int(page.compression), int(page.predictor)
        encoded = compression in (PLAIN, *DECODERS) and page.fillorder == 1
        predicted = predictor == NO_PREDICTOR or (predictor == HORIZONTAL and stored.kind in "iu")
        whole = page.bitspersample == 8 * stored.itemsize
        return cls(compression, predictor, stored) if encoded and predicted and whole else None

    def decode(self) -> Decode:
        if self.compression == PLAIN:
            return _copied
        decoder = DECODERS[self.compression]
        return lambda data, _index, out: len(decoder(data, out=out))

    def finish(self, rows: NDArray[Any], native: NDArray[Any]) -> None:
        if native is not rows:
            np.copyto(native, rows)
        if self.predictor == HORIZONTAL:
            imagecodecs.delta_decode(native, axis=-1, out=native)


def _copied(data: memoryview, _index: int, out: NDArray[np.uint8]) -> int:
    # Segments may be stored with more bytes than they need.
    found = np.frombuffer(data, np.uint8)[: len(out)]
    out[: len(found)] = found
    return len(found)


class ByTifffile:
    """Segments that only tifffile decodes: bits, JPEG, predictors of floats and rare encodings.

    `reopened` gives the page's decoder, and its JPEG tables, from the file's headers, when first needed: they
    cannot be pickled. `segment_shape` is rows and columns, `shape` the image's, `stored` the type of the
    voxels read, `jpeg_bits` those of a sample where the segments are JPEG streams.
    """

    def __init__(
        self,
        reopened: Callable[[], tuple[Callable[..., Any], bytes | None]],
        segment_shape: tuple[int, int],
        shape: Shape,
        stored: np.dtype[Any],
        jpeg_bits: int | None,
    ) -> None:
        self.stored = stored
        self._arguments = (reopened, segment_shape, shape, stored, jpeg_bits)
        self._reopened = reopened
        self._segment_shape = segment_shape
        self._shape = shape
        self._jpeg_bits = jpeg_bits
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ByTifffile, self._arguments

    @cached_property
    def _opened(self) -> tuple[Callable[..., Any], bytes | None]:
        return self._reopened()

    def decode(self) -> Decode:
        with self._lock:
            page_decode, tables = self._opened

        def decode(data: memoryview, index: int, out: NDArray[np.uint8]) -> int:
            plane = self._plane(page_decode, tables, bytes(data), index)
            rows = out.view(self.stored).reshape(-1, self._segment_shape[1])
            # At the image's edge a tile may be stored without what lies beyond it.
            rows[: plane.shape[0], : plane.shape[1]] = plane[: rows.shape[0]]
            return len(out)

        return decode

    def _plane(
        self, page_decode: Callable[..., Any], tables: bytes | None, data: bytes, index: int
    ) -> NDArray[Any]:
        """Rows and columns of a segment. Raises `ValueError` where the image has more where it lies."""

        def read_on() -> NDArray[Any]:
            decoded, _position, _shape = page_decode(
                data, index, **({"jpegtables": tables} if tables else {})
            )
            found: NDArray[Any] = decoded.reshape(decoded.shape[1:3])
            return found

        bits = self._jpeg_bits
        most = math.prod(self._segment_shape)
        plane = read_on() if bits is None else decode_segment(data, tables, bits, most, read_on)
        places = divmod(index, -(-self._shape.x // self._segment_shape[1]))
        extents = zip(places, self._segment_shape, self._shape[1:], strict=True)
        needed = [min(size, extent - place * size) for place, size, extent in extents]
        if any(has < least for has, least in zip(plane.shape, needed, strict=True)):
            raise ValueError(f"it has {plane.shape[0]} rows and {plane.shape[1]} columns, not {needed}")
        return plane

    def finish(self, rows: NDArray[Any], native: NDArray[Any]) -> None:
        if native is not rows:
            np.copyto(native, rows)


@dataclass(frozen=True)
class _Band:
    """Segments that are decoded and finished together: some strips below each other, or one tile.

    `shape` are its rows and columns; at the plane's edge a tile reaches beyond it. `taken` is the part of it
    that is in the box, `into` where in the box's part of the plane that lies; `whole` says that it is all.
    """

    indexes: range
    shape: tuple[int, int]
    taken: tuple[slice, slice]
    into: tuple[slice, slice]
    whole: bool

    @classmethod
    def at(cls, indexes: range, corner: tuple[int, int], shape: tuple[int, int], box: BoundingBox) -> "_Band":
        """The band of `shape` whose first voxel is at `corner` (row, column) of the plane."""
        taken, into = [], []
        for first, n, span in zip(corner, shape, box.slices[1:], strict=True):
            low, high = max(first, span.start), min(first + n, span.stop)
            taken.append(slice(low - first, high - first))
            into.append(slice(low - span.start, high - span.start))
        whole = [(part.start, part.stop) for part in taken] == [(0, n) for n in shape]
        return cls(indexes, shape, (taken[0], taken[1]), (into[0], into[1]), whole)


@dataclass(frozen=True)
class SegmentVoxels:
    """Planes cut into strips or tiles of `segment_shape` rows and columns.

    `segments` is (planes, segments, 2): offset and length of each. A read decodes every segment that the box
    meets once, whole, and reads no other.
    """

    path: Path
    segments: NDArray[np.int64]
    segment_shape: tuple[int, int]
    tiled: bool
    shape: Shape
    decoder: SegmentDecoder

    @property
    def scratch_bytes(self) -> int:
        """A run of stored segments, and a band of rows twice: as decoded, and in native byte order."""
        height, width = self.segment_shape
        band = max(BAND_BYTES, height * width * self.decoder.stored.itemsize)
        return max(READ_AT_ONCE, int(self.segments[..., 1].max())) + 2 * band

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        bands = list(self._tiles(box) if self.tiled else self._strips(box))
        order = [index for band in bands for index in band.indexes]
        places = self.segments[box.start.z : box.stop.z][:, order].reshape(-1, 2)
        decode = self.decoder.decode()
        with opened(self.path) as descriptor:
            stored = _Runs(descriptor, self.path, places)
            for z, target in zip(range(box.start.z, box.stop.z), out, strict=True):
                for band in bands:
                    self._fill_band(stored, decode, z, band, target)

    def _fill_band(self, stored: "_Runs", decode: Decode, z: int, band: _Band, target: NDArray[Any]) -> None:
        """Decode into the place in `target` where the band lies in it as stored, else copy what is wanted."""
        dtype = self.decoder.stored
        native = target[band.into]
        fits = band.whole and native.dtype == dtype.newbyteorder("=") and native.flags.c_contiguous
        if not fits:
            native = scratch_array("native", band.shape, dtype.newbyteorder("="))
        rows = native if native.dtype == dtype else scratch_array("decoded", band.shape, dtype)
        self._decode(stored, decode, z, band, rows.reshape(-1).view(np.uint8))
        try:
            self.decoder.finish(rows, native)
        except BROKEN as error:
            raise self._damaged(z, band.indexes[0], error) from error
        if not fits:
            target[band.into] = native[band.taken]

    def _decode(self, stored: "_Runs", decode: Decode, z: int, band: _Band, flat: NDArray[np.uint8]) -> None:
        height, width = self.segment_shape
        size = height * width * self.decoder.stored.itemsize
        for number, index in enumerate(band.indexes):
            out = flat[number * size : (number + 1) * size]
            try:
                found = decode(stored.next(), index, out)
                if found != len(out):
                    raise ValueError(f"it holds {found:,} bytes, not {len(out):,}")
            except BROKEN as error:
                raise self._damaged(z, index, error) from error

    def _damaged(self, z: int, index: int, error: Exception) -> UnsupportedFormat:
        return UnsupportedFormat(
            f"Decode strip or tile {index} of plane {z} of {self.path.name}",
            f"{type(error).__name__}: {error}",
            "The file is damaged, or its compression is not supported: re-save it uncompressed",
        )

    def _tiles(self, box: BoundingBox) -> Iterator[_Band]:
        height, width = self.segment_shape
        columns = -(-self.shape.x // width)
        for row in range(box.start.y // height, -(-box.stop.y // height)):
            for column in range(box.start.x // width, -(-box.stop.x // width)):
                index = row * columns + column
                corner = (row * height, column * width)
                yield _Band.at(range(index, index + 1), corner, self.segment_shape, box)

    def _strips(self, box: BoundingBox) -> Iterator[_Band]:
        """Runs of strips of about `BAND_BYTES`; strips that the box cuts are bands of their own."""
        height, width = self.segment_shape
        together = max(1, BAND_BYTES // (height * width * self.decoder.stored.itemsize))
        first, last = box.start.y // height, -(-box.stop.y // height)
        whole = -(-box.start.y // height), last if box.stop.y == self.shape.y else box.stop.y // height
        cuts = {first, last, *range(*whole, together), *whole}
        for a, b in pairwise(sorted(cut for cut in cuts if first <= cut <= last)):
            rows = min(b * height, self.shape.y) - a * height
            yield _Band.at(range(a, b), (a * height, 0), (rows, width), box)


class _Runs:
    """Stored segments one after another, at `places` (offset, length), read in runs of neighbours."""

    def __init__(self, descriptor: int, path: Path, places: NDArray[np.int64]) -> None:
        self._descriptor = descriptor
        self._path = path
        self._places = places.tolist()
        self._turn = 0
        self._start = self._stop = 0
        self._held = memoryview(b"")

    def next(self) -> memoryview:
        """The next segment, valid until the one after is asked for. Raises where the file ends first."""
        offset, length = self._places[self._turn]
        if offset < self._start or offset + length > self._stop:
            self._read_run()
        self._turn += 1
        return self._held[offset - self._start : offset - self._start + length]

    def _read_run(self) -> None:
        start, length = self._places[self._turn]
        stop = start + length
        for turn in range(self._turn + 1, len(self._places)):
            offset, length = self._places[turn]
            if not 0 <= offset - stop <= GAP or offset + length - start > READ_AT_ONCE:
                break
            stop = offset + length
        self._held = scratch("stored", stop - start).data
        self._start, self._stop = start, stop
        read_exactly(self._descriptor, self._path, start, self._held)
