import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05 import Image

from em_pipeline.domain.errors import InputRefused, StorageFailed, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.codec import RECIPES
from em_pipeline.volumes.ledger import ChunkState, Ledger
from em_pipeline.volumes.rechunk import WrittenVolume, rechunk
from em_pipeline_tests.volumes.arrays import ArrayVolume, FailingVolume
from em_pipeline_tests.volumes.written import (
    DTYPES,
    hashes,
    kinds_for,
    path_of,
    random_voxels,
    reference_pyramid,
    small_plan,
    stored_in,
    write,
)

EXTENTS = st.sampled_from([1, 3, 4, 5, 8, 9, 16, 17])
SHAPES = st.tuples(EXTENTS, EXTENTS, EXTENTS)
VOXEL_SIZES = st.sampled_from([VoxelSize(z=8, y=8, x=8), VoxelSize(z=40, y=4, x=4), VoxelSize(z=4, y=5, x=9)])


def levels_of(written: WrittenVolume) -> list[Any]:
    return [zarr.open_array(path_of(written) / str(lv.index), mode="r")[...] for lv in written.levels]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), shape=SHAPES, size=VOXEL_SIZES)
def test_every_level_is_the_reference(data: st.DataObject, dtype: str, shape: Any, size: VoxelSize) -> None:
    kind = data.draw(st.sampled_from(kinds_for(dtype)))
    codec = data.draw(st.sampled_from([None, *RECIPES]))
    array = random_voxels(shape, dtype)
    with TemporaryDirectory() as folder:
        written = write(array, Path(folder), voxel_size=size, kind=kind, codec=codec)
        plan = small_plan(array, voxel_size=size, kind=kind, codec=codec)
        expected = reference_pyramid(array, plan)
        found = levels_of(written)
        assert len(found) == len(expected)
        for stored, reference in zip(found, expected, strict=True):
            assert stored.dtype == array.dtype
            np.testing.assert_allclose(stored, reference, rtol=1e-6 if stored.dtype.kind == "f" else 0)


@pytest.mark.parametrize("extent", [127, 128, 129, 513])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_real_chunk_and_shard_sizes(tmp_path: Path, extent: int, dtype: str) -> None:
    array = random_voxels((3, extent, 130), dtype)
    options = {
        "chunk_shape": Shape(128, 128, 128),
        "shard_shape": Shape(512, 512, 512),
        "memory_budget": 1 << 28,
    }
    written = write(array, tmp_path, voxel_size=VoxelSize(z=50, y=4, x=4), **options)
    assert written.levels[0].chunk_shape == (128, 128, 128)
    plan = small_plan(array, voxel_size=VoxelSize(z=50, y=4, x=4), **options)
    for stored, reference in zip(levels_of(written), reference_pyramid(array, plan), strict=True):
        np.testing.assert_array_equal(stored, reference)


@pytest.mark.parametrize("codec", [None, *RECIPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensorstore_and_zarr_python_read_the_same(tmp_path: Path, dtype: str, codec: str | None) -> None:
    written = write(random_voxels((9, 17, 12), dtype), tmp_path, codec=codec)
    for level, stored in enumerate(levels_of(written)):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path_of(written)}/{level}/"}}
        opened = tensorstore.open(spec).result()
        assert opened.domain.labels == ("z", "y", "x")
        np.testing.assert_array_equal(opened.read().result(), stored)


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_the_documents_are_ome_zarr_0_5(tmp_path: Path, kind: str) -> None:
    array = random_voxels((9, 20, 33), "uint16")
    size = VoxelSize(z=16, y=4, x=4)
    written = write(array, tmp_path, voxel_size=size, translation_nm=(10.0, 0.0, -2.0), kind=kind)
    image = Image.from_zarr(zarr.open_group(path_of(written), mode="r"))
    (multiscale,) = image.ome_attributes.multiscales
    assert image.ome_attributes.version == "0.5"
    assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [
        (name, "space", "nanometer") for name in "zyx"
    ]
    assert multiscale.name == "test"
    assert multiscale.type == {"image": "mean", "labels": "mode"}[kind]
    assert multiscale.metadata
    for level, dataset in zip(written.levels, multiscale.datasets, strict=True):
        scale, translation = dataset.coordinateTransformations
        assert tuple(scale.scale) == tuple(level.voxel_size)
        halves = [(v - v0) / 2 for v, v0 in zip(level.voxel_size, size, strict=True)]
        assert translation.translation == [10.0 + halves[0], halves[1], -2.0 + halves[2]]
        group = json.loads((path_of(written) / str(level.index) / "zarr.json").read_text())
        assert group["dimension_names"] == ["z", "y", "x"]


@settings(max_examples=15, deadline=None)
@given(budget=st.integers(6_000, 60_000), threads=st.sampled_from([1, 3]), granule=st.sampled_from([1, 3, 7]))
def test_bytes_do_not_depend_on_threads_memory_or_source_chunks(
    budget: int, threads: int, granule: int
) -> None:
    array = random_voxels((17, 20, 33), "uint16")
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        write(array, Path(one), threads=1)
        stored = Shape(granule, 5, 33)
        write(array, Path(other), threads=threads, memory_budget=budget, source_chunk=stored)
        assert hashes(Path(one)) == hashes(Path(other))


@pytest.mark.parametrize("dtype", ["float32", "uint32"])
def test_statistics_do_not_depend_on_threads_either(tmp_path: Path, dtype: str) -> None:
    array = random_voxels((17, 20, 33), dtype)
    write(array, tmp_path / "one", threads=1, memory_budget=8_000)
    write(array, tmp_path / "other", threads=3)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "other")


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_do_not_depend_on_how_many_slabs_are_held(tmp_path: Path, threads: int) -> None:
    array = random_voxels((19, 22, 35), "uint16")
    plan = small_plan(array, memory_budget=20_000, threads=threads)
    assert plan.levels[0].unit_count > 1
    written = []
    for held in (1, 2, 3):
        levels = tuple(replace(level, slabs_held=held) for level in plan.levels)
        place = LocalBlobs(tmp_path / str(held))
        box = BoundingBox.of_shape(array.shape)
        rechunk(ArrayVolume(array), box, replace(plan, levels=levels), place, name="test", progress=Silent())
        written.append(hashes(tmp_path / str(held)))
    assert written[0] == written[1] == written[2]


def test_a_box_of_the_source_is_written(tmp_path: Path) -> None:
    array = random_voxels((20, 20, 20), "uint8")
    box = BoundingBox.at((3, 5, 7), (10, 11, 12))
    part = array[box.slices]
    written = rechunk(
        ArrayVolume(array), box, small_plan(part), LocalBlobs(tmp_path), name="part", progress=Silent()
    )
    np.testing.assert_array_equal(levels_of(written)[0], part)


def test_the_finest_level_is_read_once(tmp_path: Path) -> None:
    source = ArrayVolume(random_voxels((17, 20, 33), "uint8"))
    box = BoundingBox.of_shape(source.shape)
    written = rechunk(
        source, box, small_plan(source.array), LocalBlobs(tmp_path), name="x", progress=Silent()
    )
    assert sum(read.shape.voxels for read in source.reads) == source.shape.voxels == written.bytes_read


def test_chunk_states_and_statistics(tmp_path: Path) -> None:
    array = np.ones((8, 8, 10), np.uint8)
    array[:4, :4, :4] = 0
    array[:4, :4, 8:] = 0
    array[7, 7, 7] = 200
    written = write(array, tmp_path)
    ledger = Ledger.read(LocalBlobs(tmp_path), written.ledger)
    assert ledger.row(0, (0, 0, 0)).state is ChunkState.FILL
    assert ledger.row(0, (0, 0, 2)).state is ChunkState.FILL
    assert ledger.row(0, (0, 0, 2)).valid_fraction == 0.5
    assert ledger.row(0, (1, 0, 2)).state is ChunkState.PADDED
    assert ledger.row(0, (1, 1, 1)).state is ChunkState.DATA
    # Padding is zero, but no voxel of this chunk is: only true voxels are measured.
    assert ledger.row(0, (1, 0, 2)).summary.min == 1
    assert written.statistics.count == array.size
    assert written.statistics.mean == pytest.approx(array.mean())
    np.testing.assert_array_equal(written.statistics.histogram, np.bincount(array.ravel(), minlength=256))
    assert sum(written.chunks.values()) == len(ledger.rows)


def test_a_volume_of_fill_has_no_shard(tmp_path: Path) -> None:
    written = write(np.zeros((9, 9, 9), np.uint8), tmp_path)
    assert not [path for path in path_of(written).rglob("*") if path.is_file() and path.name != "zarr.json"]
    assert written.chunks[ChunkState.DATA] == written.chunks[ChunkState.PADDED] == 0
    for stored in levels_of(written):
        assert not stored.any()


def test_negative_zero_is_data(tmp_path: Path) -> None:
    written = write(np.full((4, 4, 4), -0.0, np.float32), tmp_path)
    assert written.chunks[ChunkState.DATA] == 1
    assert np.signbit(levels_of(written)[0]).all()


def test_nan_and_infinity_survive(tmp_path: Path) -> None:
    array = np.zeros((5, 5, 5), np.float32)
    array[:4, :4, :4] = np.nan
    array[4, 4, 4] = np.inf
    written = write(array, tmp_path)
    np.testing.assert_array_equal(levels_of(written)[0], array)
    assert (written.statistics.nonfinite, written.statistics.max) == (65, 0)


def test_the_largest_float64_of_both_signs_have_statistics(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 12))
    top = np.finfo(np.float64).max
    array[0, 0, 0] = array[0, 0, 10] = -top
    array[:4, 4:] = top
    found = write(array, tmp_path).statistics
    assert (found.min, found.max) == (-top, top)
    assert top / 2 < found.p99 <= top
    assert found.p01 == pytest.approx(0, abs=1e-40)
    assert found.mean == pytest.approx(top * (190 / 768))
    assert found.std == pytest.approx(top * np.sqrt(194 / 768 - (190 / 768) ** 2))


def test_only_the_volume_and_the_ledger_remain(tmp_path: Path) -> None:
    write(random_voxels((17, 20, 33), "uint8"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"volume.ome.zarr", "ledger.parquet"}


def test_a_complete_volume_is_returned_at_once(tmp_path: Path) -> None:
    array = random_voxels((9, 9, 9), "uint8")
    first = write(array, tmp_path)
    broken = FailingVolume(array, AssertionError("read"), reads_allowed=0)
    box = BoundingBox.of_shape(array.shape)
    again = rechunk(broken, box, small_plan(array), LocalBlobs(tmp_path), name="test", progress=Silent())
    assert again.ledger_sha256 == first.ledger_sha256
    assert (again.units_done, again.bytes_read) == (0, 0)
    opened = stored_in(tmp_path)
    assert opened is not None
    assert opened.ledger.statistics == first.statistics
    assert stored_in(tmp_path / "elsewhere") is None


def test_a_source_that_fails_is_heard_and_leaves_nothing_visible(tmp_path: Path) -> None:
    array = random_voxels((17, 20, 33), "uint8")
    source = FailingVolume(array, UnsupportedFormat("Read page 3", "it is truncated"), reads_allowed=3)
    plan = small_plan(array, memory_budget=8_000, threads=1)
    with pytest.raises(UnsupportedFormat, match="page 3"):
        rechunk(
            source, BoundingBox.of_shape(array.shape), plan, LocalBlobs(tmp_path), name="x", progress=Silent()
        )
    assert stored_in(tmp_path) is None
    assert not list(tmp_path.rglob("zarr.json"))
    assert not list(tmp_path.rglob(".em-tmp-*"))


def test_a_full_disk_is_a_clear_error_and_the_rest_can_follow(tmp_path: Path, monkeypatch: Any) -> None:
    array = random_voxels((17, 20, 33), "uint8")
    real, calls = os.pwrite, []

    def pwrite(descriptor: int, payload: Any, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 150:
            raise OSError(28, "No space left on device")
        return int(real(descriptor, payload, offset))

    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", pwrite)
        with pytest.raises(StorageFailed, match="No space left"):
            write(array, tmp_path / "full", memory_budget=8_000, threads=1)
    assert stored_in(tmp_path / "full") is None
    assert not list(tmp_path.rglob(".em-tmp-*"))
    resumed = write(array, tmp_path / "full", memory_budget=8_000, threads=1)
    assert resumed.units_resumed > 0
    write(array, tmp_path / "clean")
    assert hashes(tmp_path / "full") == hashes(tmp_path / "clean")


def test_a_plan_that_does_not_fit_the_source_is_refused(tmp_path: Path) -> None:
    array = random_voxels((9, 9, 9), "uint8")
    box = BoundingBox.of_shape(array.shape)
    for source, asked in (
        (ArrayVolume(array.astype(np.int8)), box),
        (ArrayVolume(array), BoundingBox.at((0, 0, 0), (9, 9, 8))),
        (ArrayVolume(array), box.shifted((1, 0, 0))),
    ):
        with pytest.raises(InputRefused):
            rechunk(source, asked, small_plan(array), LocalBlobs(tmp_path), name="x", progress=Silent())


def test_what_fails_to_load_meanwhile_is_told_when_the_ledger_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = random_voxels((8, 9, 10), "uint8")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "em_pipeline.volumes.ledger_file", None)
        with pytest.raises(ImportError, match="ledger_file"):
            write(array, tmp_path)
    assert not (tmp_path / "ledger.parquet").exists()
    assert write(array, tmp_path).units_done == 0
