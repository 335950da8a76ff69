"""Grey PNG and JPEG images, planes of a stack. They carry no voxel size: pHYs and JFIF density are dpi.

PNG: https://www.w3.org/TR/png-3/. JPEG frame headers: ITU-T T.81, B.2.2.
Headers are read here, not with Pillow, because Pillow refuses images above 179 megapixels as attacks.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.base import ClaimSheet, FileVolume, head_of, opened, read_exactly, truncated
from em_pipeline.formats.jpeg import FRAMES, decode_jpeg

EXTRACTOR = "formats.png"
PNG_COLOURS = {2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
PNG_END = b"IEND\xaeB`\x82"
JPEG_END = b"\xff\xd9"
JPEG_HEAD_BYTES = 1 << 20


def open_png(path: Path) -> FileVolume:
    """A grey PNG as a volume of one plane: 8 or 16 bit; 1, 2 and 4 bit are spread over 0–255.

    Raises `UnsupportedFormat` for colour, palettes, alpha and truncated files.
    """
    return png_volume(path, head_of(path, 26))


def png_volume(path: Path, head: bytes) -> FileVolume:
    """The image whose file begins with `head`; its voxels are read from `path`. Raises like `open_png`."""
    if len(head) < 26:
        raise truncated(path, 26, len(head))
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    if colour != 0:
        raise _not_grey(path, PNG_COLOURS.get(colour, f"colour type {colour}"))
    dtype = np.dtype(np.uint16 if depth == 16 else np.uint8)
    return _one_plane(path, Shape(1, height, width), dtype, "PNG", "deflate", f"IHDR, {depth} bit")


def open_jpeg(path: Path) -> FileVolume:
    """A grey JPEG as a volume of one plane of uint8. Raises `UnsupportedFormat` like `open_png`."""
    return jpeg_volume(path, head_of(path, JPEG_HEAD_BYTES))


def jpeg_volume(path: Path, head: bytes) -> FileVolume:
    """The image whose file begins with `head`; its voxels are read from `path`. Raises like `open_jpeg`."""
    height, width, components = _jpeg_frame(path, head)
    if components != 1:
        raise _not_grey(path, f"{components} colour components")
    return _one_plane(path, Shape(1, height, width), np.dtype(np.uint8), "JPEG", "jpeg", "SOF")


@dataclass(frozen=True)
class EncodedPlane:
    """One image, decoded whole for every read."""

    path: Path
    shape: Shape
    dtype: np.dtype[Any]
    end: bytes

    @property
    def scratch_bytes(self) -> int:
        """The file, twice, and the plane."""
        return 2 * self.path.stat().st_size + self.shape.voxels * self.dtype.itemsize

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        data = bytearray(self.path.stat().st_size)
        with opened(self.path) as descriptor:
            read_exactly(descriptor, self.path, 0, memoryview(data))
        # Decoders of PNG accept an image without its end and may invent the missing rows.
        if self.end not in data[-4096:]:
            raise _damaged(self.path, "it does not end as its format demands")
        try:
            if self.end == PNG_END:
                plane = imagecodecs.png_decode(bytes(data))
            else:
                plane = decode_jpeg(bytes(data), self.shape.voxels)
        except (RuntimeError, ValueError) as error:
            raise _damaged(self.path, str(error)) from error
        if plane.shape != self.shape[1:] or plane.dtype != self.dtype:
            raise _damaged(self.path, f"it decodes to {plane.shape} {plane.dtype}")
        out[0] = plane[box.slices[1:]]


def _one_plane(
    path: Path, shape: Shape, dtype: np.dtype[Any], name: str, compression: str, tag: str
) -> FileVolume:
    end = PNG_END if name == "PNG" else JPEG_END
    sheet = ClaimSheet(path, EXTRACTOR)
    sheet.layout(shape, dtype, shape, name, compression, tag)
    sheet.axes("yx", tag, tag)
    metadata: dict[str, Any] = {"header": tag, "notes": []}
    return FileVolume(
        shape, dtype, shape, EncodedPlane(path, shape, dtype, end), tuple(sheet.claims), metadata
    )


def _jpeg_frame(path: Path, head: bytes) -> tuple[int, int, int]:
    """Height, width and number of components."""
    at = 2
    while at + 10 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], struct.unpack(">H", head[at + 2 : at + 4])[0]
        if marker in FRAMES:
            height, width, components = struct.unpack(">HHB", head[at + 5 : at + 10])
            return height, width, components
        at += 2 + length
    raise _damaged(path, "it has no frame header")


def _not_grey(path: Path, found: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"Read {path.name} as a grey image", f"it is {found}", "Convert it to one grey channel"
    )


def _damaged(path: Path, found: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"Decode {path.name}", found, "The file is truncated or damaged: download or copy it again"
    )
