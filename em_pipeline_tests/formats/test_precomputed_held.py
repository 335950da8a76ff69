"""Which chunks a folder of precomputed holds, and how their names and ids lead back to the grid."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.precomputed import open_precomputed
from em_pipeline.formats.precomputed_grid import ChunkGrid
from em_pipeline.formats.precomputed_held import held_chunks
from em_pipeline.formats.precomputed_info import Scale, parse_info
from em_pipeline_tests.formats.helpers import boxes, ramp
from em_pipeline_tests.formats.test_precomputed import SHAPE, SHARDING, written

lengths = st.tuples(*[st.integers(1, 300)] * 3)
PARTS = (
    BoundingBox.of_shape(SHAPE),
    BoundingBox.at((0, 0, 0), (1, 1, 1)),
    BoundingBox.at((3, 5, 20), (10, 30, 30)),
)


@given(st.data(), lengths, lengths, st.tuples(*[st.integers(-1000, 1000)] * 3))
def test_names_and_ids_lead_back_to_the_chunk(
    data: st.DataObject, shape: Any, size: Any, origin: Any
) -> None:
    grid = ChunkGrid(Shape(*shape), Shape(*size), origin)
    cell = data.draw(boxes(grid.size)).start
    chunk = grid.chunk_at(cell)
    assert (
        grid.cell_of(chunk)
        == grid.cell_named(grid.name(chunk))
        == grid.cell_coded(grid.morton(chunk))
        == cell
    )


@given(st.integers(0, 1 << 12))
def test_only_ids_of_chunks_lead_to_one(code: int) -> None:
    grid = ChunkGrid(Shape(5, 3, 9), Shape(1, 1, 1))
    cell = grid.cell_coded(code)
    coded = {grid.morton(chunk) for chunk in grid.boxes(BoundingBox.of_shape(grid.shape))}
    assert (cell is not None) == (code in coded)


@pytest.mark.parametrize(
    "name",
    [
        "info",
        "0-16_0-12",
        "0-16_0-12_0-9",
        "1-17_0-12_0-8",
        "00-16_0-12_0-8",
        "0-16_0-12_0-8.tmp",
        "0-16_-12-0_0-8",
    ],
)
def test_other_names_lead_to_no_chunk(name: str) -> None:
    assert ChunkGrid(SHAPE, Shape(8, 12, 16)).cell_named(name) is None


def scale_of(folder: Path) -> Scale:
    return parse_info((folder / "info").read_text(), "info").scale(None)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("minishard_bits", [0, 6])
@pytest.mark.parametrize("hashing", ["identity", "murmurhash3_x86_128"])
def test_shards_are_listed_as_their_chunks_are_found(
    tmp_path: Path, part: BoundingBox, minishard_bits: int, hashing: str
) -> None:
    """With one minishard there are more chunks than indexes, with 64 fewer."""
    sharding = {**SHARDING, "minishard_bits": minishard_bits, "hash": hashing}
    written_part = BoundingBox.at((0, 0, 16), (16, 24, 20))
    folder = written(tmp_path, ramp(SHAPE), written_part, sharding=sharding)
    plain = written(tmp_path / "plain", ramp(SHAPE), written_part)
    found = held_chunks(folder / "4_4_30", scale_of(folder), part)
    expected = held_chunks(plain / "4_4_30", scale_of(plain), part)
    np.testing.assert_array_equal(found.cells, expected.cells)
    there = {path.name for path in (folder / "4_4_30").iterdir()}
    assert set(found.names) <= there
    if part == PARTS[0]:
        assert set(found.names) == there


def test_a_chunk_listed_in_another_shard_is_no_chunk(tmp_path: Path) -> None:
    folder = written(tmp_path, ramp(SHAPE), BoundingBox.at((0, 0, 0), (8, 12, 16)), sharding=SHARDING)
    (shard,) = (folder / "4_4_30").iterdir()
    shard.rename(shard.with_name("7.shard"))
    (folder / "4_4_30" / "x.shard").write_bytes(b"")
    info = json.loads((folder / "info").read_text())
    info["scales"][0]["size"] = [5000, 5000, 5000]
    (folder / "info").write_text(json.dumps(info))
    scale = scale_of(folder)
    assert not len(held_chunks(folder / scale.key, scale, BoundingBox.of_shape(scale.shape)).cells)


def test_missing_boxes_are_those_of_whole_chunks(tmp_path: Path) -> None:
    folder = written(tmp_path, ramp(SHAPE), BoundingBox.at((0, 0, 0), (8, 37, 50)))
    volume = open_precomputed(folder, box=BoundingBox.at((0, 0, 0), (9, 5, 5)))
    assert list(volume.missing) == [BoundingBox.at((8, 0, 0), (8, 12, 16))]
