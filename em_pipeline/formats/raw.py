"""Voxels without a header (.raw, .dat, .bin, also gzipped), lying as a person says and the size confirms."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.raw_layout import RawLayout
from em_pipeline.formats.base import ClaimSheet, FileVolume, RawVoxels, Voxels, head_of

EXTRACTOR = "formats.raw"
GZIP = b"\x1f\x8b"
# gzip has no index: such a file is unpacked whole when it is opened, so it must be small.
LARGEST_UNPACKED = 1 << 30


def open_raw(path: Path, layout: RawLayout | None) -> FileVolume:
    """The voxels of a file without a header, as `layout` says they lie; gzipped files are unpacked in memory.

    The shape and type claimed are evidenced by the file's size, which must be theirs exactly.
    Raises `InputRefused` where no layout is given or the size differs, showing the sum; `NotFound`;
    `UnsupportedFormat` for gzipped files that are damaged, or above 1 GiB unpacked.
    """
    if not path.is_file():
        raise NotFound(f"Open {path.name}", "there is no such file", f"Looked for {path}")
    if layout is None:
        raise InputRefused(
            f"Read {path.name}",
            "it has no header, so nothing says how its voxels lie",
            "Say so with --raw-shape Z,Y,X and --raw-dtype, for example uint8",
        )
    stored = np.dtype(layout.dtype if layout.dtype[0] in "<>" else f"<{np.dtype(layout.dtype).str[1:]}")
    zipped = head_of(path, 2) == GZIP
    voxels: Voxels
    if zipped:
        voxels = _unpacked(path, layout, stored)
        plane = layout.shape
    else:
        _check_size(path, layout, stored, path.stat().st_size)
        voxels = _plain(path, layout, stored)
        plane = Shape(1, layout.shape.y, layout.shape.x) if layout.order == "C" else layout.shape
    dtype = stored.newbyteorder("=")
    sheet = ClaimSheet(path, EXTRACTOR)
    sheet.layout(layout.shape, dtype, plane, "raw", "gzip" if zipped else "none", "file size")
    sheet.axes("zyx" if layout.order == "C" else "xyz", "raw layout", layout.order)
    metadata: dict[str, Any] = {"raw_layout": layout.document(), "notes": []}
    claims: tuple[Claim, ...] = tuple(sheet.claims)
    return FileVolume(layout.shape, dtype, plane, voxels, claims, metadata)


@dataclass(frozen=True)
class Reversed:
    """Voxels whose z runs fastest in the file; `stored` has the shape x-y-z."""

    stored: Voxels

    @property
    def scratch_bytes(self) -> int:
        return self.stored.scratch_bytes

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        start, stop = Shape(*box.start[::-1]), Shape(*box.stop[::-1])
        self.stored.fill(BoundingBox(start=start, stop=stop), out.transpose(2, 1, 0))


@dataclass(frozen=True)
class InMemory:
    """Voxels that had to be unpacked."""

    voxels: NDArray[Any]

    @property
    def scratch_bytes(self) -> int:
        return 0

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        out[...] = self.voxels[box.slices]


def _unpacked(path: Path, layout: RawLayout, stored: np.dtype[Any]) -> Voxels:
    tried = f"Unpack {path.name}"
    try:
        with gzip.open(path) as file:
            data = file.read(LARGEST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UnsupportedFormat(tried, str(error), "It is damaged: download or copy it again") from error
    if len(data) > LARGEST_UNPACKED:
        raise UnsupportedFormat(tried, "it is above 1 GiB unpacked", "Unpack it first")
    _check_size(path, layout, stored, len(data))
    voxels = np.frombuffer(data, stored, offset=layout.offset)
    return InMemory(voxels.reshape(layout.shape, order=layout.order))


def _plain(path: Path, layout: RawLayout, stored: np.dtype[Any]) -> Voxels:
    if layout.order == "C":
        return RawVoxels.contiguous(path, layout.offset, layout.shape, stored)
    return Reversed(RawVoxels.contiguous(path, layout.offset, Shape(*layout.shape[::-1]), stored))


def _check_size(path: Path, layout: RawLayout, stored: np.dtype[Any], size: int) -> None:
    needed = layout.offset + layout.shape.voxels * stored.itemsize
    if size == needed:
        return
    z, y, x = layout.shape
    raise InputRefused(
        f"Read {path.name} as {z}×{y}×{x} voxels (z, y, x) of {layout.dtype}",
        f"{layout.offset:,} + {z} × {y} × {x} × {stored.itemsize} = {needed:,} bytes, and it has {size:,}",
        "Correct the shape, the type or the bytes before the first voxel",
    )
