"""Units on their way through many hands, without any hands."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.volumes.plan import Unit
from em_pipeline.volumes.unit_queue import Batch, Bounds, UnitQueue
from em_pipeline_tests.volumes.written import random_voxels, small_plan

PLAN = small_plan(random_voxels((32, 40, 64), "uint16"), memory_budget=9_000, threads=1)
UNITS = list(PLAN.levels[0].units())
BYTES = sum(unit.box.shape.voxels for unit in UNITS) * 2
BOUNDS = Bounds(deaths=1, late_s=10.0, late_times=4.0)


def numbers(batch: Batch | None) -> list[int]:
    return [unit.index for unit in batch.units] if batch else []


def queue_of(units: list[Unit]) -> UnitQueue:
    return UnitQueue(units, 2, BOUNDS)


def taken(queue: UnitQueue, worker: str, now: float = 0.0, hands: int = 1) -> Batch:
    batch = queue.take(worker, hands, now)
    assert batch is not None
    return batch


def test_batches_get_smaller_towards_the_end_and_follow_one_another() -> None:
    queue = queue_of(UNITS)
    sizes, seen = [], []
    while not queue.is_done:
        batch = taken(queue, "a", hands=2)
        sizes.append(len(batch.units))
        seen += numbers(batch)
        queue.came_back(batch, 1.0)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == -(-len(UNITS) // 8)
    assert seen == [unit.index for unit in UNITS]
    assert queue.take("a", 2, 1.0) is None


def test_units_of_an_ended_worker_go_to_others_alone_until_too_many_ended() -> None:
    queue = queue_of(UNITS[:8])
    both = taken(queue, "a")
    assert numbers(both) == [0, 1]
    assert queue.worker_ended(both) is None
    again = taken(queue, "b")
    assert numbers(again) == [0]
    assert queue.worker_ended(again) is UNITS[0]
    assert queue.deaths_at(UNITS[0]) == 2
    assert queue.deaths_at(UNITS[1]) == 1


def test_what_was_not_begun_waits_again_and_counts_for_nothing() -> None:
    queue = queue_of(UNITS[:8])
    batch = taken(queue, "a")
    queue.give_back(batch)
    assert numbers(taken(queue, "b")) == numbers(batch)
    assert queue.deaths_at(UNITS[0]) == 0


def late(hung: str = "a") -> tuple[UnitQueue, Batch]:
    """Two units: one that `hung` is late with, one that came back after 1 s; told at 10.5 s."""
    queue = queue_of(UNITS[:2])
    batch, other = taken(queue, hung), taken(queue, "b")
    queue.came_back(other, 1.0)
    assert queue.let_late_wait(9.9) == []
    assert queue.let_late_wait(10.5) == [batch]
    assert queue.let_late_wait(99.0) == []
    return queue, batch


def test_a_late_unit_is_done_by_whoever_comes_first() -> None:
    queue, batch = late()
    copy = taken(queue, "b", 10.5)
    assert copy.units == batch.units
    assert queue.came_back(copy, 12.0) == copy.nbytes
    assert queue.is_done
    assert not queue.failed(batch)


def test_a_late_unit_that_comes_back_is_not_counted_twice() -> None:
    queue, batch = late()
    copy = taken(queue, "b", 10.5)
    assert queue.came_back(batch, 11.0) == batch.nbytes
    assert queue.came_back(copy, 12.0) == 0
    queue, batch = late()
    assert queue.came_back(batch, 11.0) == batch.nbytes
    assert queue.take("b", 1, 11.0) is None


def test_a_copy_may_be_late_too_and_an_error_counts_where_nobody_else_is_at_the_unit() -> None:
    queue, batch = late()
    copy = taken(queue, "b", 10.5)
    assert queue.let_late_wait(30.0) == [copy]
    third = taken(queue, "c", 30.0)
    assert not queue.failed(batch)
    assert queue.worker_ended(copy) is None
    assert queue.take("d", 1, 31.0) is None
    assert queue.failed(third)


def test_lateness_goes_by_what_is_usual_and_only_when_nothing_else_waits() -> None:
    queue = queue_of(UNITS[:3])
    slow, other = taken(queue, "a"), taken(queue, "b")
    assert queue.let_late_wait(1e9) == []  # nothing came back yet: nobody knows what is usual
    queue.came_back(other, 20.0)
    assert queue.let_late_wait(1e9) == []  # a unit waits
    assert taken(queue, "b", 20.0)
    usual = 20.0 / other.nbytes * slow.nbytes
    assert queue.let_late_wait(4 * usual - 0.1) == []
    assert slow in queue.let_late_wait(4 * usual + 0.1)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["back", "back", "hang", "end", "deny"]))))
def test_every_unit_is_done_once_whatever_happens(events: list[tuple[int, str]]) -> None:
    queue = UnitQueue(UNITS, 2, Bounds(deaths=10**6, late_s=1.0))
    out: dict[int, Batch] = {}
    counted, now = Counter[str](), 0.0
    for worker, event in [*events, *[(worker, "back") for _ in range(len(UNITS) + 1) for worker in range(4)]]:
        now += 1.0
        queue.let_late_wait(now)
        if worker not in out:
            if batch := queue.take(str(worker), 4 - len(out), now):
                out[worker] = batch
        elif event == "back":
            counted["bytes"] += queue.came_back(out.pop(worker), now)
        elif event == "end":
            queue.worker_ended(out.pop(worker))
        elif event == "deny":
            queue.give_back(out.pop(worker))
    while not queue.is_done:
        for worker in list(out):
            counted["bytes"] += queue.came_back(out.pop(worker), now)
        if batch := queue.take("0", 1, now):
            out[0] = batch
    assert counted["bytes"] == BYTES
