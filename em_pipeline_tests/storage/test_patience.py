"""Servers that are never silent and never done: each request ends as an outage."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.metered import WebDocuments
from em_pipeline.storage.ranged import HttpRanges, Meter
from em_pipeline.storage.transport import HttpPolicy, Transport

PAUSE_S = 0.05
# Twice as long as any deadline below: without one, the answer is whole.
DRIPS = 40
BODY = b"[" + b" " * (DRIPS - 2) + b"]"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
SILENCE_S = 0.25


def slow_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + LENGTH)
    for count in range(DRIPS):
        time.sleep(PAUSE_S)
        connection.sendall(b"X-%d: x\r\n" % count)
    connection.sendall(b"\r\n" + BODY)


def slow_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n")
    for at in range(len(BODY)):
        time.sleep(PAUSE_S)
        connection.sendall(BODY[at : at + 1])


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that answers every request so."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(4096)
            answer(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=listening.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def document(url: str) -> object:
    with PortalClient(connections=1, timeout_s=SILENCE_S, retries=1, backoff_s=0.01) as client:
        return client.get_json(url)


def transport() -> Transport:
    policy = HttpPolicy(
        connect_timeout_s=SILENCE_S, read_timeout_s=SILENCE_S, retries=1, backoff_s=0.01, connections=1
    )
    return Transport(policy, lambda _: None)


def ranges(url: str) -> object:
    with transport() as used:
        return HttpRanges(f"{url}/a.tif", used, Meter(10**6, 10))


def metadata(url: str) -> object:
    with transport() as used:
        return WebDocuments(url, used, Meter(10**6, 10)).fetch("zarr.json")


# A machine that is held up takes a drip for silence, too. Without a deadline, nothing of this is ever said.
SILENT = "no bytes for"


@pytest.mark.parametrize(
    ("answer", "said"),
    [(slow_headers, rf"headers did not end within|{SILENT}"), (slow_body, rf"only \d+ bytes in|{SILENT}")],
)
@pytest.mark.parametrize("read", [document, ranges, metadata])
def test_a_dripping_server_is_an_outage(
    read: Callable[[str], object], answer: Callable[[socket.socket], None], said: str
) -> None:
    with answering(answer) as url, pytest.raises(SourceUnavailable, match=rf"2 attempts.*({said})"):
        read(url)
