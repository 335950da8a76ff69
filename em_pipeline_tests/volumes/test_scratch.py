"""Parts of scratch are compared one by one, though several are read at once, on a disk and in a bucket."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from em_pipeline.domain.blobs import Blobs, Run
from em_pipeline.domain.errors import ChunkCorrupt
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Progress, Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.compute import Job, ThisProcess
from em_pipeline.volumes.memory import CHUNKS_AHEAD
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.rechunk import WrittenVolume, rechunk
from em_pipeline_tests.volumes.arrays import ArrayVolume
from em_pipeline_tests.volumes.written import random_voxels, reference_pyramid, small_plan

ARRAY = random_voxels((13, 20, 7), "uint16")
PLAN = small_plan(ARRAY, memory_budget=9_000, threads=1)  # units of one shard: all parts of a chunk in one
BLOB = "work/scratch-0/unit-000000.raw"
PART = 2**3 * ARRAY.itemsize


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "local":
        return LocalBlobs(tmp_path / "place")
    folder: Blobs = request.getfixturevalue(f"{request.param}_blobs")
    return folder


@dataclass(frozen=True)
class Between(ThisProcess):
    """Does something to the place when level 0 is complete."""

    place: Blobs
    do: Callable[[Blobs], None]

    def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        if level.index == 1:
            self.do(self.place)
        super().run(job, level, units, progress)


def written(place: Blobs, do: Callable[[Blobs], None] = lambda _: None) -> WrittenVolume:
    box = BoundingBox.of_shape(ARRAY.shape)
    compute = Between(place, do)
    return rechunk(ArrayVolume(ARRAY), box, PLAN, place, name="test", progress=Silent(), compute=compute)


def flip(place: Blobs) -> None:
    """A byte of the third of eight parts that lie one behind the other."""
    content = bytearray(place.read(BLOB))
    content[2 * PART + 3] ^= 1
    place.write(BLOB, bytes(content))


def cut(place: Blobs) -> None:
    place.write(BLOB, place.read(BLOB)[: 5 * PART + 1])


def remove(place: Blobs) -> None:
    place.delete(BLOB)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (flip, f"its {PART} bytes from byte {2 * PART} are not those that were written"),
        (cut, f"it ends before byte {6 * PART}"),
        (remove, "it is missing"),
    ],
)
def test_the_part_that_is_lost_is_named_and_its_unit_done_again(
    place: Blobs, damage: Callable[[Blobs], None], found: str
) -> None:
    with pytest.raises(ChunkCorrupt, match=f"unit-000000.raw: {found}.*Run the same again"):
        written(place, damage)
    again = written(place)
    assert again.units_done == 1 + sum(level.unit_count for level in PLAN.levels[1:])
    reader = VolumeReader.open(again.volume, place, again.ledger)
    for number, wanted in enumerate(reference_pyramid(ARRAY, PLAN)):
        found_again = reader.read_block(number, BoundingBox.of_shape(wanted.shape))
        np.testing.assert_array_equal(found_again.data, wanted)


class Watched(LocalBlobs):
    """Remembers what `read_runs` was asked for."""

    asked: list[tuple[Run, int]]

    def read_runs(self, runs: Iterable[Run], held: int) -> Generator[bytes, None, None]:
        for run in runs:
            self.asked.append((run, held))
            yield from super().read_runs([run], held)


def test_no_more_is_asked_for_than_the_plan_counts(tmp_path: Path) -> None:
    place = Watched(tmp_path)
    place.asked = []
    written(place)
    for level in PLAN.levels[1:]:
        chunk = level.tile_shape.voxels * ARRAY.itemsize
        asked = [(run, held) for run, held in place.asked if f"/scratch-{level.index - 1}/" in run.name]
        assert {held for _, held in asked} == {CHUNKS_AHEAD * chunk}
        assert max(run.nbytes for run, _ in asked) <= chunk
        assert sum(len(run.pieces) for run, _ in asked) == PLAN.levels[level.index - 1].chunk_grid.voxels
    assert max(len(run.pieces) for run, _ in place.asked) == 8
