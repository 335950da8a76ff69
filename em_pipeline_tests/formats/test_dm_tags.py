"""The tags of DM files, held against a reader that is not ours, and what is damaged among them."""

import io
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rsciio.digitalmicrograph._api import DigitalMicrographReader

from em_pipeline.demo import dm3
from em_pipeline.formats.dm_tags import DEEPEST, LONGEST_ARRAY, LONGEST_LAYOUT, MOST_KEPT, read_tags

# Of two halves that UTF-16 has for other characters, that reader makes two characters.
BMP = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])
names = st.text(st.characters(max_codepoint=255), min_size=1, max_size=8)
scalars = st.one_of(
    st.booleans(), st.integers(-(2**31), 2**32 - 1), st.floats(width=64), st.text(BMP, max_size=9),
    st.floats(width=32).map(np.float32),
    st.lists(st.integers(0, 255), max_size=5).map(lambda numbers: np.array(numbers, np.uint8)),
)  # fmt: skip
trees = st.recursive(
    st.dictionaries(names, scalars, max_size=4),
    lambda inner: st.one_of(
        st.dictionaries(names, st.one_of(scalars, inner), max_size=4),
        st.lists(st.one_of(inner, scalars), max_size=4),
    ),
    max_leaves=20,
)


def file_of(tags: Any) -> bytes:
    group = dm3._group(tags)
    return struct.pack(">III", 3, len(group) + 4, 1) + group + bytes(8)


def with_value(value: bytes) -> bytes:
    """A file of one value called `a`."""
    return struct.pack(">III", 3, 0, 1) + struct.pack(">??IBH", True, False, 1, 21, 1) + b"a" + value


def dm4_of(groups: int, order: str = "<") -> bytes:
    """A DM4 file of so many groups `g` in each other, the innermost with the signed 64-bit number 7."""
    head = struct.pack(">IQI", 4, 0, order == "<") + struct.pack(">??Q", True, False, 1)
    inner = b"".join(
        struct.pack(">BH", 20, 1) + b"g" + struct.pack(">??QQ", 1, 0, 0, 1) for _ in range(groups)
    )
    value = struct.pack(">Q", 0) + b"%%%%" + struct.pack(">QQ", 1, 11) + struct.pack(f"{order}q", 7)
    return head + inner + struct.pack(">BH", 21, 1) + b"v" + value


def tree_of(content: bytes) -> dict[str, Any]:
    return read_tags(io.BytesIO(content)).tree


def by_rsciio(content: bytes) -> dict[str, Any]:
    reader = DigitalMicrographReader(io.BytesIO(content))
    reader.parse_file()
    return {name: value for name, value in reader.tags_dict.items() if name != "root"}


@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_tree_is_what_another_reader_finds(tree: Any) -> None:
    content = file_of(tree)
    assert repr(tree_of(content)) == repr(by_rsciio(content))


@pytest.mark.parametrize(
    "value",
    [
        dm3._layout([18, 3]) + b"abc",
        dm3._layout([15, 0, 2, 0, 2, 0, 7]) + struct.pack("<hd", -3, 0.5),
        dm3._layout([20, 15, 0, 2, 0, 10, 0, 12, 3]) + struct.pack("<bQbQbQ", -1, 2**63, 2, 3, 4, 5),
        *(dm3._layout([kind]) + bytes(range(1, 9)) for kind in range(2, 13)),
        *(dm3._layout([20, kind, 2]) + bytes(range(1, 17)) for kind in range(2, 13)),
    ],
)
def test_any_kind_of_value_is_what_another_reader_finds(value: bytes) -> None:
    content = with_value(value) + bytes(8)
    assert repr(tree_of(content)) == repr(by_rsciio(content))


@pytest.mark.parametrize("order", ["<", ">"])
def test_version_4_and_both_byte_orders(order: str) -> None:
    tags = read_tags(io.BytesIO(dm4_of(2, order)))
    assert (tags.tree, tags.byte_order, tags.version) == ({"g": {"g": {"v": 7}}}, order, 4)


def test_voxels_are_passed_over_not_read() -> None:
    voxels = np.arange(100_000, dtype=np.uint16)
    content = file_of({"ImageData": {"Data": voxels, "DataType": 10}})
    image = tree_of(content)["ImageData"]
    place = image["Data"]
    assert image["DataType"] == 10
    assert content[place["offset"] :][: place["size_bytes"]] == voxels.tobytes()


def test_text_is_in_the_byte_order_of_the_file() -> None:
    text = "Zeiß \N{GREEK SMALL LETTER MU}m"
    value = dm3._layout([20, 4, len(text)]) + text.encode("utf-16-be")
    content = struct.pack(">III", 3, 0, 0) + with_value(value)[12:]
    assert tree_of(content) == {"a": text}


@pytest.mark.parametrize(
    ("stored", "text"),
    [("Zeiss \N{GRINNING FACE}".encode("utf-16-le"), "Zeiss \N{GRINNING FACE}"), (b"\x00\xd8", "\ufffd")],
)
def test_text_is_utf_16_and_what_is_none_of_it_is_replaced(stored: bytes, text: str) -> None:
    content = with_value(dm3._layout([20, 4, len(stored) // 2]) + stored)
    assert tree_of(content) == {"a": text}
    assert text.encode()  # so may be written as JSON


@pytest.mark.parametrize("layout", [[20, 8], [20, 4], [20, 15, 0, 1, 0, 8]])
def test_a_long_array_is_passed_over(layout: list[int]) -> None:
    count = LONGEST_ARRAY + 1
    content = with_value(dm3._layout([*layout, count]) + bytes(2 * count))
    place = tree_of(content)["a"]
    assert place["size"] == count
    assert place["offset"] + 2 * count == len(content)
    with pytest.raises(ValueError, match="its tags lead to byte"):
        tree_of(content[: place["offset"] + 9])


@pytest.mark.parametrize(
    ("layout", "value"),
    [
        ([20, 8, LONGEST_ARRAY], bytes(LONGEST_ARRAY)),
        ([20, 15, 0, 64, *[0, 10] * 64, 1000], b"\x80" * 64_000),
        ([15, 0, 2000, *[0, 10] * 2000], b"\x80" * 2000),
        ([20, 4, 1 << 15], b"\x3d\xd8\x00\xde" + b"a\x00" * ((1 << 15) - 2)),
        ([18, 1 << 16], "\N{GRINNING FACE}".encode().ljust(1 << 16, b"a")),
        ([8], b"\0"),
    ],
)
def test_more_than_a_tree_may_take_is_refused_before_it_is_taken(layout: list[int], value: bytes) -> None:
    tag = struct.pack(">BH", 21, 0) + dm3._layout(layout) + value
    count = 400_000 if len(layout) == 1 else 2500
    content = struct.pack(">III", 3, 0, 1) + struct.pack(">??I", True, False, count) + tag * count
    tracemalloc.start()
    with pytest.raises(ValueError, match="at most 67,108,864 are taken"):
        tree_of(content)
    # The file itself, which `BytesIO` shares, was there before.
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most <= MOST_KEPT + (1 << 20)


def test_an_array_of_structs_is_as_long_as_their_fields() -> None:
    layout = [20, 15, 0, 3, *[0, 8] * 3]
    count = LONGEST_ARRAY // 3
    assert len(tree_of(with_value(dm3._layout([*layout, count]) + bytes(3 * count)))["a"]) == count
    longer = tree_of(with_value(dm3._layout([*layout, count + 1]) + bytes(3 * count + 3)))["a"]
    assert (longer["size"], longer["size_bytes"]) == (count + 1, 3 * count + 3)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_tree_is_refused_or_read_never_worse(data: st.DataObject) -> None:
    content = bytearray(file_of(data.draw(trees)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        read_tags(io.BytesIO(content))


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_tree_cut_short_is_refused(data: st.DataObject) -> None:
    content = file_of(data.draw(trees))
    with pytest.raises(ValueError, match="its tags lead to byte"):
        tree_of(content[: data.draw(st.integers(0, len(content) - 9))])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (struct.pack(">III", 5, 0, 1), "version 5"),
        (struct.pack(">III", 3, 0, 1) + struct.pack(">??IBH", 1, 0, 1, 9, 0), "neither group nor data but 9"),
        (with_value(b"????" + bytes(8)), "begins with"),
        (with_value(dm3._layout([1])), "unknown kind 1"),
        (with_value(dm3._layout([])), "laid out in 0 numbers"),
        (with_value(dm3._layout([0] * (LONGEST_LAYOUT + 1))), "numbers"),
        (with_value(dm3._layout([20, 20, 1, 2, 3])), "unknown layout"),
        (with_value(dm3._layout([15, 0, 9, 0, 2])), "unknown layout"),
        (with_value(dm3._layout([18, 2**31])), "at most 67,108,864 are taken"),
        (with_value(dm3._layout([20, 6, 2**31])), "its tags lead to byte 8,589,934,"),
        (dm4_of(DEEPEST + 1), "deep"),
    ],
)
def test_what_is_no_tree_is_refused_with_the_reason(content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tree_of(content)


@pytest.mark.shared_data
def test_real_files_hold_what_another_reader_finds(shared_data: Path) -> None:
    paths = [path for path in shared_data.rglob("*.dm[34]") if path.stat().st_size < 64 << 20]
    assert paths
    for path in paths:
        content = path.read_bytes()
        assert repr(tree_of(content)) == repr(by_rsciio(content)), path.name
