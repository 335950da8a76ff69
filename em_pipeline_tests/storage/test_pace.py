"""What falls far behind other requests of its host is asked again; where all are slow, nothing is."""

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from em_pipeline.domain.files import RemoteFile
from em_pipeline.storage import pace, transfer
from em_pipeline.storage.pace import FAR_BEHIND, SOONEST_S, TELLING_BYTES, WINDOW_S, Line, Pace
from em_pipeline.storage.transfer import MAX_HURRIES
from em_pipeline_tests.portals.faulty import Fault, FaultyServer, faulty_server
from em_pipeline_tests.storage.downloads import PART, PATIENT, Watcher, hold

DATA = random.Random(12).randbytes(40 * PART)
WIDE = replace(PATIENT, request_size=1 << 30)
# 1 kB/s: never silent, above what counts as a stall, and half a minute for a part.
DRIP = Fault(delay_s=0.5, piece=512)


class Watched:
    """Lines of one host, whose time and bytes the test decides."""

    def __init__(self) -> None:
        self.pace, self.now = Pace(), 1000.0
        self.ended: list[Line] = []
        self._open = ExitStack()

    def begin(self) -> Line:
        line = Line()
        self._open.enter_context(self.pace.watching(line, lambda: self.ended.append(line)))
        line.began = line.last = self.now
        return line

    def came(self, line: Line, count: int) -> None:
        line.answered = line.answered or self.now
        line.last, line.bytes = self.now, line.bytes + count

    def seconds(self, seconds: float, rates: dict[Line, float]) -> None:
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            for line, rate in rates.items():
                self.came(line, int(rate * 0.1))
            self.pace.look(self.now)


def test_what_drips_while_others_flow_is_cut() -> None:
    watched = Watched()
    lines = [watched.begin() for _ in range(4)]
    rates = dict.fromkeys(lines[1:], 1000000.0) | {lines[0]: 1e6 / FAR_BEHIND / 2}
    watched.seconds(WINDOW_S - 0.2, rates)
    assert watched.ended == []
    watched.seconds(0.5, rates)
    assert set(watched.ended) == {lines[0]}
    assert "where others get" in (lines[0].behind or "")


def test_half_of_the_connections_may_be_bad() -> None:
    watched = Watched()
    lines = [watched.begin() for _ in range(4)]
    watched.seconds(WINDOW_S + 0.3, {line: 1e6 if line in lines[:2] else 5e3 for line in lines})
    assert set(watched.ended) == set(lines[2:])


@pytest.mark.parametrize("spread", [1, FAR_BEHIND / 2])
def test_where_all_are_slow_nothing_is_cut(spread: float) -> None:
    watched = Watched()
    lines = [watched.begin() for _ in range(4)]
    watched.seconds(60, dict(zip(lines, [500, 500 * spread, 500 * spread, 500 * spread], strict=True)))
    assert watched.ended == []


def test_a_lone_request_is_compared_with_those_before() -> None:
    watched = Watched()
    line = Line()
    with watched.pace.watching(line, lambda: None):
        line.answered, line.bytes = line.began, TELLING_BYTES
        line.last = line.began + 0.1
    alone = watched.begin()
    watched.seconds(WINDOW_S + 0.2, {alone: 5e3})
    assert watched.ended[:1] == [alone]


def test_a_host_that_becomes_slow_for_good_is_let_be() -> None:
    watched = Watched()
    first = watched.begin()
    watched.seconds(WINDOW_S + 0.5, {first: 1e6})
    watched.pace._lines.discard(first)
    later = watched.begin()
    watched.seconds(30, {later: 5e3})
    cuts = len(watched.ended)
    assert cuts
    watched.seconds(30, {later: 5e3})
    assert len(watched.ended) == cuts


def test_who_gets_no_answer_while_others_are_answered_is_cut() -> None:
    watched = Watched()
    answered = watched.begin()
    watched.now += 0.02
    watched.came(answered, 1)
    with watched.pace._lock:
        watched.pace._learn(answered)
    unanswered = watched.begin()
    watched.seconds(SOONEST_S - 0.1, {answered: 1e6})
    assert watched.ended == []
    watched.seconds(0.3, {answered: 1e6})
    assert set(watched.ended) == {unanswered}
    assert "no answer for" in (unanswered.behind or "")


def test_nobody_is_cut_where_nobody_is_answered() -> None:
    watched = Watched()
    for _ in range(4):
        watched.begin()
    watched.seconds(10, {})
    assert watched.ended == []


def test_a_machine_that_was_held_up_does_not_take_that_for_the_host_s_silence() -> None:
    watched = Watched()
    lines = [watched.begin() for _ in range(4)]
    watched.seconds(WINDOW_S + 0.3, dict.fromkeys(lines, 1e6))
    with watched.pace._lock:
        watched.pace._learn(lines[0])
    unanswered = watched.begin()
    watched.now += WINDOW_S + 0.5
    watched.pace.look(watched.now)
    assert watched.ended == []
    watched.seconds(WINDOW_S + 0.3, dict.fromkeys(lines[1:], 1e6))
    assert set(watched.ended) == {lines[0], unanswered}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(pace, "WINDOW_S", 0.4)
    monkeypatch.setattr(transfer, "QUICK_PATIENCE_S", 30.0)
    with faulty_server({"/a": DATA}) as running:
        yield running


def fetch(
    server: FaultyServer, folder: Path, watcher: Watcher, connections: int = 4, patience_s: float = 10.0
) -> float:
    began = time.monotonic()
    file = RemoteFile(url=f"{server.url}/a", path="a", size=len(server.files["/a"]))
    policy = replace(WIDE, connections=connections, read_timeout_s=patience_s)
    hold([file], folder, policy=policy, watcher=watcher)
    assert (folder / "a").read_bytes() == server.files["/a"]
    return time.monotonic() - began


def behind(watcher: Watcher) -> list[str]:
    return [note for note in watcher.notes if "where others" in note]


@pytest.mark.parametrize("bad", [DRIP, Fault(stall_after=1000)])
def test_a_range_that_drips_or_stalls_is_asked_for_again_in_a_moment(
    server: FaultyServer, tmp_path: Path, bad: Fault
) -> None:
    server.faults = [None, bad]
    watcher = Watcher()
    # What is left of one part would take half a minute, and so would the end of patience with a stall.
    assert fetch(server, tmp_path, watcher, patience_s=30.0) < 20
    assert behind(watcher)
    assert all("asking again on a new connection" in note for note in behind(watcher))


def test_a_server_that_drips_for_everybody_is_borne(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "WINDOW_S", 1.0)  # of twenty pieces, some come in any such second
    server.files["/a"] = DATA[: 4 * PART]
    server.always = Fault(delay_s=0.05, piece=1024)
    watcher = Watcher()
    fetch(server, tmp_path, watcher)
    assert behind(watcher) == []


def test_a_server_that_begins_to_drip_is_asked_again_a_few_times_only(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.files["/a"] = DATA[: 6 * PART]
    server.faults = [Fault(), Fault()]
    server.always = Fault(delay_s=0.1, piece=2048)
    watcher = Watcher()
    fetch(server, tmp_path, watcher, connections=1)
    assert 1 <= len(behind(watcher)) <= MAX_HURRIES * 6
