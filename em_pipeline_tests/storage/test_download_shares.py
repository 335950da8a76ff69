"""How connections share one file, what stored bytes stay as they are, and what thousands of files cost."""

import gzip
import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.demo.replay import Replay, Reply
from em_pipeline.demo.replay import Request as Asked
from em_pipeline.domain.errors import InputRefused, RecordInvalid
from em_pipeline.domain.files import RemoteFile
from em_pipeline.storage import holdings, transfer
from em_pipeline.storage.digests import RunningDigest
from em_pipeline.storage.download import DownloadPolicy, _work
from em_pipeline.storage.http_transfer import _round
from em_pipeline.storage.task import Unit
from em_pipeline_tests.portals.faulty import Fault, FaultyServer, Request, faulty_server
from em_pipeline_tests.storage.downloads import HASTY, PART, PATIENT, Watcher, hold, leftovers

pytestmark = pytest.mark.usefixtures("unhurried")

DATA = random.Random(11).randbytes(40 * PART + 5)
WIDE = replace(PATIENT, request_size=1 << 30)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server({"/a": DATA}) as running:
        yield running


def remote(server: FaultyServer, **listed: object) -> RemoteFile:
    return RemoteFile.model_validate({"url": f"{server.url}/a", "path": "a", **listed})


def span(request: Request) -> tuple[int, int]:
    """First and last byte that were asked for."""
    first, last = (request.range or "").removeprefix("bytes=").split("-")
    return int(first), int(last)


def test_each_connection_asks_once_for_its_share(server: FaultyServer, tmp_path: Path) -> None:
    hold([remote(server, size=len(DATA))], tmp_path, policy=WIDE)
    assert (tmp_path / "a").read_bytes() == DATA
    # The first part tells what there is; connections that are done take over from slow ones.
    assert len(server.requests) <= 1 + 5 * WIDE.connections
    assert not leftovers(tmp_path)


def test_shares_are_taken_in_two_rounds_in_file_order(server: FaultyServer, tmp_path: Path) -> None:
    server.always = Fault(delay_s=0.01)
    hold([remote(server, size=len(DATA))], tmp_path, policy=WIDE)
    starts = [span(request)[0] for request in server.requests]
    first, second = sorted(starts[1:5]), sorted(starts[5:9])
    assert first[-1] < second[0]
    assert 0.6 * len(DATA) < second[0] < 0.8 * len(DATA)


def test_what_others_have_left_is_taken_over_only_when_nothing_else_is_to_do() -> None:
    order: list[str] = []
    spare = ["spare"]

    def unit(name: str, *following: str) -> Unit:
        def run() -> list[Unit]:
            order.append(name)
            return [unit(each) for each in following]

        return run

    first = iter([unit("a", "a2"), unit("b")])
    _work(first, lambda: unit(spare.pop()) if spare else None, 1, lambda: None, lambda: None)
    assert order == ["a", "a2", "b", "spare"]


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 32), st.integers(1, 64))
def test_rounds_cover_all_parts_in_few_requests(parts: int, connections: int, least: int, worth: int) -> None:
    left, rounds = parts, 0
    while left:
        share, taken = _round(left, connections, least, worth)
        assert 0 < taken <= left
        assert share > 0
        assert share * connections >= taken
        left, rounds = left - taken, rounds + 1
    assert rounds <= 12


def test_parts_are_flushed_and_noted_together(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(descriptor), fsync(descriptor)))
    monkeypatch.setattr(transfer, "SMALLEST_PART", 4096)
    monkeypatch.setattr(transfer, "SMALL_FILE", 4096)
    policy = replace(PATIENT, part_size=1 << 20, request_size=1 << 30)
    hold([remote(server, size=len(DATA))], tmp_path, policy=policy)
    assert (tmp_path / "a").read_bytes() == DATA
    # Of 321 parts.
    assert len(flushed) < 40


def test_all_but_the_end_is_hashed_while_it_comes(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[int] = []
    finish = RunningDigest.finish

    def finished(self: RunningDigest, path: Path, read: Callable[[int], None]) -> tuple[str, str]:
        return finish(self, path, late.append)

    monkeypatch.setattr(RunningDigest, "finish", finished)
    server.always = Fault(delay_s=0.01)
    manifest = hold([remote(server, size=len(DATA))], tmp_path, policy=WIDE)
    assert manifest.files[0].sha256 == hashlib.sha256(DATA).hexdigest()
    assert sum(late) < len(DATA) / 2


def test_what_a_silent_connection_was_to_fetch_is_taken_over(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [None, Fault(stall_after=0)]
    hold([remote(server, size=len(DATA))], tmp_path, policy=replace(WIDE, read_timeout_s=2.0))
    assert (tmp_path / "a").read_bytes() == DATA
    first, last = span(server.requests[1])
    assert any(first < span(request)[0] <= last for request in server.requests[2:])


def test_faults_in_the_middle_of_shares_cost_no_byte_twice(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [None, Fault(stall_after=3 * PART + 100), Fault(drop=PART), None, Fault(drop=2 * PART)]
    watcher = Watcher()
    policy = replace(WIDE, read_timeout_s=HASTY.read_timeout_s)
    hold([remote(server, size=len(DATA))], tmp_path, policy=policy, watcher=watcher)
    assert (tmp_path / "a").read_bytes() == DATA
    assert watcher.done == len(DATA)
    # What a connection is sending when it is told that another took over is lost.
    assert server.sent <= len(DATA) + 8 * PART


def test_a_silent_range_is_given_up_long_before_patience_ends(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "QUICK_PATIENCE_S", 0.2)
    server.files["/a"] = DATA[:PART]
    server.faults = [Fault(stall_after=0)] * 3
    watcher = Watcher()
    hold([remote(server)], tmp_path, policy=replace(PATIENT, read_timeout_s=60), watcher=watcher)
    assert any("no bytes for 0.2 s" in note for note in watcher.notes)
    assert any("no bytes for 0.4 s" in note for note in watcher.notes)


def test_a_policy_with_requests_smaller_than_parts_is_refused() -> None:
    for wrong in ({"part_size": 0}, {"part_size": 10, "request_size": 9}):
        with pytest.raises(InputRefused):
            DownloadPolicy(**wrong)


class Store(Replay):
    """Objects of a bucket `em`, as they were put; those put compressed are decoded for who cannot take it."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, tuple[bytes, str]] = {}

    def answer(self, request: Asked) -> Reply:
        data, encoding = self.objects[request.path.removeprefix("/em/")]
        if encoding and "gzip" not in request.headers.get("Accept-Encoding", ""):
            return Reply(gzip.decompress(data))
        return Reply(data, headers={"Content-Encoding": encoding} if encoding else {})


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as running:
        yield running


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_objects_are_held_as_they_are_stored(store: Store, tmp_path: Path, scheme: str) -> None:
    plain, packed = DATA[:5000], gzip.compress(DATA[:5000])
    store.objects = {"a b": (plain, ""), "c": (packed, "gzip")}
    files = [
        RemoteFile(url=f"{scheme}://em/a b", path="a", size=len(plain)),
        RemoteFile(url=f"{scheme}://em/c", path="c", size=len(packed)),
    ]
    manifest = hold(files, tmp_path, store=store.url)
    assert [(tmp_path / file.path).read_bytes() for file in manifest.files] == [plain, packed]
    assert [file.url for file in manifest.files] == [f"{scheme}://em/a b", f"{scheme}://em/c"]
    asked = sum(store.requests.values())
    assert hold(files, tmp_path, store=store.url) == manifest
    assert sum(store.requests.values()) == asked


def test_the_size_of_an_encoded_object_is_that_of_its_stored_bytes(store: Store, tmp_path: Path) -> None:
    store.objects = {"c": (gzip.compress(DATA[:5000]), "gzip")}
    with pytest.raises(RecordInvalid, match="its size went from 5000"):
        hold([RemoteFile(url="gs://em/c", path="c", size=5000)], tmp_path, store=store.url)


def test_encoded_bytes_of_a_web_server_are_taken_only_in_the_listed_size(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.always = Fault(headers={"Content-Encoding": "gzip"})
    with pytest.raises(RecordInvalid, match="Content-Encoding gzip"):
        hold([remote(server)], tmp_path)
    hold([remote(server, size=len(DATA))], tmp_path)
    assert (tmp_path / "a").read_bytes() == DATA


def many(server: FaultyServer, count: int) -> list[RemoteFile]:
    for n in range(count):
        server.files[f"/c/{n}"], server.etags[f"/c/{n}"] = b"%d" % n, f'"{n}"'
    return [RemoteFile(url=f"{server.url}/c/{n}", path=f"c/{n}") for n in range(count)]


def test_small_files_cost_one_request_and_about_one_flush_each_on_few_threads(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes, threads = [], set()
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        flushes.append(descriptor)
        threads.add(threading.get_ident())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    files = many(server, 300)
    manifest = hold(files, tmp_path)
    assert [file.sha256 for file in manifest.files] == [
        hashlib.sha256(b"%d" % n).hexdigest() for n in range(300)
    ]
    assert len(server.requests) == 300
    assert len(flushes) < 1.3 * 300
    assert len(threads) <= PATIENT.connections + 1
    assert hold(files, tmp_path) == manifest
    assert len(server.requests) == 300


def test_small_files_of_a_batch_survive_an_outage(server: FaultyServer, tmp_path: Path) -> None:
    files = many(server, 60)
    server.faults = [None] * 40 + [Fault(status=500)] * 100
    with pytest.raises(Exception, match="HTTP 500"):
        hold(files, tmp_path)
    held = len(list((tmp_path / "c").iterdir()))
    assert held >= 36
    server.faults, asked = [], len(server.requests)
    hold(files, tmp_path)
    assert len(server.requests) - asked == 60 - held


def test_a_torn_log_loses_no_more_than_its_torn_line(server: FaultyServer, tmp_path: Path) -> None:
    files = many(server, 20)
    manifest = hold(files, tmp_path)
    log = tmp_path / ".download" / holdings.NAME
    log.write_bytes(log.read_bytes()[:-10])
    asked = len(server.requests)
    assert hold(files, tmp_path) == manifest
    assert len(server.requests) == asked + 1
    assert hold(files, tmp_path) == manifest
    assert len(server.requests) == asked + 1


def test_the_log_does_not_grow_with_every_run(server: FaultyServer, tmp_path: Path) -> None:
    files = many(server, 10)
    log = tmp_path / ".download" / holdings.NAME
    for run in range(30):
        for n in range(10):
            server.etags[f"/c/{n}"] = f'"{run}"'
        hold([f.model_copy(update={"etag": f'"{run}"'}) for f in files], tmp_path)
    assert len(log.read_bytes().splitlines()) < 10 * 30 / 2


def test_progress_is_of_files_where_sizes_are_not_listed(server: FaultyServer, tmp_path: Path) -> None:
    files = many(server, 30)
    files[3] = RemoteFile(url=f"{server.url}/none", path="none", may_be_absent=True)
    watcher = Watcher()
    hold(files, tmp_path, watcher=watcher)
    assert (watcher.total, watcher.unit, watcher.done) == (30, "files", 30)
    again = Watcher()
    hold(files, tmp_path, watcher=again)
    assert again.done == 30
    sized = Watcher()
    hold([remote(server, size=len(DATA))], tmp_path / "b", watcher=sized)
    assert (sized.total, sized.unit, sized.done) == (len(DATA), "bytes", len(DATA))
