"""A portal's limit of connections, kept by all processes of a machine together."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from em_pipeline.domain.errors import SourceUnavailable, StorageFailed
from em_pipeline.domain.files import RemoteFile
from em_pipeline.storage import lanes
from em_pipeline.storage.host_slots import HostSlots
from em_pipeline.storage.patience import HeaderDeadline
from em_pipeline.storage.transport import Stopped, Transport
from em_pipeline_tests.portals.faulty import faulty_server
from em_pipeline_tests.storage.downloads import PATIENT, hold

LIMIT = 3
BODY = b"x" * 2000


class CountingServer:
    """Counts requests that are being answered; `gate` holds their answers back."""

    def __init__(self) -> None:
        self.active = self.most = 0
        self.askers: set[str] = set()
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        counting = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with counting.lock:
                    counting.active += 1
                    counting.most = max(counting.most, counting.active)
                    counting.askers.add(self.path.split("/")[1])
                time.sleep(0.005)
                counting.gate.wait(60)
                # Before the answer: whoever has it may already ask the next.
                with counting.lock:
                    counting.active -= 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(BODY)))
                self.end_headers()
                self.wfile.write(BODY)

            def log_message(self, *_: Any) -> None:
                """Requests are counted."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "CountingServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer() as running:
        yield running


CLIENT = """
import json, sys
from pathlib import Path
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.progress import Silent
from em_pipeline.storage import pace
from em_pipeline.storage.download import DownloadPolicy, download
pace.SOONEST_S = 60.0  # a server that is held up here still answers what was asked before it is asked again
url, folder, locks, limit, count = json.loads(sys.argv[1])
files = [RemoteFile(url=f"{url}/{n}", path=str(n)) for n in range(count)]
policy = DownloadPolicy(connections=limit, read_timeout_s=30, locks=Path(locks))
download(files, Path(folder), dataset_id="d", revision="r", policy=policy, progress=Silent())
"""


def client(server: CountingServer, name: str, folder: Path, count: int) -> subprocess.Popen[bytes]:
    asked = [f"{server.url}/{name}", str(folder / name), str(folder / "mine" / "locks"), LIMIT, count]
    return subprocess.Popen([sys.executable, "-c", CLIENT, json.dumps(asked)])


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.integration
def test_two_processes_together_never_exceed_the_limit_and_both_get_on(
    server: CountingServer, tmp_path: Path
) -> None:
    server.gate.clear()
    with client(server, "one", tmp_path, 400) as one:
        wait_until(lambda: server.active == LIMIT)
        with client(server, "two", tmp_path, 20) as two:
            wait_until(lambda: list((tmp_path / "mine/locks").glob("*.waiting")))
            server.gate.set()
            assert two.wait(60) == 0
        assert one.wait(60) == 0
    assert server.most == LIMIT
    assert len(list((tmp_path / "one").glob("[0-9]*"))) == 400
    assert len(list((tmp_path / "two").glob("[0-9]*"))) == 20


@pytest.mark.integration
def test_a_killed_process_frees_its_slots(server: CountingServer, tmp_path: Path) -> None:
    server.gate.clear()
    with client(server, "one", tmp_path, 10) as one:
        wait_until(lambda: server.active == LIMIT)
        with client(server, "two", tmp_path, 10) as two:
            wait_until(lambda: list((tmp_path / "mine/locks").glob("*.waiting")))
            assert server.askers == {"one"}
            one.send_signal(signal.SIGKILL)
            one.wait()
            wait_until(lambda: "two" in server.askers)
            server.gate.set()
            assert two.wait(60) == 0


def test_slots_of_a_host_are_few_and_others_have_their_own(tmp_path: Path) -> None:
    def no_patience(_: float) -> None:
        raise Stopped

    slots = HostSlots(tmp_path / "a/b", "host", 2)
    held = [slots.acquire(no_patience) for _ in range(2)]
    with pytest.raises(Stopped):
        HostSlots(tmp_path / "a/b", "host", 2).acquire(no_patience)
    HostSlots(tmp_path / "a/b", "host:81", 2).acquire(no_patience).release()
    held.pop().release()
    held.append(HostSlots(tmp_path / "a/b", "host", 2).acquire(no_patience))
    for slot in held:
        slot.release()
    assert not [path for path in (tmp_path / "a/b").iterdir() if path.suffix != ".waiting"]


def test_who_waits_is_seen_and_served(tmp_path: Path) -> None:
    slots = HostSlots(tmp_path / "a/b", "host", 1)
    held = slots.acquire(time.sleep)
    assert not slots.wanted()
    got = []
    waiter = threading.Thread(target=lambda: got.append(slots.acquire(time.sleep)))
    waiter.start()
    wait_until(slots.wanted)
    held.release()
    waiter.join(30)
    assert len(got) == 1
    assert not slots.wanted()
    got[0].release()


def test_connections_not_in_use_are_given_to_who_waits(tmp_path: Path) -> None:
    policy = replace(PATIENT, connections=1, locks=tmp_path / "a/b")

    def ask(transport: Transport, url: str) -> bytes:
        with transport.exchange("GET", url, {}) as response:
            return response.read()

    with faulty_server({"/a": BODY}) as server, Transport(policy, print) as first:
        assert ask(first, f"{server.url}/a") == BODY
        got = []
        with Transport(policy, print) as second:
            waiter = threading.Thread(target=lambda: got.append(ask(second, f"{server.url}/a")))
            waiter.start()
            waiter.join(30)
            assert got == [BODY]


def test_connections_that_nobody_uses_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "LONGEST_REST_S", 0.05)
    policy = replace(PATIENT, locks=tmp_path / "a/b")
    with faulty_server({"/a": BODY}) as server, Transport(policy, print) as transport:
        for _ in range(2):
            with transport.exchange("GET", f"{server.url}/a", {}) as response:
                assert response.read() == BODY
            wait_until(lambda: not list((tmp_path / "a/b").glob("*[0-9]")))
        assert len({request.client for request in server.requests}) == 2


def test_a_connection_to_http_is_none_to_https(tmp_path: Path) -> None:
    host = lanes.Host("portal", 1, tmp_path / "a/b")
    opened = []

    def open_one(host: lanes.Host, scheme: str) -> lanes.Lane:
        opened.append(scheme)
        return lanes.Lane(host.slots.acquire(time.sleep), scheme, httpx.Client(), HeaderDeadline())

    for scheme in ("http", "http", "https"):
        with host.lane(scheme, open_one) as lane:
            assert lane.scheme == scheme
    host.close()
    assert opened == ["http", "https"]
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_failed_download_keeps_no_slot(tmp_path: Path) -> None:
    policy = replace(PATIENT, connections=1, retries=0, locks=tmp_path / "a/b")
    for _ in range(2):
        with pytest.raises(Exception, match="refused"):
            hold([RemoteFile(url="http://127.0.0.1:1/a", path="a")], tmp_path / "raw", policy=policy)
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_folder_that_is_not_ours_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageFailed, match="not a folder of this user"):
        HostSlots(tmp_path / "link" / "hosts", "host", 1).acquire(time.sleep)


def test_a_long_wait_is_said_once_and_ends(tmp_path: Path) -> None:
    held = HostSlots(tmp_path / "em" / "hosts", "portal:1", 1).acquire(time.sleep)
    said: list[str] = []
    asked: list[float] = []
    with pytest.raises(SourceUnavailable, match=r"portal:1.*all 1 that are allowed, for 10 minutes"):
        HostSlots(tmp_path / "em" / "hosts", "portal:1", 1).acquire(asked.append, said.append)
    held.release()
    assert said == [
        "waiting for a connection to portal:1: other work on this machine has all 1 that are allowed"
    ]
    assert 600 <= sum(asked) < 601


def test_a_connection_that_cannot_be_made_keeps_no_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(PATIENT, connections=1, locks=tmp_path / "em" / "hosts")
    with Transport(policy, lambda _: None) as transport:
        monkeypatch.setattr(transport, "_connection", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError), transport.exchange("GET", "http://127.0.0.1:1/a", {}):
            pass
    assert HostSlots(policy.locks, "127.0.0.1:1", 1)._take() is not None
