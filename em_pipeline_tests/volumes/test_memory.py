"""What a plan says it holds, what fits a budget, and what a process really takes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.volumes.memory import (
    GRANULE,
    MOST_SLABS,
    PROCESS_BYTES,
    SHARDS_OF_A_UNIT,
    for_voxels,
    granule,
    of_process,
    spans,
)
from em_pipeline.volumes.tiling import clipped, grid
from em_pipeline_tests.volumes.planned import plan_with

ISOTROPIC = VoxelSize(z=8, y=8, x=8)
EXTENTS = st.one_of(st.integers(1, 300), st.integers(1, 50_000))
SHAPES = st.builds(Shape, EXTENTS, EXTENTS, EXTENTS)
MIB = 1 << 20


@settings(deadline=None, max_examples=60)
@given(
    shape=SHAPES,
    stored=SHAPES,
    dtype=st.sampled_from(["uint8", "int16", "uint32", "float32", "uint64", "float64"]),
    kind=st.sampled_from(["image", "labels"]),
    budget=st.integers(200, 30_000),
    threads=st.integers(1, 64),
    scratch=st.integers(0, 64 * MIB),
    sink=st.sampled_from([0, 4096, 64 * MIB]),
)
def test_a_plan_holds_no_more_than_it_was_given(
    shape: Shape, stored: Shape, dtype: str, kind: str, budget: int, threads: int, scratch: int, sink: int
) -> None:
    given_bytes, given_threads = budget * MIB, threads
    try:
        voxels, threads = for_voxels(given_bytes, threads)
        plan = plan_with(
            shape, dtype, ISOTROPIC, kind="labels" if kind == "labels" and dtype[0] == "u" else "image",
            source_chunk=stored, memory_budget=voxels, threads=threads, read_scratch=scratch, sink_bytes=sink,
        )  # fmt: skip
    except InputRefused as error:
        assert "(EM_MEMORY_BUDGET" in error.to_do  # noqa: PT017 - most budgets are enough
        return
    assert plan.threads <= threads <= given_threads
    assert of_process(plan.bytes_held, plan.threads) <= given_bytes
    itemsize = plan.dtype.itemsize
    for level in plan.levels:
        chunks = grid(clipped(level.slab_shape, level.shape), level.chunk_shape)
        slab = chunks.voxels * level.tile_shape.voxels
        shards = math.prod(
            math.ceil(min(u, n) / s)
            for u, n, s in zip(level.unit_shape, level.shape, level.shard_shape, strict=True)
        )
        assert shards <= SHARDS_OF_A_UNIT
        sinks = 2 * shards * min(sink, level.shard_shape.voxels * itemsize)
        assert 1 <= level.slabs_held <= MOST_SLABS
        needed = level.slabs_held * slab * itemsize + sinks + 3 * plan.threads * (128**3 * itemsize)
        assert needed <= level.held.on(plan.threads)


@given(slab=SHAPES, stored=SHAPES, itemsize=st.sampled_from([1, 2, 4, 8]))
def test_a_granule_is_whole_source_chunks_of_about_a_mebibyte(
    slab: Shape, stored: Shape, itemsize: int
) -> None:
    piece = granule(slab, stored, itemsize)
    smallest = Shape(*map(min, stored, slab))
    assert all(a <= p <= s for a, p, s in zip(smallest, piece, slab, strict=True))
    assert piece.voxels * itemsize <= max(GRANULE, smallest.voxels * itemsize)


@given(
    start=st.integers(0, 500),
    length=st.integers(1, 500),
    step=st.integers(1, 300),
    stored=st.integers(1, 200),
    origin=st.integers(0, 300),
)
def test_spans_cut_only_between_chunks_of_the_source(
    start: int, length: int, step: int, stored: int, origin: int
) -> None:
    cuts = list(spans(start, start + length, step, stored, origin))
    assert cuts[0][0] == start
    assert cuts[-1][1] == start + length
    assert all(a < b and b - a <= max(step, stored) for a, b in cuts)
    assert all((b + origin) % stored == 0 for _, b in cuts[:-1])


def test_a_process_that_leaves_nothing_for_voxels_is_refused() -> None:
    with pytest.raises(InputRefused, match=r"takes .* MiB before it holds a voxel.*EM_MEMORY_BUDGET"):
        for_voxels(PROCESS_BYTES, 1)


def test_planes_of_40_000_voxels_stay_in_small_units_where_they_come_in_tiles() -> None:
    shape = Shape(2000, 40_000, 40_000)
    voxels, threads = for_voxels(1 << 30, 8)
    tiles, rows = (
        plan_with(
            shape,
            "uint8",
            ISOTROPIC,
            source_chunk=Shape(*chunk),
            memory_budget=voxels,
            threads=threads,
        ).levels[0]
        for chunk in ((1, 256, 256), (1, 1, 40_000))
    )
    assert tiles.bytes_to_read == shape.voxels
    assert tiles.unit_shape == (512, 512, 2048)
    assert rows.bytes_to_read <= 8 * shape.voxels


@pytest.mark.parametrize(
    "shape", [(1, 40_000, 40_000), (40_000, 1, 40_000), (40_000, 40_000, 1), (2, 9_000, 9_000)]
)
def test_a_thin_volume_is_read_in_few_slabs_that_hold_no_padding(shape: tuple[int, int, int]) -> None:
    voxels, threads = for_voxels(1 << 30, 2)
    plan = plan_with(
        Shape(*shape), "uint8", ISOTROPIC, source_chunk=Shape(1, 1, shape[2]), memory_budget=voxels,
        threads=threads,
    )  # fmt: skip
    level = plan.levels[0]
    slab = math.prod(map(min, level.slab_shape, shape))
    # As much work as eight whole chunks, in no more memory than whole chunks take.
    assert 8 * 128**3 <= slab <= 64 * MIB
    assert level.slabs_held * slab < plan.bytes_held <= level.slabs_held * slab + 40 * MIB
    assert level.unit_count <= 200


WIDE = """
import resource, sys
from pathlib import Path
import numpy as np
from em_pipeline_tests.volumes.written import small_plan, write

resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))
array = np.arange(8 * 32 * 1024, dtype="uint32").reshape(8, 32, 1024)
level = small_plan(array, memory_budget=64 << 20).levels[0]
assert level.unit_count == 4 and level.unit_shape == (8, 8, 128 * 8), level
write(array, Path(sys.argv[1]), memory_budget=64 << 20)
"""


def test_the_shards_of_two_of_the_widest_units_are_open_at_once(tmp_path: Path) -> None:
    """Two descriptors each, 128 of them in a unit, and fewer files than a process may usually open."""
    done = subprocess.run(
        [sys.executable, "-c", WIDE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_blob_that_holds_much_back_makes_units_of_few_shards() -> None:
    def shards(sink_bytes: int) -> int:
        plan = plan_with(
            Shape(512, 512, 40_000), "uint8", ISOTROPIC, source_chunk=Shape(1, 1, 40_000), threads=2,
            memory_budget=2 << 30, sink_bytes=sink_bytes,
        )  # fmt: skip
        return plan.levels[0].unit_shape.x // 512

    assert shards(64 * MIB) < shards(0)


@pytest.mark.parametrize(("depth", "tile"), [(400, 128**3), (20, 20 * 128**2)])
def test_parts_that_are_asked_for_ahead_are_counted(depth: int, tile: int) -> None:
    """Of a disk one part, which is at most half a chunk; of an object store what two chunks are made from."""

    def each(requests_at_once: int) -> list[int]:
        plan = plan_with(
            Shape(depth, 1000, 1000), "uint16", VoxelSize(z=40, y=8, x=8), source_chunk=Shape(1, 1, 1000),
            memory_budget=1 << 30, threads=2, requests_at_once=requests_at_once,
        )  # fmt: skip
        return [level.held.each for level in plan.levels]

    disk, bucket = each(0), each(16)
    assert disk[0] == bucket[0]
    assert bucket[1] - disk[1] == 2 * 2 * tile - min(2 * tile, 128**3)


RUN = """
import json, sys
from pathlib import Path
import numpy as np
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.memory import Means, for_voxels, of_process
from em_pipeline.volumes.plan import plan_rechunk
from em_pipeline.volumes.rechunk import rechunk

class Made:
    missing, claims, metadata, translation_nm = (), (), {}, (0.0, 0.0, 0.0)
    def __init__(self, shape, dtype, chunk):
        self.shape, self.dtype, self.decode_shape = shape, dtype, chunk
    def read(self, box, out):
        out.reshape(-1)[...] = np.arange(out.size) >> 6
        return out

shape, dtype, chunk, budget, folder = json.loads(sys.argv[1])
voxels, threads = for_voxels(budget, 2)
source = Made(Shape(*shape), np.dtype(dtype), Shape(*chunk))
size = VoxelSize(z=8, y=8, x=8)
plan = plan_rechunk(source.shape, dtype, size, source_chunk=source.decode_shape,
                    means=Means(voxels, threads))
box = BoundingBox.of_shape(source.shape)
rechunk(source, box, plan, LocalBlobs(Path(folder)), name="t", progress=Silent())
# Not ru_maxrss, which a process inherits from the one that started it.
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10
print(json.dumps([peak, of_process(plan.bytes_held, plan.threads)]))
"""


def measured(shape: Shape, dtype: str, chunk: Shape, budget: int, folder: str) -> tuple[int, int]:
    """Peak resident bytes of a process that rechunks made-up voxels, and what its plan says."""
    said = json.dumps([shape, dtype, chunk, budget, folder])
    done = subprocess.run([sys.executable, "-c", RUN, said], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, planned = json.loads(done.stdout)
    return peak, planned


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
def test_a_process_takes_less_than_its_plan_says_and_no_more_for_more_planes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    peaks = []
    for depth in (256, 1024):
        folder = str(tmp_path_factory.mktemp("volume"))
        peak, planned = measured(Shape(depth, 512, 512), "uint8", Shape(1, 1, 512), 320 * MIB, folder)
        assert peak <= planned <= 320 * MIB
        peaks.append(peak)
    assert max(peaks) <= 1.1 * min(peaks)
    folder = str(tmp_path_factory.mktemp("volume"))
    # Planes that are compressed whole: a slab of 128 MiB, which is held alone.
    peak, planned = measured(Shape(256, 1024, 1024), "uint8", Shape(1, 1024, 1024), 1 << 30, folder)
    assert peak <= planned <= 420 * MIB
    assert peak <= 300_000_000
    folder = str(tmp_path_factory.mktemp("volume"))
    peak, planned = measured(Shape(128, 256, 512), "float32", Shape(64, 64, 64), 512 * MIB, folder)
    assert peak <= planned <= 512 * MIB
