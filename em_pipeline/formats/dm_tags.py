"""The tag tree of DigitalMicrograph 3 and 4 files (https://personal.ntu.edu.sg/cbb/info/dmformat/).

Numbers of the tree are big-endian; values are in the byte order that the header tells. Voxels are not read:
of them the tree has the place.
"""

import os
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, Final

GROUP, DATA = 20, 21
STRUCT, STRING, ARRAY = 15, 18, 20
SCALARS: Final = {2: "h", 3: "i", 4: "H", 5: "I", 6: "f", 7: "d", 8: "B", 9: "c", 10: "b", 11: "q", 12: "Q"}
"""Kinds of single values as `struct` names them. DM3 writes text as arrays of `UINT16`."""
UINT16 = 4
DELIMITER = b"%%%%"
# Most groups within each other: files of GMS have about ten.
DEEPEST = 64
# Most numbers that describe how one value is laid out: three and two per field for an array of structs.
LONGEST_LAYOUT = 4096
# Numbers of an array that is read, in structs or not; of a longer one, as of voxels, the tree has the place.
LONGEST_ARRAY = 1 << 16
# Memory of a whole tree at most, as counted below: those of six real files, one of them a spectrum image's,
# take 0.2 to 1.6 MB. A damaged file may promise gigabytes.
MOST_KEPT = 64 << 20
# Of it, by CPython's objects: a tag with its name and place in a dict, a number in a list or tuple, and a
# stored byte of text, which takes four where one character of the text lies beyond U+FFFF.
TAG_BYTES, NUMBER_BYTES, TEXT_BYTES = 256, 40, 4
# Bytes read at once: most of what stands between two images of a file.
WINDOW = 16 << 10


@dataclass(frozen=True)
class Tags:
    """The tree, the byte order of values and voxels (`<`, `>`), and the version of the format, 3 or 4.

    A group is a dict; nameless entries are called `TagGroup0`, `Data0` and on, dots in names are left out.
    A value is a number, a str, a list of an array's values, or a tuple of a struct's. `ImageData.Data`, and
    any array of more than `LONGEST_ARRAY` numbers, is a dict of its `size` (values), `size_bytes` and
    `offset` (bytes from the start of the file).
    """

    tree: dict[str, Any]
    byte_order: str
    version: int


def read_tags(file: BinaryIO) -> Tags:
    """All tags of a file.

    Raises `ValueError` for what is no such tree, for one that is cut short, and for one above `MOST_KEPT`.
    """
    window = _Window(file)
    (version,) = window.unpack(_layout(">I"))
    if version not in (3, 4):
        raise ValueError(f"it is version {version} of the format, not 3 or 4")
    (little,) = window.unpack(_layout(">4xI" if version == 3 else ">8xI"))
    order = "<" if little else ">"
    tree = _Tree(window, version, order)
    (count,) = window.unpack(_layout(">2xI" if version == 3 else ">2xQ"))
    return Tags(tree.group(count, "", 0), order, version)


@cache
def _layout(of: str) -> struct.Struct:
    return struct.Struct(of)


class _Window:
    """Bytes of a file in the order they lie in it, read some thousands at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._held = b""
        self._first = 0  # where in the file the held bytes begin
        self._at = 0  # where in them the next one is

    @property
    def offset(self) -> int:
        return self._first + self._at

    def skip(self, count: int) -> None:
        self._at += count

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        place = self._take(layout.size)
        return layout.unpack_from(self._held, place)

    def read(self, count: int) -> bytes:
        place = self._take(count)
        return self._held[place : place + count]

    def _take(self, count: int) -> int:
        """Where in the held bytes the next `count` are."""
        place = self._at
        if place + count > len(self._held):
            place = self._load(count)
        self._at = place + count
        return place

    def _load(self, count: int) -> int:
        start = self.offset
        if start + count > self._size:
            raise ValueError(f"its tags lead to byte {start + count:,} of {self._size:,}")
        self._file.seek(start)
        self._held, self._first = self._file.read(max(count, WINDOW)), start
        if len(self._held) < count:
            raise ValueError(f"it ends at byte {start + len(self._held):,}, within its tags")
        return 0


class _Tree:
    """Reads groups and values of one version and byte order from where the window is."""

    def __init__(self, window: _Window, version: int, order: str) -> None:
        self._window = window
        self._order = order
        self._kept = 0
        wide = version == 4
        self._group_head = _layout(">10xQ" if wide else ">2xI")
        self._value_head = _layout(">8x4sQ" if wide else ">4sI")
        self._number = "Q" if wide else "I"
        self._scalars = {kind: _layout(f"{order}{code}") for kind, code in SCALARS.items()}

    def group(self, count: int, group_name: str, depth: int) -> dict[str, Any]:
        """The next `count` tags."""
        if depth > DEEPEST:
            raise ValueError(f"its groups lie more than {DEEPEST} deep in each other")
        found: dict[str, Any] = {}
        window, head = self._window, _layout(">BH")
        groups = values = 0
        for _ in range(count):
            kind, length = window.unpack(head)
            self._keep(TAG_BYTES + TEXT_BYTES * length)
            name = _text(window.read(length)).replace(".", "") if length else ""
            if kind == GROUP:
                if not name:
                    name, groups = f"TagGroup{groups}", groups + 1
                (inner,) = window.unpack(self._group_head)
                found[name] = self.group(inner, name, depth + 1)
            elif kind == DATA:
                if not name:
                    name, values = f"Data{values}", values + 1
                layout = self._value_layout()
                is_place = group_name == "ImageData" and name == "Data"
                found[name] = self._place(layout) if is_place else self._value(layout)
            else:
                raise ValueError(f"a tag at byte {window.offset:,} is neither group nor data but {kind}")
        return found

    def _keep(self, nbytes: int) -> None:
        """Count memory of the tree before it is taken."""
        self._kept += nbytes
        if self._kept > MOST_KEPT:
            raise ValueError(
                f"its tags before byte {self._window.offset:,} lead to {self._kept:,} bytes of memory, "
                f"and at most {MOST_KEPT:,} are taken"
            )

    def _value_layout(self) -> tuple[int, ...]:
        """The numbers that say how the value behind them is laid out."""
        delimiter, length = self._window.unpack(self._value_head)
        if delimiter != DELIMITER:
            raise ValueError(f"the value before byte {self._window.offset:,} begins with {delimiter!r}")
        if not 1 <= length <= LONGEST_LAYOUT:
            raise ValueError(f"the value at byte {self._window.offset:,} is laid out in {length:,} numbers")
        return self._window.unpack(_layout(f">{length}{self._number}"))

    def _value(self, layout: tuple[int, ...]) -> Any:
        kind, *more = layout
        if not more:
            return self._window.unpack(self._scalar(kind))[0]
        if kind == STRING and len(more) == 1:
            self._keep(TEXT_BYTES * more[0])
            return _text(self._window.read(more[0]))
        if kind == STRUCT:
            self._keep(NUMBER_BYTES * len(layout))
            return self._window.unpack(self._struct(layout))
        # A struct has a length and a kind for each of its fields, and three numbers before them.
        fields = max(1, (len(more) - 4) // 2)
        if kind == ARRAY and more[-1] * fields > LONGEST_ARRAY:
            place = self._place(layout)
            self._window.read(0)  # is its end in the file?
            return place
        if kind == ARRAY and len(more) == 2:
            return self._array(*more)
        if kind == ARRAY and more[0] == STRUCT:
            one = self._struct(layout[1:-1])
            self._keep(NUMBER_BYTES * (fields + 2) * more[-1])  # a tuple is as large as two numbers
            return list(one.iter_unpack(self._window.read(one.size * more[-1])))
        raise ValueError(f"the value at byte {self._window.offset:,} has the unknown layout {layout[:8]}")

    def _array(self, kind: int, count: int) -> list[Any] | str:
        size = self._scalar(kind).size * count
        self._keep(TEXT_BYTES * size if kind == UINT16 else NUMBER_BYTES * count)
        stored = self._window.read(size)
        if kind == UINT16 and count:
            # Other arrays of this kind become text as well, whatever they hold.
            return stored.decode("utf-16-le" if self._order == "<" else "utf-16-be", "replace")
        return list(struct.unpack(f"{self._order}{count}{SCALARS[kind]}", stored))

    def _place(self, layout: tuple[int, ...]) -> dict[str, Any]:
        """Where an array of numbers or of structs lies; it is passed over."""
        if layout[0] != ARRAY or len(layout) < 3 or (len(layout) > 3 and layout[1] != STRUCT):
            raise ValueError(f"the array at byte {self._window.offset:,} has the unknown layout {layout[:8]}")
        one = self._scalar(layout[1]) if len(layout) == 3 else self._struct(layout[1:-1])
        count, offset = layout[-1], self._window.offset
        self._window.skip(count * one.size)
        endian = "little" if self._order == "<" else "big"
        return {"size": count, "endian": endian, "size_bytes": count * one.size, "offset": offset}

    def _scalar(self, kind: int) -> struct.Struct:
        if kind not in self._scalars:
            raise ValueError(f"the value at byte {self._window.offset:,} is of the unknown kind {kind}")
        return self._scalars[kind]

    def _struct(self, layout: tuple[int, ...]) -> struct.Struct:
        """`STRUCT`, a length, how many fields, and of each a length and its kind."""
        kinds = layout[4::2]
        whole = len(layout) > 4 and len(layout) == 3 + 2 * layout[2]
        if not whole or not set(kinds) <= SCALARS.keys():
            raise ValueError(
                f"the struct at byte {self._window.offset:,} has the unknown layout {layout[:8]}"
            )
        return struct.Struct(self._order + "".join(SCALARS[kind] for kind in kinds))


def _text(stored: bytes) -> str:
    """UTF-8 where it is that, else Latin-1, as older versions wrote it."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored.decode("latin-1")
