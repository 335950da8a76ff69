"""Dask workers on machines of their own, as their spools have it; raw files and volume are in a bucket."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import tifffile
from distributed import LocalCluster

from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Progress
from em_pipeline.formats.open import open_volume
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.volumes.compute import Compute, ThisProcess
from em_pipeline.volumes.distributed import DaskCluster
from em_pipeline.volumes.rechunk import rechunk
from em_pipeline_tests.ingest.spooled import spool_folder, uploaded
from em_pipeline_tests.volumes.test_distributed import await_true
from em_pipeline_tests.volumes.test_resume import Notes
from em_pipeline_tests.volumes.written import random_voxels, small_plan

pytestmark = pytest.mark.integration

ARRAY = random_voxels((16, 16, 8), "uint16")
BOX = BoundingBox.of_shape(ARRAY.shape)
PLAN = small_plan(ARRAY, memory_budget=9_000, threads=1)


@dataclass(frozen=True)
class Machine:
    """A worker process with a home and a spool of its own."""

    process: subprocess.Popen[bytes]
    spool: Path

    def raw_files(self, suffix: str) -> set[str]:
        return {path.name for path in self.spool.rglob(f"*{suffix}")}


@dataclass(frozen=True)
class Machines:
    scheduler: str
    machines: tuple[Machine, Machine]


@contextmanager
def machine(scheduler: str, folder: Path) -> Iterator[Machine]:
    environ = os.environ | {"EM_HOME": str(folder), "EM_SPOOL": str(folder / "spool")}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler]
    command += ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "1GiB"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            yield Machine(process, folder / "spool")
        finally:
            process.kill()


@pytest.fixture
def machines(tmp_path: Path, s3_credentials: dict[str, str]) -> Iterator[Machines]:
    with ExitStack() as stack:
        cluster = stack.enter_context(
            LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=50)
        )
        address = cluster.scheduler_address
        first, second = (stack.enter_context(machine(address, tmp_path / name)) for name in "ab")
        await_true(lambda: len(cluster.scheduler.workers) == 2)
        yield Machines(address, (first, second))


class Killing(Notes):
    """Has a process killed once the first units are written."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__()
        self.process = process

    def advance(self, step: str, amount: int) -> None:
        super().advance(step, amount)
        self.process.kill()


def payloads(place: ObjectBlobs) -> dict[str, bytes]:
    return {name: place.read(name) for name in place.names()}


def test_a_worker_with_a_spool_of_its_own_is_killed_and_the_bytes_are_the_same(
    machines: Machines, tmp_path: Path, s3_blobs: ObjectBlobs
) -> None:
    folder = spool_folder(tmp_path / "here")
    for z, plane in enumerate(ARRAY):
        tifffile.imwrite(folder / f"p{z:02}.tif", plane, photometric="minisblack")
    source = uploaded(open_volume(sorted(folder.iterdir())), folder, s3_blobs.below("raw"))
    written: dict[str, dict[str, bytes]] = {}

    def write(name: str, compute: Compute, progress: Progress) -> None:
        place = s3_blobs.below(name)
        rechunk(source, BOX, PLAN, place, name="test", progress=progress, compute=compute)
        written[name] = payloads(place)

    write("alone", ThisProcess(), Notes())
    shutil.rmtree(tmp_path / "here")  # nobody else reads there
    doomed, other = machines.machines
    notes = Killing(doomed.process)
    with DaskCluster(machines.scheduler) as dask:
        write("together", dask, notes)
    assert written["together"] == written["alone"]
    assert notes.left == 0
    assert sum("fetches raw files" in note for note in notes.notes) == 2
    assert any("went away" in note for note in notes.notes)
    assert doomed.raw_files(".tif")
    assert other.raw_files(".tif") <= {f"p{z:02}.tif" for z in range(16)}
