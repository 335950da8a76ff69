"""Several processes at one unit: one that a scheduler took for dead, and its successor."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from em_pipeline.domain.blobs import BlobSink
from em_pipeline.domain.errors import Busy, ChunkCorrupt
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.compute import Job
from em_pipeline.volumes.plan import RechunkPlan
from em_pipeline.volumes.rechunk import rechunk
from em_pipeline.volumes.resume import is_finished
from em_pipeline.volumes.workspace import Workspace
from em_pipeline_tests.volumes.arrays import ArrayVolume, FailingVolume
from em_pipeline_tests.volumes.written import hashes, random_voxels, small_plan, write

ARRAY = random_voxels((16, 12, 20), "uint8")
BOX = BoundingBox.of_shape(ARRAY.shape)
PLAN = small_plan(ARRAY)


class SlowVolume(ArrayVolume):
    """Says that it is asked for voxels, and gives them when it may."""

    def __init__(self, array: NDArray[Any]) -> None:
        super().__init__(array)
        self.asked = threading.Event()
        self.may = threading.Event()

    def read(self, box: BoundingBox, out: NDArray[Any] | None = None) -> NDArray[Any]:
        self.asked.set()
        assert self.may.wait(60)
        return super().read(box, out)


def begun(folder: Path, plan: RechunkPlan, source: ArrayVolume) -> Job:
    workspace = Workspace(LocalBlobs(folder))
    workspace.begin(plan.work_digest(name="test", box=BOX), Silent())
    return Job(source, BOX, plan, workspace, (None,) * len(plan.levels))


def write_finest(job: Job) -> None:
    finest = job.plan.levels[0]
    job.write(finest, list(finest.units()), Silent())


@contextmanager
def taken_for_dead(folder: Path) -> Iterator[tuple[SlowVolume, "Future[None]"]]:
    """An attempt that has begun all units of the finest level when its successor comes."""
    source = SlowVolume(ARRAY)
    with ThreadPoolExecutor(1) as pool:
        attempt = pool.submit(write_finest, begun(folder, PLAN, source))
        try:
            assert source.asked.wait(60)
            yield source, attempt
        finally:
            source.may.set()


def test_a_late_attempt_spoils_nothing_of_a_running_volume(tmp_path: Path) -> None:
    with taken_for_dead(tmp_path) as (source, attempt):
        job = begun(tmp_path, PLAN, ArrayVolume(ARRAY))
        write_finest(job)
        done = volume_and_scratch(tmp_path)
        source.may.set()
        attempt.result(60)
    assert volume_and_scratch(tmp_path) == done
    finest = PLAN.levels[0]
    assert all(is_finished(PLAN, finest, job.workspace, unit) for unit in finest.units())


def test_a_late_attempt_leaves_nothing_in_a_complete_volume(tmp_path: Path) -> None:
    write(ARRAY, tmp_path / "clean")
    with taken_for_dead(tmp_path / "late") as (source, attempt):
        write(ARRAY, tmp_path / "late")
        source.may.set()
        with pytest.raises(Busy, match="it is over"):
            attempt.result(60)
    assert hashes(tmp_path / "late") == hashes(tmp_path / "clean")


def test_a_late_attempt_by_another_plan_publishes_nothing(tmp_path: Path) -> None:
    other = small_plan(ARRAY, codec="none")
    write_finest(begun(tmp_path / "clean", other, ArrayVolume(ARRAY)))
    with taken_for_dead(tmp_path / "late") as (source, attempt):
        write_finest(begun(tmp_path / "late", other, ArrayVolume(ARRAY)))
        source.may.set()
        with pytest.raises(Busy, match="another plan"):
            attempt.result(60)
    assert hashes(tmp_path / "late") == hashes(tmp_path / "clean")


def test_an_attempt_that_fails_takes_nothing_published_with_it(tmp_path: Path) -> None:
    write_finest(begun(tmp_path, PLAN, ArrayVolume(ARRAY)))
    done = hashes(tmp_path)
    with pytest.raises(RuntimeError):
        write_finest(begun(tmp_path, PLAN, FailingVolume(ARRAY, RuntimeError("unplugged"), reads_allowed=1)))
    assert hashes(tmp_path) == done


def test_a_record_that_another_plan_s_attempt_left_is_not_believed(tmp_path: Path) -> None:
    write_finest(begun(tmp_path, PLAN, ArrayVolume(ARRAY)))
    workspace = Workspace(LocalBlobs(tmp_path))
    record = tmp_path / "work" / "level-0" / "unit-000000.npz"
    late = record.read_bytes()
    other = small_plan(ARRAY, codec="none")
    workspace.begin(other.work_digest(name="test", box=BOX), Silent())
    record.parent.mkdir(parents=True)
    record.write_bytes(late)
    with pytest.raises(ChunkCorrupt, match="checksum"):
        workspace.read_record(0, 0)


def test_what_a_killed_helper_left_goes_with_the_end_of_the_work(tmp_path: Path) -> None:
    class KilledHelper(Silent):
        def advance(self, step: str, amount: int) -> None:
            left.append(LocalBlobs(tmp_path / "helped").create("never committed"))

    left: list[BlobSink] = []
    place = LocalBlobs(tmp_path / "helped")
    rechunk(ArrayVolume(ARRAY), BOX, PLAN, place, name="test", progress=KilledHelper())
    write(ARRAY, tmp_path / "clean")
    assert left
    assert hashes(tmp_path / "helped") == hashes(tmp_path / "clean")
    for sink in left:
        sink.abandon()


def test_a_shard_that_turns_out_to_be_empty_goes(tmp_path: Path) -> None:
    write_finest(begun(tmp_path, PLAN, ArrayVolume(ARRAY)))
    assert list((tmp_path / "volume.ome.zarr").rglob("c/*/*/*"))
    write_finest(begun(tmp_path, PLAN, ArrayVolume(np.zeros_like(ARRAY))))
    assert not list((tmp_path / "volume.ome.zarr").rglob("c/*/*/*"))


def volume_and_scratch(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(folder).items() if not name.endswith(".npz")}
