"""TIFFs as large as real ones that cost no disk: directories are written, voxels are holes."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from em_pipeline.demo.tiff_writers import _directory, _itk_tags

EPFL = (1065, 1536, 2048)


def itk(path: Path, shape: tuple[int, int, int] = EPFL) -> Path:
    """What ITK writes: each page's directory behind its voxels, 3 MB from the next."""
    pages, height, width = shape
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 0))
        pointer, start = 4, 8
        for page in range(pages):
            at = start + height * width
            at += at % 2
            file.seek(pointer)
            file.write(struct.pack("<I", at))
            tags = _itk_tags(shape, page, start)
            file.seek(at)
            start = at + file.write(_directory("<", tags, at, following=0))
            pointer = at + 2 + 12 * len(tags)
    return path


@dataclass(frozen=True)
class Layout:
    """Where the directories lie, and how numbers are written. `gaps` are bytes between pages, repeated."""

    together: str = ""
    big: bool = False
    order: str = "<"
    gaps: Sequence[int] = (0,)
    description: bytes = b""


def sparse(path: Path, shape: tuple[int, int, int], layout: Layout = Layout()) -> Path:
    """Planes of uint8 (z-y-x `shape`), directories behind each page, or `together` at "start" or "end"."""
    pages, height, width = shape
    plane, size = height * width, _size(layout, 0) + len(layout.description)
    head = 16 if layout.big else 8
    if layout.together == "start":
        data = [head + pages * size + page * plane for page in range(pages)]
        tables = [head + page * size for page in range(pages)]
    elif layout.together == "end":
        data = [head + page * plane for page in range(pages)]
        tables = [head + pages * plane + page * size for page in range(pages)]
    else:
        data, tables, at = [], [], head
        for page in range(pages):
            data.append(at)
            tables.append(at + plane)
            at += plane + size + layout.gaps[page % len(layout.gaps)]
    with path.open("wb") as file:
        file.write(_head(layout, tables[0]))
        for page, at in enumerate(tables):
            file.seek(at)
            following = tables[page + 1] if page + 1 < pages else 0
            description = layout.description if page == 0 else b""
            file.write(_table(layout, at, (height, width), data[page], following, description))
        file.truncate(max(data[-1] + plane, tables[-1] + size))
    return path


def _head(layout: Layout, first: int) -> bytes:
    mark = b"II" if layout.order == "<" else b"MM"
    if layout.big:
        return struct.pack(f"{layout.order}2sHHHQ", mark, 43, 8, 0, first)
    return struct.pack(f"{layout.order}2sHI", mark, 42, first)


def _size(layout: Layout, described: int) -> int:
    return 8 + 20 * (9 + described) + 8 if layout.big else 2 + 12 * (9 + described) + 4


def _table(
    layout: Layout, at: int, plane: tuple[int, int], data: int, following: int, description: bytes
) -> bytes:
    height, width = plane
    words = "HHQQ" if layout.big else "HHII"
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, data), (277, 1),
               (278, height), (279, height * width)]  # fmt: skip
    kind = 16 if layout.big else 4
    packed = {tag: struct.pack(layout.order + words, tag, kind, 1, value) for tag, value in entries}
    if description:
        where = at + _size(layout, 1)
        packed[270] = struct.pack(layout.order + words, 270, 2, len(description), where)
    count, pointer = ("Q", "Q") if layout.big else ("H", "I")
    return (
        struct.pack(layout.order + count, len(packed))
        + b"".join(packed[tag] for tag in sorted(packed))
        + struct.pack(layout.order + pointer, following)
        + description
    )
