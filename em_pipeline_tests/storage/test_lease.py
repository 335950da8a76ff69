"""Locks in an object store: one holder, renewed while held, another's after the lease."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from em_pipeline.domain.errors import Busy, InputRefused, StorageFailed
from em_pipeline.storage import lease as module
from em_pipeline.storage.lease import Holder, lease
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.object_client import Leased, ObjectClient, client_of
from em_pipeline_tests.buckets import fresh_folder
from em_pipeline_tests.portals.proxy import Break, BreakingProxy, breaking_proxy

PLACES = [pytest.param("s3", marks=pytest.mark.integration), "gcs"]


@pytest.fixture(params=PLACES)
def blobs(request: pytest.FixtureRequest) -> ObjectBlobs:
    folder: ObjectBlobs = request.getfixturevalue(f"{request.param}_blobs")
    return folder


def client(blobs: ObjectBlobs) -> ObjectClient:
    return client_of(blobs.access)


def key(blobs: ObjectBlobs) -> str:
    return f"{blobs.prefix}/locks/a.lock"


def holder(blobs: ObjectBlobs) -> Holder:
    return Holder(**json.loads(client(blobs).get(key(blobs))))


def forge(blobs: ObjectBlobs, **changes: object) -> Holder:
    """A lock as another process would have left it."""
    with lease(client(blobs), key(blobs), "Forge"):
        forged = replace(holder(blobs), **changes)
    client(blobs).put(key(blobs), forged.encoded())
    return forged


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_lock_is_one_holders_and_leaves_nothing(blobs: ObjectBlobs) -> None:
    for _ in range(2):
        with lease(client(blobs), key(blobs), "Work on a"):
            assert holder(blobs).pid == os.getpid()
            refused = pytest.raises(Busy, match=f"Work on a: process {os.getpid()} on ")
            with refused, lease(client(blobs), key(blobs), "Work on a"):
                pytest.fail("held twice")
            with lease(client(blobs), key(blobs) + "2", "Work on b"):
                pass
        assert list(client(blobs).list(blobs.prefix)) == []


def test_of_many_who_ask_at_once_one_gets_it(blobs: ObjectBlobs) -> None:
    inside, refused = [], []
    start, leave = threading.Barrier(8), threading.Event()

    def ask() -> None:
        start.wait()
        try:
            with lease(client(blobs), key(blobs), "Work"):
                inside.append(1)
                leave.wait(20)
        except Busy:
            refused.append(1)
            if len(refused) == 7:
                leave.set()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 7)


def test_a_lock_is_renewed_while_it_is_held(blobs: ObjectBlobs) -> None:
    with lease(client(blobs), key(blobs), "Work", seconds=2.0):
        time.sleep(2.0 + 2 * module.WHOLE_S)
        with pytest.raises(Busy), lease(client(blobs), key(blobs), "Work"):
            pytest.fail("held twice")
        assert holder(blobs).renewal > 3


def test_an_age_that_is_rounded_up_ends_no_lease(blobs: ObjectBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewed at 0.9 s and looked at at 3.0 s, a lock's age is three seconds by the store's headers."""
    with (
        lease(client(blobs), key(blobs), "Work", seconds=2.0),
        at_age(blobs, 3.0, monkeypatch),
        pytest.raises(Busy),
        lease(client(blobs), key(blobs), "Work"),
    ):
        pytest.fail("held twice")


@contextmanager
def at_age(blobs: ObjectBlobs, seconds: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store says that its objects were put so long ago."""
    kind = type(client(blobs))
    really = kind.look

    def look(self: ObjectClient, key: str) -> Leased | None:
        found = really(self, key)
        return found and replace(found, age_s=seconds)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "look", look)
        yield


def test_a_lock_of_another_machine_is_taken_over_when_its_lease_has_ended(
    blobs: ObjectBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(blobs, machine="another", host="elsewhere", pid=1, lease_s=30.0, token="x")
    with (
        at_age(blobs, 25.0, monkeypatch),
        pytest.raises(Busy, match="process 1 on elsewhere"),
        lease(client(blobs), key(blobs), "Work"),
    ):
        pytest.fail("taken too early")
    with at_age(blobs, 32.0, monkeypatch), lease(client(blobs), key(blobs), "Work"):
        assert holder(blobs).pid == os.getpid()


def test_a_lock_of_a_process_id_that_is_another_process_by_now_is_taken_over(blobs: ObjectBlobs) -> None:
    forge(blobs, started="1", token="x")
    with lease(client(blobs), key(blobs), "Work"):
        pass


def test_a_lock_that_cannot_be_read_is_somebodys_until_the_lease_has_ended(
    blobs: ObjectBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(blobs).put(key(blobs), b"?")
    with pytest.raises(Busy, match="another process"), lease(client(blobs), key(blobs), "Work"):
        pytest.fail("taken")
    with at_age(blobs, 62.0, monkeypatch), lease(client(blobs), key(blobs), "Work"):
        pass


def test_a_holder_who_lost_the_lock_is_told_and_leaves_it_to_the_other(blobs: ObjectBlobs) -> None:
    theirs = Holder("x", "elsewhere", "another", 1, "1", 60.0)

    def work() -> None:
        with lease(client(blobs), key(blobs), "Work", seconds=0.4):
            client(blobs).put(key(blobs), theirs.encoded())
            time.sleep(0.5)

    with pytest.raises(StorageFailed, match="could not be renewed"):
        work()
    assert holder(blobs) == theirs


def test_a_lock_that_may_no_longer_be_renewed_is_lost_and_said_so(
    blobs: ObjectBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InputRefused("Write", "the credentials have expired")

    def work() -> None:
        with lease(client(blobs), key(blobs), "Work", seconds=0.4):
            monkeypatch.setattr(type(client(blobs)), "put_if", refuse)
            time.sleep(0.7)

    with pytest.raises(StorageFailed, match="could not be renewed"):
        work()


PROCESS = """
import sys, time, pickle
from em_pipeline.storage.lease import lease
from em_pipeline.storage.object_client import client_of
blobs = pickle.loads(bytes.fromhex(sys.argv[1]))
with lease(client_of(blobs.access), f"{blobs.prefix}/locks/a.lock", "Work", seconds=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(blobs: ObjectBlobs, request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds the lock, for leases of two seconds."""
    import pickle

    command = [sys.executable, "-c", PROCESS, pickle.dumps(blobs).hex(), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_killed_holder_of_this_machine_blocks_nobody(
    blobs: ObjectBlobs, other: "subprocess.Popen[bytes]"
) -> None:
    with (
        pytest.raises(Busy, match=f"process {other.pid} on "),
        lease(client(blobs), key(blobs), "Work"),
    ):
        pytest.fail("held twice")
    other.send_signal(signal.SIGKILL)
    other.wait()
    with lease(client(blobs), key(blobs), "Work"):
        assert holder(blobs).pid == os.getpid()


def test_a_killed_holder_of_another_machine_blocks_for_its_lease(
    blobs: ObjectBlobs, other: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_machine", lambda: "here")
    other.send_signal(signal.SIGKILL)
    other.wait()
    refused = 0

    def is_free() -> bool:
        nonlocal refused
        try:
            with lease(client(blobs), key(blobs), "Work"):
                return True
        except Busy:
            refused += 1
            return False

    until(is_free)
    assert refused


@pytest.fixture(params=PLACES)
def broken(request: pytest.FixtureRequest) -> Iterator[tuple[BreakingProxy, ObjectBlobs]]:
    """A folder behind a proxy that breaks what it is told to."""
    blobs: ObjectBlobs = request.getfixturevalue(f"{request.param}_blobs")
    endpoints = blobs.access.endpoints
    name = "s3" if blobs.access.scheme == "s3" else "gs"
    with breaking_proxy(getattr(endpoints, name)) as proxy:
        yield proxy, fresh_folder(blobs.access.scheme, replace(endpoints, **{name: proxy.url}))


def writes(blobs: ObjectBlobs) -> tuple[str, str]:
    return ("PUT", ".lock") if blobs.access.scheme == "s3" else ("POST", ".lock")


def test_a_lock_whose_put_was_answered_by_nobody_is_ours(broken: tuple[BreakingProxy, ObjectBlobs]) -> None:
    proxy, blobs = broken
    proxy.fail(*writes(blobs), Break(lose_answer=True))
    with lease(client(blobs), key(blobs), "Work", seconds=2.0):
        proxy.fail(*writes(blobs), Break(lose_answer=True))
        until(lambda: holder(blobs).renewal > 1)
    assert list(client(blobs).list(blobs.prefix)) == []


def test_a_store_that_is_away_for_less_than_the_lease_is_borne_and_for_longer_not(
    broken: tuple[BreakingProxy, ObjectBlobs],
) -> None:
    proxy, blobs = broken
    with lease(client(blobs), key(blobs), "Work", seconds=4.0):
        proxy.fail(*writes(blobs), Break(status=503), times=4)
        until(lambda: holder(blobs).renewal > 2)  # the second put failed

    def work() -> None:
        with lease(client(blobs), key(blobs), "Work", seconds=0.4):
            proxy.fail(*writes(blobs), Break(status=503), times=100)
            time.sleep(1.0)

    with pytest.raises(StorageFailed, match="could not be renewed"):
        work()
    proxy.heal()


def test_the_process_table_tells_who_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    with child:
        started = module._started(os.getpid())
        assert started == module._started(os.getpid()) != ""
        mine = Holder("x", "here", module._machine(), os.getpid(), started, 60.0)
        assert not mine.is_dead()
        child.wait()
        assert replace(mine, pid=child.pid).is_dead()
        assert not replace(mine, pid=child.pid, machine="another").is_dead()
