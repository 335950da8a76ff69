"""A run that ends early, however it ends, is continued without writing anything twice."""

import fcntl
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_pipeline.domain.blobs import Run
from em_pipeline.domain.errors import Busy, ChunkCorrupt
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Progress, Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes import resume
from em_pipeline.volumes.compute import Job, ThisProcess
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline.volumes.pyramid_check import coarser_faults
from em_pipeline.volumes.rechunk import WrittenVolume, rechunk
from em_pipeline.volumes.scratch import check_scratch
from em_pipeline.volumes.workspace import UnitRecord, Workspace
from em_pipeline_tests.volumes.arrays import ArrayVolume, FailingVolume
from em_pipeline_tests.volumes.written import (
    CHUNK,
    SHARD,
    hashes,
    random_voxels,
    small_plan,
    stored_in,
    write,
)

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
    """Those of units that have a record, which names the chunks of the unit."""
    volume = folder / "volume.ome.zarr"
    finished = set()
    for record in folder.rglob("work/*/unit-*.npz"):
        with np.load(io.BytesIO(record.read_bytes()[:-4])) as arrays:
            for level, *chunk in arrays["rows"][["level", "z", "y", "x"]].tolist():
                place = (c * k // s for c, k, s in zip(chunk, CHUNK, SHARD, strict=True))
                finished.add(str(volume.joinpath(str(level), "c", *map(str, place))))
    return {path: marks for path, marks in shards(folder).items() if path in finished}


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
                rechunk(source, box, plan, LocalBlobs(Path(broken)), name="test", progress=Silent())
            except RuntimeError:
                assert stored_in(Path(broken)) is None
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
        assert stored_in(folder) is None
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
        rechunk(source, box, plan, LocalBlobs(tmp_path), name="test", progress=Silent())
    notes = Notes()
    source = FailingVolume(ARRAY, AssertionError(), reads_allowed=10**6)
    written = rechunk(source, box, plan, LocalBlobs(tmp_path), name="test", progress=notes)
    assert written.units_resumed == 2
    assert written.units_done == sum(level.unit_count for level in plan.levels) - 2
    assert written.bytes_read == sum(unit.box.shape.voxels for unit in units[2:]) * ARRAY.itemsize
    assert any("finished before" in note for note in notes.notes)
    assert notes.left == 0


def test_another_plan_starts_afresh_and_says_so(tmp_path: Path) -> None:
    source = FailingVolume(ARRAY, RuntimeError("unplugged"), reads_allowed=10)
    box = BoundingBox.of_shape(ARRAY.shape)
    with pytest.raises(RuntimeError):
        rechunk(
            source,
            box,
            small_plan(ARRAY, **SCARCE),
            LocalBlobs(tmp_path / "a"),
            name="test",
            progress=Silent(),
        )
    notes = Notes()
    source = FailingVolume(ARRAY, AssertionError(), reads_allowed=10**6)
    plan = small_plan(ARRAY, codec="none")
    written = rechunk(source, box, plan, LocalBlobs(tmp_path / "a"), name="test", progress=notes)
    assert written.units_resumed == 0
    assert any("afresh" in note for note in notes.notes)
    write(ARRAY, tmp_path / "b", codec="none")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    # The same holds for a folder that is complete.
    write(ARRAY, tmp_path / "a", codec="zstd-3")
    write(ARRAY, tmp_path / "c", codec="zstd-3")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "c")


def stopped(folder: Path, *, level: int) -> None:
    """A run that ends in the first unit of `level`, recorded unless it is the only one: others wait."""
    units = small_plan(ARRAY, **SCARCE).levels[level].unit_count
    with pytest.MonkeyPatch.context() as patched:
        real = Workspace.write_record

        def write_record(self: Workspace, at: int, unit: int, record: UnitRecord) -> None:
            if at < level or units > 1:
                real(self, at, unit, record)
            if at == level:
                raise RuntimeError("unplugged")

        patched.setattr(Workspace, "write_record", write_record)
        with pytest.raises(RuntimeError):
            write(ARRAY, folder, **SCARCE)


def resumed(folder: Path, clean: Path) -> tuple[WrittenVolume, Notes]:
    """What a second run makes of `folder`; the bytes must be those of a run that nothing befell."""
    notes = Notes()
    source = ArrayVolume(ARRAY)
    box = BoundingBox.of_shape(ARRAY.shape)
    written = rechunk(
        source, box, small_plan(ARRAY, **SCARCE), LocalBlobs(folder), name="test", progress=notes
    )
    write(ARRAY, clean, **SCARCE)
    assert hashes(folder) == hashes(clean)
    assert coarser_faults(written.volume, LocalBlobs(folder), written.ledger, sample=10**6, seed="") == []
    assert notes.left == 0
    assert "pickle" not in " ".join(notes.notes)
    return written, notes


def zero_half(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))


def flip_first(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_a_zip(path: Path) -> None:
    path.write_bytes(b"not a zip" * 30)


def other_arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, rows=np.arange(3))


def swap_with_next(path: Path) -> None:
    path.write_bytes(path.with_name("unit-000001.npz").read_bytes())


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("damage", [zero_half, truncate, empty, Path.unlink])
def test_damaged_scratch_is_never_taken_for_voxels(
    tmp_path: Path, damage: Callable[[Path], None], level: int
) -> None:
    stopped(tmp_path / "a", level=level)
    damage(tmp_path / "a" / "work" / f"scratch-{level - 1}" / "unit-000000.raw")
    _, notes = resumed(tmp_path / "a", tmp_path / "b")
    assert any("done again" in note and f"scratch-{level - 1}" in note for note in notes.notes)


def test_only_the_units_whose_scratch_changed_are_done_again(tmp_path: Path) -> None:
    stopped(tmp_path / "a", level=1)
    units = small_plan(ARRAY, **SCARCE).levels[0].unit_count
    flip_first(tmp_path / "a" / "work" / "scratch-0" / "unit-000001.raw")
    written, notes = resumed(tmp_path / "a", tmp_path / "b")
    assert written.units_resumed == units  # all but one of level 0, and one of level 1
    assert any("level 0: 1 finished unit is done again" in note for note in notes.notes)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def flip_in_index(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])


@pytest.mark.parametrize(
    ("damage", "stopped_at"), [(truncate, 0), (Path.unlink, 1), (lengthen, 0), (flip_in_index, 0)]
)
def test_a_unit_whose_shard_is_not_what_was_written_is_done_again(
    tmp_path: Path, damage: Callable[[Path], None], stopped_at: int
) -> None:
    stopped(tmp_path / "a", level=stopped_at)
    shard = min(finished_shards(tmp_path / "a"))
    damage(Path(shard))
    written, notes = resumed(tmp_path / "a", tmp_path / "b")
    where = Path(shard).relative_to(tmp_path / "a" / "volume.ome.zarr")
    assert any("level 0: 1 finished unit is done again" in n and f"{where} of" in n for n in notes.notes)
    units = small_plan(ARRAY, **SCARCE).levels[0].unit_count
    assert written.units_resumed == (units if stopped_at else 0)


def test_a_coarser_shard_is_made_again_where_what_it_was_made_from_is_gone(tmp_path: Path) -> None:
    stopped(tmp_path / "a", level=2)
    shard = next(path for path in finished_shards(tmp_path / "a") if "/volume.ome.zarr/1/" in path)
    truncate(Path(shard))
    _, notes = resumed(tmp_path / "a", tmp_path / "b")
    assert any("level 1: 1 finished unit is done again" in note for note in notes.notes)


class Between(ThisProcess):
    """Does something to a file of the work when level 1 is about to be written."""

    def __init__(self, path: Path, damage: Callable[[Path], None]) -> None:
        self.path = path
        self.damage = damage

    def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        if level.index == 1:
            self.damage(self.path)
        super().run(job, level, units, progress)


@pytest.mark.parametrize(
    ("name", "damage", "found"),
    [
        ("scratch-0/unit-000001.raw", flip_first, "are not those that were written"),
        ("scratch-0/unit-000001.raw", truncate, "it ends before byte"),
        ("scratch-0/unit-000001.raw", Path.unlink, "it is missing"),
        ("level-0/unit-000001.npz", Path.unlink, "the record of the unit is missing"),
    ],
)
def test_scratch_that_changes_within_a_run_is_never_taken_for_voxels(
    tmp_path: Path, name: str, damage: Callable[[Path], None], found: str
) -> None:
    box, plan, place = BoundingBox.of_shape(ARRAY.shape), small_plan(ARRAY, **SCARCE), tmp_path / "a"
    between = Between(place / "work" / name, damage)
    with pytest.raises(ChunkCorrupt, match=rf"unit-000001.*{found}.*Run the same again"):
        rechunk(
            ArrayVolume(ARRAY),
            box,
            plan,
            LocalBlobs(place),
            name="test",
            progress=Silent(),
            compute=between,
        )
    written, _ = resumed(place, tmp_path / "b")
    assert written.bytes_read == plan.levels[0].unit(1).box.shape.voxels * ARRAY.itemsize


def test_scratch_is_looked_at_some_parts_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, level=1)
    really, asked = LocalBlobs.read_runs, list[Run]()

    def noted(self: LocalBlobs, runs: Iterable[Run], held: int) -> Iterator[bytes]:
        asked.extend(kept := list(runs))
        return really(self, kept, held)

    monkeypatch.setattr(LocalBlobs, "read_runs", noted)
    checked = []

    def counted(*of: Any) -> None:
        before = len(asked)
        check_scratch(*of)
        checked.append(len(asked) - before)

    monkeypatch.setattr(resume, "check_scratch", counted)
    monkeypatch.setattr(resume, "_AT_ONCE", 1)
    write(ARRAY, tmp_path, **SCARCE)
    # One request for each finished unit: all of level 0, and the first of level 1.
    assert checked == [1] * (small_plan(ARRAY, **SCARCE).levels[0].unit_count + 1)


def test_sound_scratch_is_kept(tmp_path: Path) -> None:
    stopped(tmp_path / "a", level=1)
    written, notes = resumed(tmp_path / "a", tmp_path / "b")
    assert written.bytes_read == 0
    assert not any("again" in note for note in notes.notes)


def test_a_unit_to_be_repeated_is_not_done_until_it_is(tmp_path: Path) -> None:
    stopped(tmp_path / "a", level=1)
    zero_half(tmp_path / "a" / "work" / "scratch-0" / "unit-000000.raw")
    source = FailingVolume(ARRAY, RuntimeError("unplugged"), reads_allowed=1)
    plan, box = small_plan(ARRAY, **SCARCE), BoundingBox.of_shape(ARRAY.shape)
    with pytest.raises(RuntimeError):
        rechunk(source, box, plan, LocalBlobs(tmp_path / "a"), name="test", progress=Silent())
    resumed(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("damage", [truncate, empty, not_a_zip, other_arrays, flip_first, swap_with_next])
@pytest.mark.parametrize("stopped_at", [1, 2])
def test_a_damaged_record_counts_as_not_done(
    tmp_path: Path, damage: Callable[[Path], None], stopped_at: int
) -> None:
    stopped(tmp_path / "a", level=stopped_at)
    damage(tmp_path / "a" / "work" / "level-0" / "unit-000000.npz")
    written, notes = resumed(tmp_path / "a", tmp_path / "b")
    assert any("level 0: 1 finished unit is done again" in note for note in notes.notes)
    assert 0 < written.bytes_read < ARRAY.nbytes


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"{}"])
def test_work_that_does_not_say_what_it_is_starts_afresh(tmp_path: Path, text: bytes) -> None:
    stopped(tmp_path / "a", level=1)
    (tmp_path / "a" / "work" / "begun.json").write_bytes(text)
    written, notes = resumed(tmp_path / "a", tmp_path / "b")
    assert written.units_resumed == 0
    assert any("afresh" in note for note in notes.notes)


@pytest.mark.parametrize(
    "name", ["ledger.parquet", "volume.ome.zarr/zarr.json", "volume.ome.zarr/1/zarr.json"]
)
@pytest.mark.parametrize("damage", [truncate, empty])
def test_a_complete_volume_that_is_damaged_is_made_again(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    write(ARRAY, tmp_path / "a", **SCARCE)
    damage(tmp_path / "a" / name)
    _, notes = resumed(tmp_path / "a", tmp_path / "b")
    assert any("completed again" in note for note in notes.notes)


def test_a_damaged_ledger_beside_finished_work_is_only_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "finish", lambda _: None)
        write(ARRAY, tmp_path / "a", **SCARCE)
    truncate(tmp_path / "a" / "ledger.parquet")
    written, _ = resumed(tmp_path / "a", tmp_path / "b")
    assert written.units_done == 0


@pytest.mark.parametrize("fact", [b'"histogram":', b'"std":', b'"plan":"', b'"format":'])
def test_a_ledger_whose_facts_were_altered_is_written_again(tmp_path: Path, fact: bytes) -> None:
    write(ARRAY, tmp_path / "a", **SCARCE)
    path = tmp_path / "a" / "ledger.parquet"
    text = bytearray(path.read_bytes())
    text[text.index(fact) + len(fact)] ^= 1
    path.write_bytes(text)
    _, notes = resumed(tmp_path / "a", tmp_path / "b")
    assert any("completed again" in note for note in notes.notes)


def test_a_second_process_is_told_to_wait(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            write(ARRAY, tmp_path)
    finally:
        os.close(descriptor)
    write(ARRAY, tmp_path)
