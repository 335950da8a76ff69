"""Whoever writes the units, the bytes are the same: threads, processes, Dask workers that may end badly."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from dask import config as dask_config
from distributed import LocalCluster
from numpy.typing import NDArray

from em_pipeline.domain.errors import EmError, InputRefused, NotFound, ServiceUnavailable, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Progress, Silent
from em_pipeline.ingest.workspace import open_compute
from em_pipeline.settings import load_settings
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.compute import Job
from em_pipeline.volumes.distributed import DaskCluster
from em_pipeline.volumes.hand import bytes_needed, check_memory, packed
from em_pipeline.volumes.memory import of_process
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit
from em_pipeline.volumes.rechunk import WrittenVolume, rechunk
from em_pipeline.volumes.scheduler_link import difference
from em_pipeline.volumes.unit_queue import Bounds
from em_pipeline.volumes.workspace import Workspace
from em_pipeline_tests.volumes.arrays import ArrayVolume, FailingVolume
from em_pipeline_tests.volumes.test_resume import ARRAY, SCARCE, Notes
from em_pipeline_tests.volumes.written import hashes, random_voxels, small_plan, write

BOX = BoundingBox.of_shape(ARRAY.shape)
PLAN = small_plan(ARRAY, **SCARCE)
UNITS = sum(level.unit_count for level in PLAN.levels)
CHANGES = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir")
FORKING = get_context("forkserver")  # each process is a copy of one that has imported everything
FORKING.set_forkserver_preload(["em_pipeline_tests.volumes.test_distributed"])


class DeadlyVolume(ArrayVolume):
    """Kills the process that has read `reads` times from it, unless `lives` are used up in `folder`."""

    def __init__(self, array: NDArray[Any], folder: Path, reads: int, lives: int = 1) -> None:
        super().__init__(array)
        self.folder, self.limit, self.lives = folder, reads, lives

    def read(self, box: BoundingBox, out: NDArray[Any] | None = None) -> NDArray[Any]:
        if len(self.reads) >= self.limit:
            for life in range(self.lives):
                try:
                    (self.folder / f"died-{life}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().read(box, out)


class StoppingVolume(ArrayVolume):
    """Stops the process that first has read `reads` times from it, as a machine that hangs."""

    def __init__(self, array: NDArray[Any], folder: Path, reads: int) -> None:
        super().__init__(array)
        self.folder, self.limit = folder, reads

    def read(self, box: BoundingBox, out: NDArray[Any] | None = None) -> NDArray[Any]:
        if len(self.reads) >= self.limit and self._is_first():
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().read(box, out)

    def _is_first(self) -> bool:
        try:
            with (self.folder / "stopped").open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return False
        return True


class HereOnly(ArrayVolume):
    """A source whose files only the process that opened it has."""

    def __init__(self, array: NDArray[Any]) -> None:
        super().__init__(array)
        self.process = os.getpid()

    def read(self, box: BoundingBox, out: NDArray[Any] | None = None) -> NDArray[Any]:
        if os.getpid() != self.process:
            raise NotFound("Open slice_0001.tif", "there is no such file")
        return super().read(box, out)


class FirstComer(ArrayVolume):
    """A source that the first process to ask has, once the others were refused."""

    def __init__(self, array: NDArray[Any], folder: Path) -> None:
        super().__init__(array)
        self.folder = folder

    def read(self, box: BoundingBox, out: NDArray[Any] | None = None) -> NDArray[Any]:
        mine = self.folder / f"has-it-{os.getpid()}"
        if not list(self.folder.glob("has-it-*")):
            mine.touch()
        elif not mine.exists():
            raise NotFound("Open slice_0001.tif", "there is no such file")
        else:
            await_true((self.folder / "refused").exists)
        return super().read(box, out)


class Elsewhere(LocalBlobs):
    """A folder that other machines have, too, but another one."""

    def __reduce__(self) -> Any:
        return LocalBlobs, (self.root / "another",)


class Interrupting(Notes):
    """Ctrl-C, when the first units are written."""

    def advance(self, step: str, amount: int) -> None:
        raise KeyboardInterrupt


class Growing(Notes):
    """Has a first worker started when there is none, and a second one when the first is at work."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        super().__init__()
        self.cluster, self.folder = cluster, folder

    def note(self, message: str) -> None:
        super().note(message)
        if "waiting" in message:
            self.cluster.scale(1)
        elif "writes, with" in message:
            self.cluster.scale(2)
        elif "left out" in message:
            (self.folder / "refused").touch()


class TwoProcesses:
    """Half of the units of each level in each of two processes, which know nothing of each other."""

    def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        halves = [units[::2], units[1::2]]
        with ProcessPoolExecutor(2, FORKING) as pool:
            for done in [pool.submit(job.write, level, half, Silent()) for half in halves]:
                done.result(120)


def killed_after(events: int, folder: Path) -> None:
    """Write the volume in a process that ends without a chance to clean up, unless it ends before."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal events
        if event in CHANGES and str(folder) in str(args[0]):
            events -= 1
            if events == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    write(ARRAY, folder, **SCARCE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        memory_limit="1GiB",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("clean")
    write(ARRAY, folder, **SCARCE)
    return hashes(folder)


@pytest.fixture
def dask(cluster: LocalCluster) -> Iterator[DaskCluster]:
    with DaskCluster(cluster.scheduler_address) as dask:
        yield dask


def rechunked(
    dask: DaskCluster, place: LocalBlobs, source: ArrayVolume, progress: Progress | None = None
) -> WrittenVolume:
    return rechunk(source, BOX, PLAN, place, name="test", progress=progress or Silent(), compute=dask)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_show_in_the_bytes(tmp_path: Path, clean: dict[str, str], threads: int) -> None:
    write(ARRAY, tmp_path, memory_budget=20_000, threads=threads)
    assert hashes(tmp_path) == clean


@pytest.mark.integration
def test_two_processes_write_the_same_bytes(tmp_path: Path, clean: dict[str, str]) -> None:
    rechunk(
        ArrayVolume(ARRAY),
        BOX,
        PLAN,
        LocalBlobs(tmp_path),
        name="test",
        progress=Silent(),
        compute=TwoProcesses(),
    )
    assert hashes(tmp_path) == clean


@pytest.mark.integration
def test_a_run_killed_ten_times_ends_with_the_same_bytes(tmp_path: Path, clean: dict[str, str]) -> None:
    rng = np.random.default_rng(7)
    for _ in range(10):
        run = FORKING.Process(target=killed_after, args=(int(rng.integers(20, 60)), tmp_path))
        run.start()
        run.join(60)
        assert run.exitcode == -signal.SIGKILL
    notes = Notes()
    written = rechunk(ArrayVolume(ARRAY), BOX, PLAN, LocalBlobs(tmp_path), name="test", progress=notes)
    assert 0 < written.units_resumed < UNITS
    assert notes.left == 0
    assert hashes(tmp_path) == clean


@pytest.mark.integration
def test_workers_write_the_same_bytes_wherever_the_run_was_started(
    dask: DaskCluster, tmp_path: Path, clean: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    notes = Notes()
    written = rechunked(dask, LocalBlobs(Path("here")), ArrayVolume(ARRAY), notes)
    assert hashes(tmp_path / "here") == clean
    assert written.units_done == UNITS
    assert notes.left == 0
    assert notes.notes == ["2 Dask workers write, with 4 threads in all"]


@pytest.mark.integration
def test_a_worker_killed_in_the_middle_loses_nothing(
    dask: DaskCluster, tmp_path: Path, clean: dict[str, str]
) -> None:
    notes = Notes()
    source = DeadlyVolume(ARRAY, tmp_path, reads=4)
    rechunked(dask, LocalBlobs(tmp_path / "v"), source, notes)
    assert (tmp_path / "died-0").exists()
    assert hashes(tmp_path / "v") == clean
    assert notes.left == 0
    assert any("went away" in note for note in notes.notes)


@pytest.mark.integration
def test_a_worker_that_hangs_holds_nobody_and_may_come_back(
    cluster: LocalCluster, tmp_path: Path, clean: dict[str, str]
) -> None:
    notes = Notes()
    impatient = Bounds(late_s=1.0)
    with DaskCluster(cluster.scheduler_address, bounds=impatient) as dask:
        rechunked(dask, LocalBlobs(tmp_path / "v"), StoppingVolume(ARRAY, tmp_path, reads=4), notes)
        stopped = int((tmp_path / "stopped").read_text())
        assert psutil.Process(stopped).status() == psutil.STATUS_STOPPED
        assert hashes(tmp_path / "v") == clean
        assert notes.left == 0
        # Others may have been late, too, on a busy machine.
        assert any("longer than is usual" in note for note in notes.notes)
        assert not any("went away" in note for note in notes.notes)
        os.kill(stopped, signal.SIGCONT)
        rechunked(dask, LocalBlobs(tmp_path / "w"), ArrayVolume(ARRAY), notes)
    assert hashes(tmp_path / "v") == hashes(tmp_path / "w") == clean


@pytest.mark.integration
@pytest.mark.slow
def test_where_every_worker_hangs_dask_starts_them_anew(tmp_path: Path, clean: dict[str, str]) -> None:
    """By `worker-ttl`, of which the scheduler takes at least ten heartbeats: 5 s."""
    notes = Notes()
    with (
        dask_config.set({"distributed.scheduler.worker-ttl": "2s"}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        DaskCluster(cluster.scheduler_address) as dask,
    ):
        rechunked(dask, LocalBlobs(tmp_path / "v"), StoppingVolume(ARRAY, tmp_path, reads=4), notes)
    assert hashes(tmp_path / "v") == clean
    assert any("went away" in note for note in notes.notes)


@pytest.mark.integration
def test_an_error_arrives_as_it_is_and_what_was_finished_is_kept(
    dask: DaskCluster, tmp_path: Path, clean: dict[str, str]
) -> None:
    error = UnsupportedFormat("Read a.tif", "it is truncated", "Copy it again")
    with pytest.raises(UnsupportedFormat) as raised:
        rechunked(dask, LocalBlobs(tmp_path), FailingVolume(ARRAY, error, reads_allowed=12))
    assert raised.value.args == error.args
    assert "on the Dask worker tcp://" in raised.value.__notes__[0]
    written = rechunked(dask, LocalBlobs(tmp_path), ArrayVolume(ARRAY))
    assert written.units_resumed > 0
    assert hashes(tmp_path) == clean


@pytest.mark.integration
def test_an_interrupted_run_leaves_no_tasks_behind(
    dask: DaskCluster, cluster: LocalCluster, tmp_path: Path, clean: dict[str, str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        rechunked(dask, LocalBlobs(tmp_path), ArrayVolume(ARRAY), Interrupting())
    await_true(lambda: not cluster.scheduler.tasks)
    rechunked(dask, LocalBlobs(tmp_path), ArrayVolume(ARRAY))
    assert hashes(tmp_path) == clean


@pytest.mark.integration
def test_what_a_worker_cannot_reach_is_refused_before_anything_is_written(
    dask: DaskCluster, tmp_path: Path
) -> None:
    with pytest.raises(InputRefused, match=r"Dask worker tcp://.*slice_0001\.tif.*no such file.*raw files"):
        rechunked(dask, LocalBlobs(tmp_path / "a"), HereOnly(ARRAY))
    with pytest.raises(InputRefused, match=r"Dask worker tcp://.*not seen from here.*same store"):
        rechunked(dask, Elsewhere(tmp_path / "b"), ArrayVolume(ARRAY))
    assert not list(tmp_path.rglob("c/*/*/*"))


@pytest.mark.integration
def test_workers_may_come_late_and_those_of_no_use_are_left_out(
    tmp_path: Path, clean: dict[str, str]
) -> None:
    with (
        LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        DaskCluster(cluster.scheduler_address) as dask,
    ):
        notes = Growing(cluster, tmp_path)
        rechunked(dask, LocalBlobs(tmp_path / "v"), FirstComer(ARRAY, tmp_path), notes)
    assert [note.split(" tcp")[0] for note in notes.notes] == [
        "waiting 60 s for a Dask worker",
        "1 Dask worker writes, with 1 thread in all",
        "Have the Dask worker",
    ]
    assert "slice_0001.tif: there is no such file; it is left out" in notes.notes[-1]
    assert notes.left == 0
    assert hashes(tmp_path / "v") == clean


@pytest.mark.integration
@pytest.mark.slow
def test_a_unit_that_ends_every_worker_is_named(cluster: LocalCluster, tmp_path: Path) -> None:
    source = DeadlyVolume(ARRAY, tmp_path, reads=2, lives=10)
    with (
        DaskCluster(cluster.scheduler_address, bounds=Bounds(deaths=1)) as dask,
        pytest.raises(ServiceUnavailable, match=r"unit \d of level 0: 2 Dask workers ended"),
    ):
        rechunked(dask, LocalBlobs(tmp_path / "v"), source)


@pytest.mark.integration
def test_a_scheduler_without_workers_and_one_that_is_gone(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    began = time.monotonic()
    with DaskCluster(address) as dask, pytest.raises(ServiceUnavailable, match="EM_DASK_SCHEDULER"):
        rechunked(dask, LocalBlobs(tmp_path), ArrayVolume(ARRAY))
    assert time.monotonic() - began < 50  # for a worker it would wait a minute
    command = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--dashboard-address",
        "127.0.0.1:0",
        "--host",
        address,
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as scheduler:

        class Unplugging(Silent):
            def note(self, message: str) -> None:
                if unplug:
                    scheduler.kill()
                    killed.append(time.monotonic())

        try:
            await_true(lambda: listens(port))
            unplug = False
            with DaskCluster(address, patience_s=1) as dask:
                with pytest.raises(ServiceUnavailable, match=r"there was none for 1 s.*dask worker"):
                    rechunked(dask, LocalBlobs(tmp_path), ArrayVolume(ARRAY))
                unplug = True
                killed: list[float] = []
                with pytest.raises(ServiceUnavailable, match="does not answer"):
                    rechunked(dask, LocalBlobs(tmp_path), ArrayVolume(ARRAY), Unplugging())
                assert time.monotonic() - killed[0] < 50
        finally:
            scheduler.kill()


def listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def await_true(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def job_of(source: ArrayVolume, folder: Path, plan: RechunkPlan = PLAN) -> Job:
    box = BoundingBox.of_shape(source.shape)
    return Job(source, box, plan, Workspace(LocalBlobs(folder)), (None,) * len(plan.levels))


def test_a_worker_too_small_for_the_voxels_in_flight_is_refused(tmp_path: Path) -> None:
    array = random_voxels((64, 64, 64), "uint8")
    plan = small_plan(array, memory_budget=1 << 20)
    source = ArrayVolume(array)
    needed = bytes_needed(job_of(source, tmp_path, plan), 2)
    assert needed == of_process(plan.bytes_in_flight(2), 2)
    source.scratch_bytes = 1000  # which a plan for it counts, and nobody else
    assert bytes_needed(job_of(source, tmp_path, plan), 2) == needed
    plan = small_plan(array, memory_budget=1 << 20, read_scratch=1000)
    assert bytes_needed(job_of(source, tmp_path, plan), 2) == needed + 2000
    check_memory(needed, 2, limit=None, usable=0.8)
    check_memory(needed, 2, limit=512 << 20, usable=0.8)
    with pytest.raises(InputRefused, match=r"2 threads within 224 MiB.*--memory-limit"):
        check_memory(needed, 2, limit=280 << 20, usable=0.8)
    assert plan.bytes_in_flight(2) <= 1 << 20


def test_a_source_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    source = ArrayVolume(ARRAY, metadata={"lock": threading.Lock()})
    job = job_of(source, tmp_path)
    with pytest.raises(InputRefused, match=r"ArrayVolume.*EM_COMPUTE=threads"):
        packed(job)


def test_other_versions_are_named() -> None:
    here = {"python": "3.11.2.final.0", "em-pipeline": "1", "numpy": "2.3.1"}
    assert difference(here, {**here, "python": "3.11.9.final.0"}) == ""
    there = {"python": "3.12.0.final.0", "em-pipeline": None, "numpy": "2.3.0"}
    assert difference(here, there) == (
        "python 3.12 (here 3.11), em-pipeline is missing (here 1), numpy 2.3.0 (here 2.3.1)"
    )


def test_settings_choose_the_scheduler_and_do_not_ask_it_yet() -> None:
    chosen = {"EM_COMPUTE": "dask", "EM_DASK_SCHEDULER": "tcp://nowhere.invalid:1"}
    with open_compute(load_settings(Path("/"), chosen).settings) as compute:
        assert isinstance(compute, DaskCluster)
        assert compute.scheduler == "tcp://nowhere.invalid:1"


def subclasses(of: type[EmError]) -> list[type[EmError]]:
    return [of, *(deeper for child in of.__subclasses__() for deeper in subclasses(child))]


@pytest.mark.parametrize("kind", subclasses(EmError), ids=lambda kind: kind.__name__)
def test_errors_cross_processes_with_their_parts(kind: type[EmError]) -> None:
    error = pickle.loads(pickle.dumps(kind("Read a", "it is gone", "Look for it")))
    assert type(error) is kind
    assert (error.tried, error.found, error.to_do) == ("Read a", "it is gone", "Look for it")
    assert str(error) == "Read a: it is gone. Look for it"
