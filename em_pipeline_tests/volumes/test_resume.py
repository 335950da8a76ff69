"""A run that ends early, however it ends, is continued without writing anything twice."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_pipeline.domain.errors import Busy, ChunkCorrupt
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Silent
from em_pipeline.volumes.rechunk import open_written, rechunk
from em_pipeline_tests.volumes.arrays import FailingVolume
from em_pipeline_tests.volumes.written import hashes, random_voxels, small_plan, write

ARRAY = random_voxels((17, 20, 33), "uint16")
SCARCE = {"memory_budget": 9_000, "threads": 1}

# Ends itself, with no chance to clean up, at the n-th time it touches a name below the folder.
KILLED = """
import os, signal, sys
from pathlib import Path
folder, events_left = Path(sys.argv[1]), int(sys.argv[2])
from em_pipeline_tests.volumes.test_resume import ARRAY, SCARCE
from em_pipeline_tests.volumes.written import write
def hook(event, args):
    global events_left
    if event in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir") and str(folder) in str(args[0]):
        events_left -= 1
        if events_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
write(ARRAY, folder, **SCARCE)
"""


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.left = 0

    def start(self, step: str, total: int, unit: str) -> None:
        self.left += total

    def advance(self, step: str, amount: int) -> None:
        self.left -= amount

    def note(self, message: str) -> None:
        self.notes.append(message)


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Identity and time of every shard, by path: both change when it is written again."""
    found = folder.rglob("volume.ome.zarr/*/c/*/*/*")
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def finished_shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Those written before the newest record of a finished unit: units follow one another."""
    records = [path.stat().st_mtime_ns for path in folder.rglob("work/*/unit-*.npz")]
    return {path: marks for path, marks in shards(folder).items() if records and marks[1] <= max(records)}


@settings(max_examples=10, deadline=None)
@given(reads=st.lists(st.integers(0, 40), max_size=4), threads=st.sampled_from([1, 3]))
def test_runs_that_fail_add_up_to_the_same_bytes(reads: list[int], threads: int) -> None:
    plan = small_plan(ARRAY, memory_budget=20_000, threads=threads)
    box = BoundingBox.of_shape(ARRAY.shape)
    with TemporaryDirectory() as clean, TemporaryDirectory() as broken:
        write(ARRAY, Path(clean))
        for allowed in reads:
            source = FailingVolume(ARRAY, RuntimeError("unplugged"), reads_allowed=allowed)
            before = finished_shards(Path(broken))
            try:
                rechunk(source, box, plan, Path(broken), name="test", progress=Silent())
            except RuntimeError:
                assert open_written(Path(broken)) is None
            assert before.items() <= shards(Path(broken)).items()
        write(ARRAY, Path(broken), memory_budget=20_000, threads=threads)
        assert hashes(Path(clean)) == hashes(Path(broken))


@pytest.mark.integration
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_runs_add_up_to_the_same_bytes(tmp_path: Path, seed: int) -> None:
    write(ARRAY, tmp_path / "clean", **SCARCE)
    folder = tmp_path / "killed"
    rng = np.random.default_rng(seed)
    for _ in range(4):
        before = finished_shards(folder)
        events = str(int(rng.integers(2, 120)))
        run = subprocess.run([sys.executable, "-c", KILLED, str(folder), events], check=False, timeout=60)
        assert run.returncode in (0, -signal.SIGKILL)
        if run.returncode == 0:
            break
        assert open_written(folder) is None
        assert before.items() <= shards(folder).items()
    before = finished_shards(folder)
    write(ARRAY, folder, **SCARCE)
    assert before.items() <= shards(folder).items()
    assert hashes(folder) == hashes(tmp_path / "clean")


def test_what_was_finished_is_counted_and_not_read_again(tmp_path: Path) -> None:
    plan = small_plan(ARRAY, **SCARCE)
    box = BoundingBox.of_shape(ARRAY.shape)
    units = list(plan.levels[0].units())
    reads = sum(len(unit.slabs) for unit in units[:2])
    source = FailingVolume(ARRAY, RuntimeError("unplugged"), reads_allowed=reads + 1)
    with pytest.raises(RuntimeError):
        rechunk(source, box, plan, tmp_path, name="test", progress=Silent())
    notes = Notes()
    source = FailingVolume(ARRAY, AssertionError(), reads_allowed=10**6)
    written = rechunk(source, box, plan, tmp_path, name="test", progress=notes)
    assert written.units_resumed == 2
    assert written.units_done == sum(level.unit_count for level in plan.levels) - 2
    assert written.bytes_read == sum(unit.box.shape.voxels for unit in units[2:]) * ARRAY.itemsize
    assert any("finished before" in note for note in notes.notes)
    assert notes.left == 0


def test_another_plan_starts_afresh_and_says_so(tmp_path: Path) -> None:
    source = FailingVolume(ARRAY, RuntimeError("unplugged"), reads_allowed=10)
    box = BoundingBox.of_shape(ARRAY.shape)
    with pytest.raises(RuntimeError):
        rechunk(source, box, small_plan(ARRAY, **SCARCE), tmp_path / "a", name="test", progress=Silent())
    notes = Notes()
    source = FailingVolume(ARRAY, AssertionError(), reads_allowed=10**6)
    plan = small_plan(ARRAY, codec="none")
    written = rechunk(source, box, plan, tmp_path / "a", name="test", progress=notes)
    assert written.units_resumed == 0
    assert any("afresh" in note for note in notes.notes)
    write(ARRAY, tmp_path / "b", codec="none")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    # The same holds for a folder that is complete.
    write(ARRAY, tmp_path / "a", codec="zstd-3")
    write(ARRAY, tmp_path / "c", codec="zstd-3")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "c")


def test_lost_scratch_is_never_taken_for_zeros(tmp_path: Path) -> None:
    source = FailingVolume(ARRAY, RuntimeError("unplugged"), reads_allowed=20)
    plan, box = small_plan(ARRAY, **SCARCE), BoundingBox.of_shape(ARRAY.shape)
    with pytest.raises(RuntimeError):
        rechunk(source, box, plan, tmp_path, name="test", progress=Silent())
    (tmp_path / "work" / "level-1.raw").unlink()
    with pytest.raises(ChunkCorrupt, match="start this volume afresh"):
        write(ARRAY, tmp_path, **SCARCE)


def test_a_second_process_is_told_to_wait(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            write(ARRAY, tmp_path)
    finally:
        os.close(descriptor)
    write(ARRAY, tmp_path)
