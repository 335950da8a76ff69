"""What every reader must do, whatever its format: types, byte orders, other processes, bytes and memory."""

import multiprocessing
import pickle
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline_tests.formats.helpers import ramp
from em_pipeline_tests.formats.samples import LOSSY, SAMPLES
from em_pipeline_tests.formats.test_bytes_read import COUNTERS, bytes_read

SHAPE = Shape(9, 37, 50)


def noise(shape: tuple[int, int, int], dtype: str = "u1") -> Any:
    """Voxels that no codec makes smaller."""
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_type_and_byte_order_reads_as_numpy_has_it(tmp_path: Path, name: str) -> None:
    sample, random = SAMPLES[name], np.random.default_rng(0)
    for dtype, order in product(sample.dtypes, sample.orders):
        folder = tmp_path / f"{dtype}{'be' if order == '>' else 'le'}"
        folder.mkdir()
        expected = extremes(dtype)
        volume = sample.write(folder, expected.astype(np.dtype(dtype).newbyteorder(order)))
        assert volume.dtype == np.dtype(dtype)
        assert volume.dtype.isnative
        for box in (BoundingBox.of_shape(SHAPE), *(any_box(random) for _ in range(3))):
            np.testing.assert_array_equal(volume.read(box), expected[box.slices])
            check_strided(volume, box, expected[box.slices])


def extremes(dtype: str) -> Any:
    voxels = ramp(SHAPE, dtype)
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    voxels[0, 0, :2] = limits.min, limits.max
    return voxels


def any_box(random: np.random.Generator) -> BoundingBox:
    ends = [sorted(random.choice(n + 1, 2, replace=False).tolist()) for n in SHAPE]
    return BoundingBox(start=Shape(*(a for a, _ in ends)), stop=Shape(*(b for _, b in ends)))


def check_strided(volume: LazyVolume, box: BoundingBox, expected: Any) -> None:
    """Voxels go into a part of a larger array, and nowhere beside it."""
    wider = np.zeros([n + 2 for n in box.shape], volume.dtype)
    part = wider[1:-1, 1:-1, 1:-1]
    assert volume.read(box, part) is part
    np.testing.assert_array_equal(part, expected)
    part[...] = 0
    assert not wider.any()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """Another process that shares nothing with this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def read_whole(pickled: bytes) -> tuple[Any, int]:
    volume = pickle.loads(pickled)
    return volume.read(BoundingBox.of_shape(volume.shape)), len(volume.missing)


@pytest.mark.parametrize("name", [*SAMPLES, *LOSSY])
def test_a_volume_reads_the_same_in_another_process(
    tmp_path: Path, elsewhere: ProcessPoolExecutor, name: str
) -> None:
    sample = {**SAMPLES, **LOSSY}[name]
    volume = sample.write(tmp_path, ramp(SHAPE, sample.dtypes[0]))
    untouched = pickle.dumps(volume)
    here = volume.read(BoundingBox.of_shape(volume.shape)), len(volume.missing)
    for pickled in (untouched, pickle.dumps(volume)):
        voxels, missing = elsewhere.submit(read_whole, pickled).result(60)
        np.testing.assert_array_equal(voxels, here[0])
        assert missing == here[1]


@pytest.mark.skipif(not COUNTERS.exists(), reason="the system does not count the bytes read")
@pytest.mark.parametrize("name", SAMPLES)
def test_a_pass_in_slabs_reads_each_byte_once(tmp_path: Path, name: str) -> None:
    """Counted by the operating system; headers and indexes that a read needs are allowed beside it."""
    sample = SAMPLES[name]
    volume = sample.write(tmp_path, noise(Shape(16, 128, 256), sample.dtypes[0]))
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    slabs = list(BoundingBox.of_shape(volume.shape).tiles((8, *volume.shape[1:])))
    out = np.empty(slabs[0].shape, volume.dtype)
    volume.read(BoundingBox.at((0, 0, 0), (1, 1, 1)))  # whatever is opened once
    before = bytes_read()
    for slab in slabs:
        volume.read(slab, out)
    assert bytes_read() - before < 1.05 * stored + 16_000 * len(slabs)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_read_takes_no_more_memory_than_it_says(tmp_path: Path, name: str) -> None:
    """As far as Python sees it: libraries of C take memory of their own for one strip, tile or chunk."""
    sample = SAMPLES[name]
    volume = sample.write(tmp_path, noise(Shape(16, 256, 256), sample.dtypes[0]))
    box = BoundingBox.of_shape(volume.shape)
    out = np.empty(box.shape, volume.dtype)
    tracemalloc.start()
    try:
        volume.read(box, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < volume.scratch_bytes + 300_000
    assert volume.scratch_bytes < 100 << 20
