"""A real HTTP server on loopback that serves given bytes, misbehaves as told, and counts what it sent.

A fault is asked for per request: `server.faults` holds them in order, and each data request takes the next
one, None (or an empty list) being good behaviour. `server.always` applies to every request instead.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from em_pipeline_tests.portals.loopback import LoopbackHandler, LoopbackServer

MODIFIED = "Tue, 03 Mar 2020 10:00:00 GMT"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Fault:
    """How one answer goes wrong. Byte counts are of the body; unset fields are good behaviour.

    `stall_after`, `reset_after`: fall silent, or reset the connection, after that many bytes.
    `drop`: bytes missing at the body's end, though announced. `surplus`: bytes added to it, announced.
    `status`, `headers`, `body`: what to answer instead. `ignore_range`: 200 with everything.
    `ignore_if_range`: 206 though the content changed. `no_length`: neither length nor chunks.
    `chunked`: chunked encoding; with `drop`, cut before its end. `delay_s`: pause between pieces of `piece`
    bytes. `become`: the file's new bytes, from this request on. `etag`: what to say in this answer only.
    """

    stall_after: int | None = None
    reset_after: int | None = None
    drop: int = 0
    surplus: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    ignore_range: bool = False
    ignore_if_range: bool = False
    no_length: bool = False
    chunked: bool = False
    delay_s: float = 0.0
    piece: int = 4096
    become: bytes | None = None
    etag: str | None = None


@dataclass(frozen=True)
class Request:
    """One request as received, and how many body bytes were handed to the connection."""

    method: str
    path: str
    range: str | None
    client: tuple[str, int]
    sent: int = 0


class FaultyServer(LoopbackServer):
    """`files` maps paths such as `/a.tif` to bytes; `ranges` says whether the server knows them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self.etags = {path: f'"{path}-1"' for path in files}
        self.faults: list[Fault | None] = []
        self.always: Fault | None = None
        self.ranges = True
        self.requests: list[Request] = []
        owner = self

        class Handler(_Handler):
            faulty = owner

        super().__init__(Handler)

    @property
    def sent(self) -> int:
        """Body bytes sent so far, of all requests."""
        with self.lock:
            return sum(request.sent for request in self.requests)

    def take(self, request: Request) -> tuple[int, Fault]:
        """The place of a request among all, and what goes wrong with its answer."""
        with self.lock:
            self.requests.append(request)
            planned = self.faults.pop(0) if self.faults else None
            return len(self.requests) - 1, planned or self.always or Fault()


class _Handler(LoopbackHandler):
    faulty: FaultyServer

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        server = self.faulty
        index, fault = server.take(
            Request(self.command, self.path, self.headers.get("Range"), self.client_address)
        )
        if fault.become is not None:
            server.files[self.path] = fault.become
            server.etags[self.path] = server.etags[self.path][:-1] + 'x"'
        status, headers, body = self.reply(fault)
        headers = {**headers, **fault.headers}
        body += b"+" * fault.surplus
        if fault.no_length:
            self.close_connection = True
        elif fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers.setdefault("Content-Length", str(len(body)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.drop:
            self.close_connection = True
        self.end_headers()
        if with_body:
            self.send_body(body[: len(body) - fault.drop], fault, index)

    def reply(self, fault: Fault) -> tuple[int, dict[str, str], bytes]:
        if fault.status is not None or fault.body is not None:
            return fault.status or 200, {}, fault.body or b""
        server = self.faulty
        if self.path not in server.files:
            return 404, {}, b"none"
        data = server.files[self.path]
        etag = fault.etag or server.etags[self.path]
        headers = {"ETag": etag, "Last-Modified": MODIFIED}
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        changed = condition is not None and condition != etag and not fault.ignore_if_range
        if not server.ranges or fault.ignore_range or match is None or changed:
            return 200, headers, data
        headers["Accept-Ranges"] = "bytes"
        first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        if first > last:
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]

    def send_body(self, body: bytes, fault: Fault, index: int) -> None:
        stop = min((n for n in (fault.stall_after, fault.reset_after) if n is not None), default=len(body))
        step = fault.piece if fault.delay_s or stop < len(body) else 65536
        for start in range(0, stop, step):
            piece = body[start : min(start + step, stop)]
            server = self.faulty
            # Before it is sent: whoever has it finds it counted.
            with server.lock:
                request = server.requests[index]
                server.requests[index] = replace(request, sent=request.sent + len(piece))
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.chunked else piece)
            time.sleep(fault.delay_s)
        if fault.chunked and not fault.drop and stop == len(body):
            self.wfile.write(b"0\r\n\r\n")
        if fault.stall_after is not None:
            self.faulty.closing.wait(30)
            self.close_connection = True
        if fault.reset_after is not None:
            self.reset()


@contextlib.contextmanager
def faulty_server(files: dict[str, bytes]) -> Iterator[FaultyServer]:
    """A running server, stopped at the end of the block."""
    with FaultyServer(files) as server:
        yield server
