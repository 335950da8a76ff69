"""What a plan says before anything is written, against what is written then."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.plan_report import report
from em_pipeline.volumes.rechunk import rechunk
from em_pipeline.volumes.sampling import take_sample
from em_pipeline_tests.volumes.arrays import ArrayVolume
from em_pipeline_tests.volumes.written import small_plan, write


def array() -> NDArray[np.uint8]:
    z, _, x = np.mgrid[:40, :50, :60]
    noise = np.random.default_rng(0).integers(0, 9, z.shape)
    return (100 + 50 * np.sin(x / 9 + z / 5) + noise).astype(np.uint8)


def test_a_report_without_a_sample_says_what_is_not_known() -> None:
    plan = small_plan(array(), source_chunk=Shape(1, 50, 60), memory_budget=1 << 20)
    found = report(plan)
    assert (found.write_bytes, found.seconds, found.sample) == (None, None, None)
    assert found.voxel_bytes == 40 * 50 * 60
    assert found.amplification == found.read_bytes / found.voxel_bytes
    assert [level.halved for level in found.levels] == ["zyx", "zyx", "zyx", "zyx", ""]
    assert found.levels[0].chunks == 10 * 13 * 15
    assert found.requests.put > found.levels[0].shards
    # Level 0 leaves level 1's voxels, which are read while level 2's are written.
    assert found.scratch_bytes == 20 * 25 * 30 + 10 * 13 * 15
    assert str(found).startswith("plan: 5 levels, ")
    assert " KiB to read " in str(found)
    assert str(plan.threads) + " threads" in str(found)


def test_a_sample_foretells_what_is_written(tmp_path: Path) -> None:
    plan = small_plan(array())
    sample = take_sample(ArrayVolume(array()), BoundingBox.of_shape(array().shape), plan)
    found = report(plan, sample)
    written = write(array(), tmp_path)
    assert found.write_bytes is not None
    assert 0.5 < found.write_bytes / written.bytes_stored < 2
    assert found.seconds is not None
    assert found.seconds > 0


@pytest.mark.parametrize("codec", [None, "none"])
def test_padding_is_foretold_too(tmp_path: Path, codec: str | None) -> None:
    plane = array().reshape(1, 40 * 50, 60)
    plan = small_plan(
        plane,
        codec=codec,
        chunk_shape=Shape(64, 64, 64),
        shard_shape=Shape(64, 64, 64),
        memory_budget=1 << 28,
    )
    found = report(plan, take_sample(ArrayVolume(plane), BoundingBox.of_shape(plane.shape), plan))
    written = rechunk(
        ArrayVolume(plane), BoundingBox.of_shape(plane.shape), plan, LocalBlobs(tmp_path), name="thin",
        progress=Silent(),
    )  # fmt: skip
    assert found.write_bytes is not None
    assert 0.5 < found.write_bytes / written.bytes_stored < 2
    assert found.sample is not None
    assert found.seconds is not None
    # Less would be the time of the voxels alone.
    padding = sum(level.padding for level in plan.levels)
    assert found.seconds > padding / found.sample.padding_rate > 0


def test_a_sample_reads_few_planes_of_a_source_that_decodes_whole_ones() -> None:
    source = ArrayVolume(array(), chunk_shape=Shape(1, 50, 60))
    plan = small_plan(array(), source_chunk=source.chunk_shape)
    box = BoundingBox(start=Shape(0, 0, 0), stop=Shape(40, 50, 60))
    sample = take_sample(source, box, plan)
    assert sample.chunks == len(source.reads)
    assert sample.decoded_bytes == sum(read.shape.z for read in source.reads) * 50 * 60
    assert sample.voxel_bytes == sum(read.shape.voxels for read in source.reads)
    assert all(read.within(source.shape) for read in source.reads)


def test_a_sample_of_a_box_reads_inside_it() -> None:
    source = ArrayVolume(array())
    box = BoundingBox(start=Shape(3, 5, 7), stop=Shape(11, 12, 21))
    plan = small_plan(array()[box.slices])
    take_sample(source, box, plan)
    for read in source.reads:
        assert all(a >= b for a, b in zip(read.start, box.start, strict=True))
        assert read.within(box.stop)
