import math
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.volumes.memory import for_voxels
from em_pipeline.volumes.plan import CHUNK, LevelPlan, RechunkPlan
from em_pipeline.volumes.tiling import clipped, grid
from em_pipeline_tests.volumes.planned import plan_with

SHAPES = st.builds(Shape, *[st.integers(1, 70)] * 3)
SIZES = st.sampled_from([1.0, 4.0, 5.0, 8.0, 30.0, 50.0])


def plan(shape: Shape, voxel_size: tuple[float, float, float] = (8, 8, 8), **options: Any) -> RechunkPlan:
    z, y, x = voxel_size
    options = {"source_chunk": Shape(1, 1, shape.x), "memory_budget": 1 << 30, "threads": 2} | options
    return plan_with(shape, options.pop("dtype", "uint8"), VoxelSize(z=z, y=y, x=x), **options)


def test_a_small_volume_is_one_chunk_and_one_level() -> None:
    (level,) = plan(Shape(100, 128, 1)).levels
    assert (level.chunk_shape, level.shard_shape, level.factors) == ((128,) * 3, (128,) * 3, (1, 1, 1))


def test_shards_are_clipped_to_whole_chunks() -> None:
    assert plan(Shape(129, 600, 512)).levels[0].shard_shape == (256, 512, 512)


def test_anisotropic_volumes_are_halved_towards_isotropy() -> None:
    levels = plan(Shape(100, 4096, 4096), (40, 4, 4)).levels
    assert [level.factors for level in levels] == [
        (1, 2, 2),
        (1, 2, 2),
        (1, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
        (1, 1, 1),
    ]
    assert levels[3].voxel_size == VoxelSize(z=40, y=32, x=32)


def test_translations_keep_the_outer_corner_in_place() -> None:
    levels = plan(Shape(300, 300, 300), (8, 4, 4), translation_nm=(100.0, 20.0, 2.0)).levels
    corners = {
        tuple(t - v / 2 for t, v in zip(lv.translation_nm, lv.voxel_size, strict=True)) for lv in levels
    }
    assert corners == {(96.0, 18.0, 0.0)}


@given(shape=SHAPES, size=st.tuples(SIZES, SIZES, SIZES))
def test_pyramids_end_in_one_chunk_and_halve_only_what_they_may(shape: Shape, size: Any) -> None:
    levels = plan(shape, size, chunk_shape=Shape(4, 4, 4), shard_shape=Shape(8, 8, 8)).levels
    for level, coarser in pairwise(levels):
        assert coarser.shape == tuple(
            math.ceil(n / f) for n, f in zip(level.shape, level.factors, strict=True)
        )
        assert max(level.factors) == 2
        smallest = min(v for v, n in zip(level.voxel_size, level.shape, strict=True) if n > 1)
        for factor, extent, voxel in zip(level.factors, level.shape, level.voxel_size, strict=True):
            assert (factor == 2) == (extent > 1 and voxel <= math.sqrt(2) * smallest)
    assert max(levels[-1].shape) <= 4
    assert all(max(level.shape) > 4 for level in levels[:-1])


@given(
    shape=SHAPES,
    stored=st.builds(Shape, *[st.integers(1, 70)] * 3),
    budget=st.integers(1_000, 200_000),
    chunks=st.sampled_from([Shape(8, 8, 8), Shape(16, 16, 16), Shape(12, 12, 12)]),
)
def test_units_and_slabs_tile_every_level_in_the_order_of_the_shards(
    shape: Shape, stored: Shape, budget: int, chunks: Shape
) -> None:
    made = plan(
        shape,
        source_chunk=stored,
        memory_budget=budget,
        threads=1,
        chunk_shape=Shape(4, 4, 4),
        shard_shape=chunks,
    )
    for level in made.levels:
        for unit in level.units():
            order_in_unit = [chunk for chunk, _ in unit.chunks(level.chunk_shape)]
            assert order_in_unit == sorted(order_in_unit)
        seen = np.zeros(level.shape, int)
        order: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for unit in level.units():
            assert all(a % s == 0 for a, s in zip(unit.box.start, level.shard_shape, strict=True))
            for slab in unit.slabs:
                held = grid(slab.shape, level.chunk_shape).voxels * level.tile_shape.voxels
                assert level.slabs_held * held < level.held.on(1) <= budget
                for tile in slab.tiles(level.chunk_shape):
                    seen[tile.slices] += 1
                    shard = tuple(a // s for a, s in zip(tile.start, level.shard_shape, strict=True))
                    order.setdefault(shard, []).append(tuple(tile.start))
        assert (seen == 1).all()
        assert all(places == sorted(places) for places in order.values())
        assert len(list(level.units())) == level.unit_count


def decoded_per_voxel(level: LevelPlan) -> float:
    return level.bytes_to_read / level.shape.voxels


def test_rows_are_read_whole() -> None:
    level = plan(Shape(512, 2000, 3000), memory_budget=600 << 20).levels[0]
    assert level.slab_shape.x >= 3000
    assert decoded_per_voxel(level) == 1


def test_planes_that_fit_are_decoded_once() -> None:
    shape = Shape(512, 1000, 1000)
    level = plan(shape, source_chunk=Shape(1, 1000, 1000), memory_budget=600 << 20).levels[0]
    assert level.slab_shape.y >= 1000
    assert decoded_per_voxel(level) == 1


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_compressed_planes_of_2048_voxels_are_decoded_once_by_default(threads: int) -> None:
    shape = Shape(512, 2048, 2048)
    voxels, threads = for_voxels(1 << 30, threads)
    stored = Shape(1, 2048, 2048)
    made = plan(shape, source_chunk=stored, memory_budget=voxels, threads=threads, read_scratch=8 << 20)
    level = made.levels[0]
    assert decoded_per_voxel(level) == 1
    assert (level.slab_shape, level.slabs_held) == ((128, 2048, 2048), 1)


@pytest.mark.parametrize(
    ("dtype", "extent", "stored", "threads", "slab", "held"),
    [
        ("uint8", 1024, (1, 1, 1024), 2, (128, 128, 1024), 3),
        ("uint8", 1024, (64, 64, 64), 2, (128, 128, 1024), 3),
        ("uint8", 1024, (1, 1024, 1024), 2, (128, 1024, 1024), 1),
        # Few chunks for each thread: better twice the memory than threads that wait.
        ("uint8", 1024, (1, 1024, 1024), 8, (128, 1024, 1024), 2),
        ("int16", 1024, (1, 1024, 1024), 2, (128, 1024, 1024), 1),
        ("int16", 2560, (1, 1, 2560), 2, (128, 128, 2560), 2),
        ("float32", 512, (64, 64, 64), 2, (128, 256, 512), 2),
        ("uint64", 512, (64, 64, 64), 2, (128, 256, 512), 2),
    ],
)
def test_small_slabs_are_held_by_threes_and_large_ones_alone(
    dtype: str, extent: int, stored: tuple[int, int, int], threads: int, slab: tuple[int, int, int], held: int
) -> None:
    level = plan(
        Shape(512, extent, extent), dtype=dtype, source_chunk=Shape(*stored), threads=threads
    ).levels[0]
    assert (clipped(level.slab_shape, level.shape), level.slabs_held) == (slab, held)


@given(
    shape=st.builds(Shape, *[st.integers(1, 3000)] * 3),
    stored=st.builds(Shape, *[st.integers(1, 3000)] * 3),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    budget=st.integers(150, 3000),
    threads=st.integers(1, 16),
)
def test_a_slab_more_is_held_only_where_it_is_modest_or_one_is_not_work_enough(
    shape: Shape, stored: Shape, dtype: str, budget: int, threads: int
) -> None:
    try:
        made = plan(shape, dtype=dtype, source_chunk=stored, memory_budget=budget << 20, threads=threads)
    except InputRefused:
        return
    for level in made.levels:
        chunks = grid(clipped(level.slab_shape, level.shape), CHUNK).voxels
        slab = chunks * level.tile_shape.voxels
        enough = 16 * made.threads * CHUNK.voxels
        modest = level.slabs_held * slab * made.dtype.itemsize <= 128 << 20
        assert level.slabs_held == 1 or modest or slab < enough
        assert level.slabs_held < 3 or modest


def test_planes_that_do_not_fit_are_decoded_as_seldom_as_memory_allows() -> None:
    shape = Shape(512, 5000, 5000)
    scarce = plan(shape, source_chunk=Shape(1, 5000, 5000), memory_budget=900 << 20).levels[0]
    ample = plan(shape, source_chunk=Shape(1, 5000, 5000), memory_budget=2 << 30).levels[0]
    assert 1 < decoded_per_voxel(ample) < decoded_per_voxel(scarce) <= 5


def test_too_little_memory_is_refused_with_what_is_needed() -> None:
    with pytest.raises(InputRefused, match=r"chunks of 2\.0 MiB need 22 MiB.*EM_MEMORY_BUDGET=\d+MiB"):
        plan(Shape(512, 512, 512), memory_budget=10 << 20)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 3000), st.integers(1, 3000)),
    dtype=st.sampled_from(["uint8", "uint64", "float32"]),
    sink=st.sampled_from([0, 64 << 20]),
)
def test_the_memory_that_a_refusal_asks_for_is_enough(
    shape: tuple[int, int, int], dtype: str, sink: int
) -> None:
    means: dict[str, Any] = {"dtype": dtype, "threads": 1, "sink_bytes": sink}
    try:
        plan(Shape(*shape), memory_budget=1 << 20, **means)
    except InputRefused as refusal:
        enough = re.fullmatch(r"Give (\d+) MiB \(EM_MEMORY_BUDGET=\1MiB\)", refusal.to_do)
        assert enough
        plan(Shape(*shape), memory_budget=for_voxels(int(enough[1]) << 20, 1)[0], **means)
        with pytest.raises(InputRefused):
            plan(Shape(*shape), memory_budget=for_voxels((int(enough[1]) - 1) << 20, 1)[0], **means)


def test_wide_ids_on_many_cores_take_fewer_threads_than_memory() -> None:
    crowded = plan(Shape(512, 512, 512), dtype="uint64", kind="labels", threads=64)
    assert crowded.threads == 3
    assert crowded.levels[0].slab_shape.voxels > CHUNK.voxels
    assert plan(Shape(512, 512, 512), threads=16).threads == 16


@pytest.mark.parametrize(("count", "shapes"), [(1, 1), (2, 2), (5, 3)])
def test_a_pyramid_of_as_many_levels_as_asked_for(count: int, shapes: int) -> None:
    levels = plan(Shape(4, 2, 1), level_count=count).levels
    assert len(levels) == count
    assert len({level.shape for level in levels}) == shapes
    assert levels[-1].factors == (1, 1, 1)
    assert len(plan(Shape(512, 512, 512), level_count=1).levels) == 1


def test_digests_tell_plans_apart_but_not_their_threads() -> None:
    shape, box = Shape(300, 300, 300), BoundingBox.of_shape((300, 300, 300))
    base = plan(shape).digest(name="a", box=box)
    assert plan(shape, threads=1, memory_budget=90 << 20).digest(name="a", box=box) == base
    others = {
        plan(shape).digest(name="b", box=box),
        plan(shape).digest(name="a", box=box.shifted((1, 0, 0))),
        plan(shape, codec="none").digest(name="a", box=box),
        plan(shape, kind="labels").digest(name="a", box=box),
        plan(shape, (4, 4, 4)).digest(name="a", box=box),
        plan(shape, dtype="int8").digest(name="a", box=box),
    }
    assert len(others | {base}) == 7


def test_work_goes_on_with_other_threads_and_memory_where_units_are_the_same() -> None:
    shape, box = Shape(600, 1000, 1000), BoundingBox.of_shape((600, 1000, 1000))
    alone, many = plan(shape, threads=1), plan(shape, threads=8)
    assert alone.levels[0].slab_shape != many.levels[0].slab_shape
    assert alone.work_digest(name="a", box=box) == many.work_digest(name="a", box=box)
    planes = plan(shape, source_chunk=Shape(1, 1000, 1000))
    ample = plan(shape, source_chunk=Shape(1, 1000, 1000), threads=8)
    assert (planes.levels[0].slabs_held, ample.levels[0].slabs_held) == (1, 2)
    assert ample.work_digest(name="a", box=box) == planes.work_digest(name="a", box=box)
    assert planes.levels[0].unit_shape != alone.levels[0].unit_shape
    assert planes.work_digest(name="a", box=box) != alone.work_digest(name="a", box=box)
