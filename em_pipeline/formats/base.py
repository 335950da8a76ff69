"""What every reader shares: the volume over files, exact reads of bytes, claims with evidence."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused, NotFound, StorageFailed, UnsupportedFormat
from em_pipeline.domain.evidence import Claim, Evidence, Origin
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape
from em_pipeline.domain.lazy_volume import LazyVolume, PlainRows
from em_pipeline.formats.scratch import scratch_array

# Text of a header longer than this is cut in `metadata`; the file itself stays the full record.
LONGEST_TEXT = 20_000
# Arrays of a header longer than this (colour tables, strip offsets) are named, not copied.
LONGEST_LIST = 256
# Plain rows that are read at once on their way into an array: few calls, and still in a core's cache.
ROWS_BYTES = 1 << 20
# What zarr's commonest compressor can hold (BLOSC_MAX_BUFFERSIZE, https://github.com/Blosc/c-blosc).
# Decoders take memory for a whole chunk before they read it, and a process that gets none is aborted.
MOST_CHUNK_BYTES = 2**31 - 1


def check_chunk(tried: str, chunk: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Raise `UnsupportedFormat` where one chunk would decode to more than `MOST_CHUNK_BYTES`."""
    size = math.prod(chunk) * dtype.itemsize
    if size > MOST_CHUNK_BYTES:
        raise UnsupportedFormat(
            tried,
            f"its chunks of {'×'.join(map(str, chunk))} {dtype} take {size:,} bytes each once decoded",
            f"At most {MOST_CHUNK_BYTES:,} bytes are read: store it in smaller chunks",
        )


class Voxels(Protocol):
    """Where the voxels of a volume lie. `fill` is called with a box that is inside the volume.

    May be pickled: what is open in one process is opened again in another.
    """

    @property
    def scratch_bytes(self) -> int:
        """Bytes that one `fill` takes at most, besides `out`."""
        ...

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        """Write the voxels of `box` (z-y-x) into `out`, of the box's shape. Safe in several threads."""
        ...


def is_plain(voxels: Voxels) -> bool:
    """Whether rows are read by themselves, without decoding what is stored around them."""
    return bool(getattr(voxels, "plain", False))


def used_of(volume: LazyVolume, box: BoundingBox) -> object:
    """Something that holds the paths of all files that reading `box` (z-y-x) opens, and of few others.

    That is all of the volume, unless its voxels lie in many files and have a method `used` that tells which.
    """
    used: Callable[[BoundingBox], object] | None = getattr(getattr(volume, "voxels", None), "used", None)
    return volume if used is None else used(box)


@dataclass(frozen=True)
class FileVolume:
    """A `LazyVolume` over files: what the headers say, and `voxels` to read the rest.

    No file is held open between reads, so a stack of any number of files needs no more handles than
    there are threads reading it, and `close` has nothing to do. A volume may be pickled and read in another
    process that sees the same files.
    """

    shape: Shape
    dtype: np.dtype[Any]
    chunk_shape: Shape
    voxels: Voxels
    claims: tuple[Claim, ...]
    metadata: dict[str, Any]
    translation_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    missing: Sequence[BoundingBox] = ()

    @property
    def voxel_size_nm(self) -> PartialVoxelSize:
        """The first claim per axis, None where the files say nothing."""
        return PartialVoxelSize(**{axis: self._claimed(f"core.voxel_size_nm.{axis}") for axis in "zyx"})

    @property
    def scratch_bytes(self) -> int:
        """See `LazyVolume`."""
        return self.voxels.scratch_bytes

    @property
    def decode_shape(self) -> Shape:
        """See `LazyVolume`."""
        return Shape(1, 1, self.shape.x) if is_plain(self.voxels) else self.chunk_shape

    @property
    def format(self) -> str:
        return str(self._claimed("technical.file_format"))

    def _claimed(self, field: str) -> Any:
        return next((claim.value for claim in self.claims if claim.field == field), None)

    def read(self, box: BoundingBox, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `LazyVolume.read`."""
        if not box.within(self.shape):
            raise InputRefused(
                f"Read the box {tuple(box.start)}..{tuple(box.stop)} (z-y-x)",
                f"the volume has only {tuple(self.shape)} voxels",
                "Clip the box to the volume",
            )
        if out is None:
            out = np.empty(box.shape, self.dtype)
        elif out.shape != box.shape or out.dtype != self.dtype:
            raise InputRefused(
                f"Read a box of {tuple(box.shape)} voxels of {self.dtype}",
                f"`out` is an array of {out.shape} {out.dtype}",
                "Pass an array of the box's shape and the volume's dtype",
            )
        self.voxels.fill(box, out)
        return out

    def plain_rows(self, box: BoundingBox) -> PlainRows | None:
        """See `Plain`."""
        if isinstance(self.voxels, RawVoxels) and self.voxels.dtype == self.dtype:
            return self.voxels.rows(box)
        return None

    def close(self) -> None:
        """Nothing to do: files are open only while they are read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ClaimSheet:
    """Collects claims on one file: `where` is the file's name, `extractor` the reader's."""

    def __init__(self, path: Path, extractor: str) -> None:
        self.where = path.name
        self.extractor = extractor
        self.claims: list[Claim] = []

    def add(self, field: str, value: Any, tag: str, raw: Any = None) -> None:
        """Claim `value` for `field`, read at `tag`; a value of None claims nothing."""
        if value is None:
            return
        evidence = Evidence(
            origin=Origin.FILE, where=self.where, field=tag, extractor=self.extractor, raw=jsonable(raw)
        )
        self.claims.append(Claim(field=field, value=value, evidence=evidence))

    def voxel_size(
        self, axis: str, nanometres: float | None, tag: str, raw: Any, unit: object = None
    ) -> None:
        """Claim a voxel size along `axis`; zero, negative and non-finite lengths claim nothing.

        `unit` is the one that the file gives it in, as written there.
        """
        self.add(f"core.voxel_size_nm.{axis}", positive(nanometres), tag, raw)
        if positive(nanometres) and isinstance(unit, str) and not self.has("core.unit"):
            self.add("core.unit", unit.strip("\0 \t\r\n") or None, tag, unit)

    def axes(self, stored: Sequence[str], tag: str, raw: Any, channels: int = 1) -> None:
        """Claim the axes of the voxels as stored, slowest first, and the number of channels."""
        separator = "" if all(len(axis) == 1 for axis in stored) else ","
        self.add("core.axes", separator.join(stored), tag, raw)
        self.add("core.channels", channels, tag, raw)

    def file_format(self, name: str, tag: str) -> None:
        """Claim the format of the file; `tag` names the header it was read from."""
        self.add("technical.file_format", name, tag, name)

    def has(self, field: str) -> bool:
        return any(claim.field == field for claim in self.claims)

    def layout(
        self, shape: Shape, dtype: np.dtype[Any], chunk: Shape, file_format: str, compression: str, tag: str
    ) -> None:
        """Claim how the voxels are stored; `tag` names the header they were read from."""
        for axis in "zyx":
            self.add(f"core.volume_shape.{axis}", getattr(shape, axis), tag, list(shape))
            self.add(f"technical.chunk_size.{axis}", getattr(chunk, axis), tag, list(chunk))
        self.add("core.data_type", dtype.name, tag, dtype.name)
        self.file_format(file_format, tag)
        self.add("technical.compression", compression, tag, compression)


def positive(value: Any) -> float | None:
    """`value` as a float, or None where it is not a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond any float
        return None
    return number if math.isfinite(number) and number > 0 else None


def jsonable(value: Any) -> Any:
    """`value` as JSON types: arrays as lists, bytes as text, what is very long cut or named by its size."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value] if len(value) <= LONGEST_LIST else f"<{len(value)} values>"
    if isinstance(value, bytes):
        value = value.decode("latin-1").rstrip("\0")
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}… <{len(value)} characters>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the system's refusal to give bytes of the file, which is open, into `StorageFailed`."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"Read {path.name}",
            error.strerror or str(error),
            f"Check the disk that holds {path}, and run the same again",
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor for reading. Raises `NotFound` or `InputRefused` where the system refuses.

    Raises `StorageFailed` for what the system refuses in the block: it is there that the file is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"Open {path.name}", "there is no such file", f"Looked for {path}") from error
    except OSError as error:
        raise InputRefused(f"Open {path.name}", str(error), "Make the file readable") from error
    try:
        with reading(path):
            yield descriptor
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, path: Path, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` (bytes) from `offset`. Raises `UnsupportedFormat` where the file ends first.

    The descriptor is of `opened`, which tells of a disk that cannot give them.
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise truncated(path, offset + len(buffer), os.fstat(descriptor).st_size)
        done += count


def head_of(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, fewer where it is shorter. Raises like `opened`."""
    with opened(path) as descriptor:
        return os.pread(descriptor, count, 0)


def truncated(path: Path, needed: int, size: int) -> UnsupportedFormat:
    """The error for a file that ends before its voxels do."""
    return UnsupportedFormat(
        f"Read {path.name}",
        f"its header promises voxels up to byte {needed:,}, the file has {size:,} bytes",
        "The file is truncated: download or copy it again",
    )


@dataclass(frozen=True)
class RawVoxels:
    """Planes stored plainly: row after row, not compressed.

    `plane_offsets` is the byte where each plane begins; `shape` is z-y-x; `dtype` has the file's byte
    order and is converted to that of the array read into.
    """

    plain: ClassVar[bool] = True

    path: Path
    plane_offsets: NDArray[np.int64]
    shape: Shape
    dtype: np.dtype[Any]

    @classmethod
    def contiguous(cls, path: Path, offset: int, shape: Shape, dtype: np.dtype[Any]) -> Self:
        """Planes that follow each other from `offset`."""
        plane = shape.y * shape.x * dtype.itemsize
        return cls(path, offset + plane * np.arange(shape.z, dtype=np.int64), shape, dtype)

    def check_size(self, size: int) -> None:
        """Raise `UnsupportedFormat` where a file of `size` bytes is shorter than its planes."""
        needed = int(self.plane_offsets.max()) + self.shape.y * self.shape.x * self.dtype.itemsize
        if size < needed:
            raise truncated(self.path, needed, size)

    @property
    def scratch_bytes(self) -> int:
        """Some rows, where they are not read straight into the array asked for."""
        return max(ROWS_BYTES, self.shape.x * self.dtype.itemsize)

    def rows(self, box: BoundingBox) -> PlainRows:
        """Where the rows of `box` (z-y-x) begin."""
        within = (box.start.y * self.shape.x + box.start.x) * self.dtype.itemsize
        return PlainRows(self.path, self.plane_offsets[box.start.z : box.stop.z] + within, self.shape.x)

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        with opened(self.path) as descriptor:
            for first, last in self._runs(box, out):
                offset = int(self.plane_offsets[box.start.z + first])
                if last - first > 1:
                    read_exactly(descriptor, self.path, offset, _bytes_of(out[first:last]))
                else:
                    self._fill_plane(descriptor, offset, box, out[first])

    def _runs(self, box: BoundingBox, out: NDArray[Any]) -> Iterator[tuple[int, int]]:
        """Planes of the box, by their number in it, that one read fills: whole ones behind each other."""
        count = box.shape.z
        whole = box.shape[1:] == self.shape[1:] and out.dtype == self.dtype and out.flags.c_contiguous
        steps = np.diff(self.plane_offsets[box.start.z : box.stop.z])
        plane = self.shape.y * self.shape.x * self.dtype.itemsize
        breaks = np.flatnonzero(steps != plane) + 1 if whole else np.arange(1, count)
        edges = [0, *breaks.tolist(), count]
        return pairwise(edges)

    def _fill_plane(self, descriptor: int, offset: int, box: BoundingBox, target: NDArray[Any]) -> None:
        width = self.shape.x * self.dtype.itemsize
        start = offset + box.start.y * width
        if box.shape.x == self.shape.x and target.dtype == self.dtype and target.flags.c_contiguous:
            read_exactly(descriptor, self.path, start, _bytes_of(target))
            return
        # Rows read whole cost at most twice the bytes wanted, and one system call instead of one per row.
        read = self._read_parts if 2 * box.shape.x < self.shape.x else self._read_rows
        height = max(1, ROWS_BYTES // width)
        for row in range(0, box.shape.y, height):
            band = target[row : row + height]
            band[...] = read(descriptor, start + row * width, len(band), box)

    def _read_rows(self, descriptor: int, start: int, count: int, box: BoundingBox) -> NDArray[Any]:
        rows = scratch_array("rows", (count, self.shape.x), self.dtype)
        read_exactly(descriptor, self.path, start, _bytes_of(rows))
        return rows[:, box.start.x : box.stop.x]

    def _read_parts(self, descriptor: int, start: int, count: int, box: BoundingBox) -> NDArray[Any]:
        itemsize = self.dtype.itemsize
        parts = scratch_array("rows", (count, box.shape.x), self.dtype)
        buffer, width = _bytes_of(parts), box.shape.x * itemsize
        for row in range(count):
            at = start + (row * self.shape.x + box.start.x) * itemsize
            read_exactly(descriptor, self.path, at, buffer[row * width : (row + 1) * width])
        return parts


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
