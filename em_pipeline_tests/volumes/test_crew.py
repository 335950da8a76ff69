"""Workers that come, answer, hang and fail, as a crew sees them; the link is a list of what they say."""

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from em_pipeline.domain.errors import InputRefused, ServiceUnavailable, StorageFailed
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.compute import Job
from em_pipeline.volumes.crew import Crew
from em_pipeline.volumes.hand import Introduced, NotIntroduced, introduce, reach
from em_pipeline.volumes.workspace import Workspace
from em_pipeline_tests.volumes.arrays import ArrayVolume
from em_pipeline_tests.volumes.test_resume import ARRAY, Notes
from em_pipeline_tests.volumes.test_unit_queue import PLAN

SOURCE = ArrayVolume(ARRAY)
BOX = BoundingBox.of_shape(ARRAY.shape)


class Said(Future[Any]):
    """A task of Dask, as far as a crew looks at it."""

    status = "finished"


class Link:
    """Workers by what they say of versions: None says nothing."""

    def __init__(self, **workers: str | None) -> None:
        self.workers = workers
        self.occupied: set[str] = set()
        self.asked: list[tuple[str, Any, Said]] = []
        self.cancelled: list[Said] = []

    def present(self) -> set[str]:
        return set(self.workers)

    def difference_at(self, address: str) -> str | None:
        return self.workers[address]

    def submit(self, address: str, function: Any, *arguments: Any) -> Said:
        self.asked.append((address, function, Said()))
        return self.asked[-1][2]

    def cancel(self, futures: list[Said]) -> None:
        self.cancelled += futures

    def ended(self, found: Any) -> Said:
        """The last task that was submitted, with what came of it."""
        _, _, said = self.asked[-1]
        if isinstance(found, BaseException):
            said.status = "error"
            said.set_exception(found)
        else:
            said.set_result(found)
        return said


def crew_of(link: Link, folder: Path, patience_s: float = 60.0) -> tuple[Crew, Notes]:
    notes = Notes()
    job = Job(SOURCE, BOX, PLAN, Workspace(LocalBlobs(folder)), ())
    return Crew(link, job, patience_s, notes), notes


def test_a_worker_without_the_files_is_a_hand_once_it_reached_them(tmp_path: Path) -> None:
    link = Link(a="")
    crew, notes = crew_of(link, tmp_path, patience_s=0.0)
    crew.look_round(set())
    assert crew.answered(link.ended(Introduced(3, lacks_files=True)))
    assert crew.idle(set()) == set()
    time.sleep(0.01)
    crew.look_round(set())  # patience is for answers, not for files
    assert [function for _, function, _ in link.asked] == [introduce, reach]
    crew.answered(link.ended(Introduced(3, lacks_files=False)))
    assert crew.idle(set()) == {"a"}
    assert crew.idle({"a"}) == set()
    assert notes.notes == [
        "the Dask worker a fetches raw files",
        "1 Dask worker writes, with 3 threads in all",
    ]


def test_one_that_cannot_get_the_files_ends_the_run_or_is_left_out(tmp_path: Path) -> None:
    full = StorageFailed("Bring files to /spool", "9 bytes are needed and 1 are free", "Free some space")
    link = Link(a="")
    crew, _ = crew_of(link, tmp_path)
    crew.look_round(set())
    crew.answered(link.ended(Introduced(1, lacks_files=True)))
    with pytest.raises(InputRefused, match=r"Dask worker a .*9 bytes are needed.*Free some space"):
        crew.answered(link.ended(full))
    link = Link(a="")
    crew, notes = crew_of(link, tmp_path)
    crew.look_round(set())
    crew.answered(link.ended(Introduced(1, lacks_files=False)))
    assert crew.idle(set()) == {"a"}
    link.workers["b"] = ""
    crew.look_round(set())
    crew.answered(link.ended(full))
    assert "9 bytes are needed and 1 are free; it is left out" in notes.notes[-1]
    crew.look_round(set())
    assert len(link.asked) == 2


def test_whoever_comes_to_the_address_of_one_that_was_left_out_is_asked(tmp_path: Path) -> None:
    link = Link(a="")
    crew, notes = crew_of(link, tmp_path)
    crew.look_round(set())
    crew.answered(link.ended(Introduced(1, lacks_files=False)))
    assert crew.idle(set()) == {"a"}
    link.workers["b"] = "numpy is 1 there and 2 here"
    crew.look_round(set())
    assert notes.notes[-1].endswith("it is left out")
    crew.look_round(set())
    assert [address for address, _, _ in link.asked] == ["a"]
    del link.workers["b"]
    crew.look_round(set())
    link.workers["b"] = ""
    crew.look_round(set())
    assert [address for address, _, _ in link.asked] == ["a", "b"]


def test_one_that_was_started_anew_is_asked_anew(tmp_path: Path) -> None:
    link = Link(a="")
    crew, _ = crew_of(link, tmp_path)
    crew.look_round(set())
    crew.answered(link.ended(Introduced(1, lacks_files=True)))
    crew.answered(link.ended(NotIntroduced()))
    crew.look_round(set())
    assert [function for _, function, _ in link.asked] == [introduce, reach, introduce]


def test_a_silent_newcomer_is_left_out_and_the_scheduler_not_blamed(tmp_path: Path) -> None:
    link = Link(a="")
    crew, notes = crew_of(link, tmp_path, patience_s=0.0)
    crew.look_round(set())
    crew.answered(link.ended(Introduced(1, lacks_files=False)))
    assert crew.idle(set()) == {"a"}
    link.workers["b"] = None
    crew.look_round(set())
    time.sleep(0.01)
    crew.look_round(set())
    assert "Compare versions: it has not answered for 0 s; it is left out" in notes.notes[-1]
    assert len(link.asked) == 1


def test_one_that_is_occupied_is_left_alone_and_named_where_nobody_else_is_there(tmp_path: Path) -> None:
    link = Link(a="")
    link.occupied = {"a"}
    crew, _ = crew_of(link, tmp_path, patience_s=0.0)
    with pytest.raises(ServiceUnavailable, match="the 1 that do not come back from earlier work"):
        crew.look_round(set())
    assert link.asked == []
    link.occupied = set()
    crew.look_round(set())
    assert [address for address, _, _ in link.asked] == ["a"]


def test_questions_end_with_the_crew(tmp_path: Path) -> None:
    link = Link(a="", b="")
    crew, _ = crew_of(link, tmp_path)
    crew.look_round(set())
    crew.close()
    assert link.cancelled == [said for _, _, said in link.asked]
