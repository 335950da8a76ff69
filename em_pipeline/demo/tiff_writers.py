"""Classic TIFFs as two programs write them, byte for byte: ITK through libtiff, and ImageJ.

TIFF 6.0 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf), section 2 for the layout.
"""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SHORT, LONG, ASCII, RATIONAL = 3, 4, 2, 5

HEADER_BYTES, ENTRY_BYTES = 8, 12
# libtiff's default size of a strip (TIFFDefaultStripSize).
STRIP_BYTES = 8192
ITK_SOFTWARE = b"InsightToolkit\0"


class Tag(NamedTuple):
    """An entry of an image file directory, its values as stored."""

    code: int
    kind: int
    length: int
    data: bytes


def itk_size(shape: tuple[int, int, int]) -> int:
    """Bytes of the uint8 file that `write_itk` makes of a z-y-x `shape`.

    `(1065, 1536, 2048)` gives the 3,353,674,357 bytes of EPFL's volumedata.tif, `(165, 768, 1024)` the
    129,919,357 of its four parts.
    """
    z, y, x = shape
    directory = _directory_bytes(_itk_tags(shape, 0, 0))
    end = HEADER_BYTES
    for _ in range(z):
        end += y * x
        end += end % 2 + directory
    return end


def write_itk(path: Path, planes: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int]) -> None:
    """Write `planes` (y, x) of a volume of z-y-x `shape` as ITK's TIFFImageIO does for a 3-D image.

    Little-endian, strips of 8 KiB, each page's directory behind its data on an even byte, 14 tags, none of
    them a resolution or a description.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 0))
        pointer = 4
        for n, plane in enumerate(planes):
            start = file.tell()
            file.write(plane.tobytes())
            directory = file.tell() + file.tell() % 2
            file.seek(pointer)
            file.write(struct.pack("<I", directory))
            file.seek(directory)
            tags = _itk_tags(shape, n, start)
            file.write(_directory("<", tags, directory, following=0))
            pointer = directory + 2 + ENTRY_BYTES * len(tags)


def _itk_tags(shape: tuple[int, int, int], page: int, start: int) -> list[Tag]:
    pages, height, width = shape
    rows = max(1, min(height, STRIP_BYTES // width))
    firsts = range(0, height, rows)
    offsets = [start + first * width for first in firsts]
    counts = [min(rows, height - first) * width for first in firsts]
    return [
        _tag("<", 254, LONG, [2]),  # NewSubfileType: a page of several
        _tag("<", 256, LONG, [width]),
        _tag("<", 257, LONG, [height]),
        _tag("<", 258, SHORT, [8]),  # BitsPerSample
        _tag("<", 259, SHORT, [1]),  # Compression: none
        _tag("<", 262, SHORT, [1]),  # PhotometricInterpretation: 0 is black
        _tag("<", 273, LONG, offsets),
        _tag("<", 274, SHORT, [1]),  # Orientation
        _tag("<", 277, SHORT, [1]),  # SamplesPerPixel
        _tag("<", 278, LONG, [rows]),
        _tag("<", 279, LONG, counts),
        _tag("<", 284, SHORT, [1]),  # PlanarConfiguration
        _tag("<", 297, SHORT, [page, pages]),  # PageNumber
        Tag(305, ASCII, len(ITK_SOFTWARE), ITK_SOFTWARE),
    ]


def imagej_description(shape: tuple[int, int, int], voxel_um: float) -> bytes:
    """What ImageJ 1.52p writes of a stack with cubic voxels: its unit is the escape of µ, not the letter."""
    lines = (
        "ImageJ=1.52p",
        f"images={shape[0]}",
        f"slices={shape[0]}",
        "unit=\\u00B5m",
        f"spacing={voxel_um:g}",
        "loop=false",
        "min=36.0",
        "max=199.0",
    )
    return "".join(f"{line}\n" for line in lines).encode("ascii") + b"\0"


def imagej_size(shape: tuple[int, int, int], voxel_um: float) -> int:
    """Bytes of the uint8 file that `write_imagej` makes of a z-y-x `shape`.

    With 0.02 µm, `(184, 775, 1121)` and `(775, 184, 1121)` together have the 319,864,790 bytes of the two
    reslicings of idr0086's figure S3B.
    """
    z, y, x = shape
    directory = 2 + ENTRY_BYTES * len(_imagej_tags(shape, b"", 0, 0)) + 4
    return HEADER_BYTES + z * directory + len(imagej_description(shape, voxel_um)) + 16 + z * y * x


def write_imagej(path: Path, volume: NDArray[np.uint8], voxel_um: float) -> None:
    """Write a z-y-x `volume` as ImageJ saves a stack: big-endian, the first directory before all the voxels,
    the others after them, the resolution as pixels per unit with ResolutionUnit none.
    """
    z, y, x = volume.shape
    text = imagej_description((z, y, x), voxel_um)
    length = 2 + ENTRY_BYTES * len(_imagej_tags((z, y, x), b"", 0, 0)) + 4
    shared = HEADER_BYTES + length  # all directories point at the first one's text and resolution
    data = shared + len(text) + 16
    with path.open("wb") as file:
        file.write(struct.pack(">2sHI", b"MM", 42, HEADER_BYTES))
        following = data + volume.size
        for n in range(z):
            if n == 1:
                file.seek(following)
            tags = _imagej_tags((z, y, x), text, shared, data + n * y * x)
            after = following + n * length if n + 1 < z else 0
            file.write(_plain_directory(">", tags, after))
            if n == 0:
                file.write(text + 2 * _per_unit(voxel_um))
                file.write(volume.tobytes())


def _imagej_tags(shape: tuple[int, int, int], text: bytes, shared: int, start: int) -> list[Tag]:
    """Values that lie elsewhere are given by their offset."""
    _, height, width = shape
    resolution = shared + len(text)
    return [
        _tag(">", 254, LONG, [0]),
        _tag(">", 256, LONG, [width]),
        _tag(">", 257, LONG, [height]),
        _tag(">", 258, SHORT, [8]),
        _tag(">", 262, SHORT, [1]),
        Tag(270, ASCII, len(text), struct.pack(">I", shared)),
        _tag(">", 273, LONG, [start]),
        _tag(">", 277, SHORT, [1]),
        _tag(">", 278, SHORT, [height]),
        _tag(">", 279, LONG, [height * width]),
        Tag(282, RATIONAL, 1, struct.pack(">I", resolution)),
        Tag(283, RATIONAL, 1, struct.pack(">I", resolution + 8)),
        _tag(">", 296, SHORT, [1]),  # ResolutionUnit: none
    ]


def _per_unit(voxel_um: float) -> bytes:
    return struct.pack(">II", round(1_000_000 / voxel_um), 1_000_000)


def _tag(order: str, code: int, kind: int, values: Sequence[int]) -> Tag:
    letter = "H" if kind == SHORT else "I"
    return Tag(code, kind, len(values), struct.pack(f"{order}{len(values)}{letter}", *values))


def _directory_bytes(tags: Sequence[Tag]) -> int:
    """Of a directory with the values that do not fit into it."""
    return 2 + ENTRY_BYTES * len(tags) + 4 + sum(len(tag.data) for tag in tags if len(tag.data) > 4)


def _directory(order: str, tags: Sequence[Tag], at: int, following: int) -> bytes:
    """A directory that lies at byte `at`, and behind it the values that do not fit into it."""
    elsewhere = at + 2 + ENTRY_BYTES * len(tags) + 4
    placed, values = [], b""
    for tag in tags:
        if len(tag.data) > 4:
            placed.append(tag._replace(data=struct.pack(f"{order}I", elsewhere + len(values))))
            values += tag.data
        else:
            placed.append(tag)
    return _plain_directory(order, placed, following) + values


def _plain_directory(order: str, tags: Sequence[Tag], following: int) -> bytes:
    """A directory whose entries hold their values or point to them, and the offset of the next one."""
    entries: list[Any] = [struct.pack(f"{order}H", len(tags))]
    entries += [struct.pack(f"{order}HHI4s", tag.code, tag.kind, tag.length, tag.data) for tag in tags]
    return b"".join([*entries, struct.pack(f"{order}I", following)])
