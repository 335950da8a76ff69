"""What a source does not hold is absent in the volume, at every level, and never voxels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.ledger import ChunkState, Ledger
from em_pipeline.volumes.pyramid_check import coarser_faults
from em_pipeline.volumes.rechunk import WrittenVolume, rechunk
from em_pipeline.volumes.statistics import measure
from em_pipeline.volumes.verify import FaultKind, verify_decoded
from em_pipeline_tests.volumes.arrays import ArrayVolume, FailingVolume
from em_pipeline_tests.volumes.written import (
    hashes,
    open_in,
    places,
    random_voxels,
    reference_pyramid,
    small_plan,
    write,
)

ARRAY = random_voxels((13, 20, 33), "uint16")
# A whole shard, a part of a chunk, and the far corner with its padding.
MISSING = (
    BoundingBox.at((0, 0, 8), (8, 8, 8)),
    BoundingBox.at((9, 9, 9), (2, 2, 2)),
    BoundingBox(start=Shape(11, 15, 30), stop=Shape(13, 20, 33)),
)


def sparse(array: NDArray[Any], missing: Sequence[BoundingBox], fill: int = 0) -> ArrayVolume:
    """`array` as a source that lacks the boxes `missing`, which it reads as `fill`."""
    held = array.copy()
    for box in missing:
        held[box.slices] = fill
    source = ArrayVolume(held)
    source.missing = tuple(missing)
    return source


def write_sparse(source: ArrayVolume, folder: Path, **options: Any) -> WrittenVolume:
    plan = small_plan(source.array, **options)
    box = BoundingBox.of_shape(source.shape)
    return rechunk(source, box, plan, LocalBlobs(folder), name="test", progress=Silent())


def held_of(shape: tuple[int, int, int], missing: Sequence[BoundingBox]) -> NDArray[np.bool_]:
    held = np.ones(shape, bool)
    for box in missing:
        held[box.slices] = False
    return held


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("fill", [0, 777])
def test_every_level_tells_absent_voxels_from_data(tmp_path: Path, kind: Any, fill: int) -> None:
    source = sparse(ARRAY, MISSING, fill)
    write_sparse(source, tmp_path, kind=kind)
    plan = small_plan(ARRAY, kind=kind)
    stored = reference_pyramid(np.where(held_of(ARRAY.shape, MISSING), ARRAY, 0).astype(ARRAY.dtype), plan)
    held = held_of(ARRAY.shape, MISSING)
    with open_in(tmp_path) as reader:
        for level, expected in zip(plan.levels, stored, strict=True):
            block = reader.read_block(level.index, BoundingBox.of_shape(level.shape))
            np.testing.assert_array_equal(block.data, expected)
            absent = np.zeros(level.shape, bool) if block.absent is None else block.absent
            np.testing.assert_array_equal(~absent, held)
            assert block.valid_fraction == held.mean()
            for chunk, state in block.states.items():
                start = Shape(*(4 * i for i in chunk))
                box = BoundingBox.at(start, reader.levels[level.index].valid_shape(chunk))
                row = reader.ledger.row(level.index, chunk)
                assert row.valid_fraction == held[box.slices].sum() / 64
                assert (state is ChunkState.ABSENT) == (not held[box.slices].any())
                summary, _ = measure(expected[box.slices][held[box.slices]])
                assert repr(row.summary) == repr(summary)
            for axis, factor in enumerate(level.factors):
                if factor == 2:
                    starts = np.arange(0, held.shape[axis], 2)
                    held = np.logical_or.reduceat(held, starts, axis)
    assert coarser_faults(*places(tmp_path), sample=99, seed="") == []


def test_an_absent_chunk_is_no_data_and_no_error(tmp_path: Path) -> None:
    written = write_sparse(sparse(ARRAY, MISSING), tmp_path)
    assert written.chunks[ChunkState.ABSENT] > 0
    with open_in(tmp_path) as reader:
        chunk = reader.read_chunk(0, (0, 0, 2))
        assert (chunk.state, chunk.valid_fraction) == (ChunkState.ABSENT, 0)
        block = reader.read_block(0, BoundingBox.at((0, 0, 8), (4, 4, 4)))
        assert block.valid_fraction == 0
        assert block.absent is not None
        assert block.absent.all()
        past = reader.read_block(0, BoundingBox.at((11, 15, 30), (4, 8, 5)))
        assert past.valid_fraction == 0
        assert past.absent is not None
        assert past.absent.sum() == 2 * 5 * 3
        assert reader.read_block(0, BoundingBox.at((0, 8, 0), (4, 4, 4))).absent is None
    ledger = Ledger.read(LocalBlobs(tmp_path), "ledger.parquet")
    assert ledger.coverage == pytest.approx(held_of(ARRAY.shape, MISSING).mean())
    assert ledger.statistics.count == held_of(ARRAY.shape, MISSING).sum()


def test_fill_that_the_source_holds_stays_fill(tmp_path: Path) -> None:
    array = np.zeros((4, 4, 12), np.uint8)
    source = sparse(array, [BoundingBox.at((0, 0, 4), (4, 4, 6))])
    write_sparse(source, tmp_path)
    ledger = Ledger.read(LocalBlobs(tmp_path), "ledger.parquet")
    found = [(ledger.row(0, (0, 0, x)).state, ledger.row(0, (0, 0, x)).valid_fraction) for x in range(3)]
    assert found == [(ChunkState.FILL, 1), (ChunkState.ABSENT, 0), (ChunkState.FILL, 0.5)]
    assert not list(tmp_path.rglob("c/*/*/*"))


@pytest.mark.parametrize("dtype", ["uint8", "uint64", "float32"])
def test_a_volume_of_which_the_source_holds_nothing(tmp_path: Path, dtype: str) -> None:
    whole = BoundingBox.of_shape(ARRAY.shape)
    written = write_sparse(sparse(ARRAY.astype(dtype), [whole]), tmp_path)
    assert {state for state, count in written.chunks.items() if count} == {ChunkState.ABSENT}
    assert (written.statistics.count, written.bytes_stored) == (0, 0)
    assert Ledger.read(LocalBlobs(tmp_path), "ledger.parquet").coverage == 0
    assert verify_decoded(*places(tmp_path), threads=1, progress=Silent()).passed


def test_a_volume_whose_source_holds_everything_is_as_before(tmp_path: Path) -> None:
    write(ARRAY, tmp_path / "plain")
    write_sparse(sparse(ARRAY, []), tmp_path / "sparse")
    box = BoundingBox.at((0, 0, 0), (8, 20, 33))
    source = sparse(ARRAY, [BoundingBox.at((8, 0, 0), (5, 20, 33))])
    plan = small_plan(ARRAY[box.slices])
    rechunk(source, box, plan, LocalBlobs(tmp_path / "cut"), name="test", progress=Silent())
    write(ARRAY[box.slices], tmp_path / "upper")
    assert hashes(tmp_path / "plain") == hashes(tmp_path / "sparse")
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "upper")
    ledger = Ledger.read(LocalBlobs(tmp_path / "cut"), "ledger.parquet")
    assert (ledger.missing, ledger.coverage) == (None, 1.0)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "uint64"])
def test_verify_decodes_what_is_held_and_finds_voxels_where_there_are_none(
    tmp_path: Path, dtype: str
) -> None:
    array = random_voxels((13, 20, 33), dtype)
    write_sparse(sparse(array, MISSING), tmp_path)
    assert verify_decoded(*places(tmp_path), threads=2, progress=Silent()).passed
    # A ledger that knows of no absence sees the fill values as voxels.
    write_sparse(sparse(array, MISSING[:1]), tmp_path / "other")
    (tmp_path / "other/ledger.parquet").replace(tmp_path / "ledger.parquet")
    kinds = {fault.kind for fault in verify_decoded(*places(tmp_path), threads=2, progress=Silent()).faults}
    assert FaultKind.CHUNK in kinds


@given(reads=st.lists(st.integers(0, 40), max_size=3))
def test_runs_that_fail_add_up_to_the_same_bytes(tmp_path_factory: Any, reads: list[int]) -> None:
    folder = tmp_path_factory.mktemp("runs")
    source = sparse(ARRAY, MISSING)
    scarce = {"memory_budget": 20_000, "threads": 1}
    for allowed in reads:
        failing = FailingVolume(source.array, RuntimeError("unplugged"), reads_allowed=allowed)
        failing.missing = MISSING
        try:
            write_sparse(failing, folder / "broken", **scarce)
        except RuntimeError:
            assert not (folder / "broken/ledger.parquet").exists()
    write_sparse(source, folder / "broken", **scarce)
    write_sparse(source, folder / "clean")
    assert hashes(folder / "broken") == hashes(folder / "clean")


def test_other_absence_is_another_volume(tmp_path: Path) -> None:
    first = write_sparse(sparse(ARRAY, MISSING[:1]), tmp_path)
    again = write_sparse(sparse(ARRAY, MISSING[1:]), tmp_path)
    assert again.ledger_sha256 != first.ledger_sha256
    write_sparse(sparse(ARRAY, MISSING[1:]), tmp_path / "alone")
    assert hashes(tmp_path / "volume.ome.zarr") == hashes(tmp_path / "alone/volume.ome.zarr")
