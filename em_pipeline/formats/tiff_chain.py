"""How many pages a TIFF has, without reading every one of its directories.

Each image file directory (IFD) ends with the offset of the next (TIFF 6.0, section 2; BigTIFF:
https://www.awaresystems.be/imaging/tiff/bigtiff.html). Writers that append, such as ITK, put each behind its
page's voxels, so a chain can be gigabytes long; but pages of one shape then lie at one distance.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from em_pipeline.domain.errors import BudgetSpent

# Tags that must agree for pages to be planes of one volume: size, sample format, strips or tiles, encoding.
STRUCTURE = frozenset({256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 322, 323, 339})
MOST_TAGS = 4096
# Directories further apart than this are each a read of their own.
FAR = 16 * 1024
# Two equal distances tell the pattern; the first page, whose directory is longer, has its own.
FAR_READ = 3
# A chain whose directories lie together is followed this far.
NEAR_BYTES = 512 * 1024
MOST_PROBES = 12
# Looking for the end has confirmed so many pages on its way that none more need be looked at.
ENOUGH = 4


@dataclass(frozen=True)
class Directory:
    """One IFD: its byte offset, entries of `STRUCTURE` as stored, and the next one's offset, 0 for none."""

    offset: int
    structure: Mapping[int, bytes]
    following: int


@dataclass(frozen=True)
class Chain:
    """What is known of a file's pages.

    `count` is None where the end was not found. `read` is how many directories were read; where that is less
    than `count`, those read are alike, at one distance, and the last of them ends the chain.
    """

    count: int | None
    read: int

    @property
    def whole(self) -> bool:
        """Whether every directory was read."""
        return self.count == self.read


class Directories:
    """Reads directories of a file. `byte_order` is `<` or `>`."""

    def __init__(self, file: BinaryIO, byte_order: str, *, big: bool) -> None:
        self._file = file
        self._count = struct.Struct(byte_order + ("Q" if big else "H"))
        self._entry = struct.Struct(byte_order + ("HH16s" if big else "HH8s"))
        self._pointer = struct.Struct(byte_order + ("Q" if big else "I"))

    def read(self, offset: int) -> Directory | None:
        """The directory at `offset`, None where there can be none."""
        self._file.seek(offset)
        head = self._file.read(self._count.size)
        if len(head) < self._count.size:
            return None
        (tags,) = self._count.unpack(head)
        if not 0 < tags <= MOST_TAGS:
            return None
        table = self._file.read(tags * self._entry.size + self._pointer.size)
        if len(table) < tags * self._entry.size + self._pointer.size:
            return None
        entries = self._entry.iter_unpack(table[: -self._pointer.size])
        structure = {tag: struct.pack("H", kind) + value for tag, kind, value in entries if tag in STRUCTURE}
        return Directory(offset, structure, self._pointer.unpack(table[-self._pointer.size :])[0])


def survey(directories: Directories, first: int, size: int) -> Chain:
    """The chain from byte `first` of a file of `size` bytes: followed, or sampled where it is long."""
    seen: dict[int, Directory] = {}
    offset, far, near = first, 0, 0
    try:
        while far <= FAR_READ and near < NEAR_BYTES:
            found = directories.read(offset)
            if found is None or found.following in seen:
                return Chain(None, len(seen))
            seen[offset] = found
            if not found.following:
                return Chain(len(seen), len(seen))
            gap = abs(found.following - offset)
            far, near = (far + 1, near) if gap > FAR else (far, near + gap)
            offset = found.following
        return _sampled(directories, list(seen.values()), size)
    except BudgetSpent:
        return Chain(None, len(seen))


def _sampled(directories: Directories, seen: list[Directory], size: int) -> Chain:
    """The chain after the directories `seen`, if it goes on as it began."""
    last = seen[-1]
    stride = last.following - last.offset
    unlike = any(one.structure != last.structure for one in seen)
    if len(seen) < 3 or stride <= 0 or last.offset - seen[-2].offset != stride or unlike:
        return Chain(None, len(seen))
    probe = _Probe(directories, last, len(seen) - 1, stride)
    count = _end(probe, (size - last.offset) // stride + len(seen) - 1)
    if count is None:
        return Chain(None, len(seen))
    quarters = {probe.page + (count - len(seen)) * n // 4 for n in (1, 2, 3)} - {probe.page}
    if probe.confirmed < ENOUGH and not all(probe.goes_on(page) for page in quarters):
        return Chain(None, len(seen))
    return Chain(count, len(seen) + probe.confirmed)


def _end(probe: "_Probe", most: int) -> int | None:
    """How many pages there are, of which `most` is the last that could begin inside the file."""
    low, high = probe.page, most + 1
    for attempt in range(MOST_PROBES):
        # Nearly always the file ends with its last page; else the end is found by halving.
        page = high - 1 if attempt < 2 else (low + high) // 2
        if page <= low:
            return None
        if probe.ends(page):
            return page + 1
        low, high = (page, high) if probe.goes_on(page) else (low, page)
    return None


class _Probe:
    """Looks where a directory should be if pages follow at one distance."""

    def __init__(self, directories: Directories, known: Directory, page: int, stride: int) -> None:
        self.page = page
        self._directories, self._known, self._stride = directories, known, stride
        self._found: dict[int, Directory | None] = {}

    @property
    def confirmed(self) -> int:
        """How many directories were found as expected."""
        return sum(found is not None for found in self._found.values())

    def ends(self, page: int) -> bool:
        """Whether the page is there, alike, and the last."""
        found = self._at(page)
        return found is not None and found.following == 0

    def goes_on(self, page: int) -> bool:
        """Whether the page is there, alike, and followed by another at the same distance."""
        found = self._at(page)
        return found is not None and found.following == found.offset + self._stride

    def _at(self, page: int) -> Directory | None:
        if page not in self._found:
            found = self._directories.read(self._known.offset + (page - self.page) * self._stride)
            alike = found is not None and found.structure == self._known.structure
            self._found[page] = found if alike else None
        return self._found[page]
