"""A server on this machine that answers as a portal does, and fails as portals do, on request.

A portal is a subclass of `Replay` that implements `answer`; everything about HTTP is here.
"""

import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import parse_qs, unquote, urlsplit

RANGE = re.compile(r"bytes=(?:\d+-\d*|-\d+)")
MAINTENANCE = "<!DOCTYPE html><html><title>Maintenance</title><body>We will be back soon.</body></html>"
BLOCK = 1 << 20


class Trouble(StrEnum):
    """What may go wrong with an answer."""

    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    MISSING = "404"
    RESET = "reset"  # the connection is cut before an answer
    HTML = "html"  # 200 with a maintenance page
    TRUNCATED = "truncated"  # a body that ends halfway, with the length of what was sent
    LONGER = "longer"  # a body with more than belongs to it, with the length of what was sent
    CUT = "cut"  # the connection ends before the announced length
    STALL = "stall"  # half of the body, then silence on an open connection


@dataclass
class Quirk:
    """`trouble` for requests whose target contains `match`: `after` of them go well, the next `times` do not
    (None: none ever does again)."""

    trouble: Trouble
    match: str
    times: int | None = None
    after: int = 0

    def befalls(self) -> bool:
        """Whether it is this request's turn, which then is spent."""
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass(frozen=True)
class Request:
    """One request. `path` is decoded; `target` is path and query as sent; `query` holds decoded values."""

    method: str
    path: str
    target: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """An answer: bytes, or a file, which is sent with validators and in the range asked for."""

    body: bytes | Path
    kind: str = "application/octet-stream"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def text(content: str, kind: str = "text/html; charset=utf-8", status: int = 200) -> Reply:
    """A document."""
    return Reply(content.encode(), kind, status)


def not_found() -> Reply:
    """What most portals say to an unknown path."""
    return text("<html>Not Found</html>", status=404)


class Replay:
    """A portal, serving from `start` or entry until `stop` or exit. Safe to use from several threads.

    `bytes_served` counts bodies, `requests` counts by path, HEAD included.
    """

    def __init__(self, *, port: int = 0, host: str = "127.0.0.1") -> None:
        self.bytes_served = 0
        self.requests: Counter[str] = Counter()
        self.documents: dict[str, str] = {}
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._quirks: list[Quirk] = []
        self._server = _Server((host, port), partial(_Handler, portal=self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def answer(self, request: Request) -> Reply:
        """What the portal says to a GET, HEAD or POST that no trouble befalls. HEAD answers like GET."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def options(self) -> dict[str, str]:
        """Keyword arguments for the portal's source that point it here."""
        raise NotImplementedError

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.stopped.set()
        self._shut()

    def _shut(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def trouble(self, trouble: Trouble, match: str = "", times: int | None = None, *, after: int = 0) -> None:
        """From now on, or `after` so many of them, answer requests whose target contains `match` with
        `trouble`."""
        with self._lock:
            self._quirks.append(Quirk(trouble, match, times, after))

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections within; afterwards, answer at the same address again."""
        address = self._server.server_address[:2]
        self._shut()
        try:
            yield
        finally:
            self._server = _Server((str(address[0]), int(address[1])), partial(_Handler, portal=self))
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
            self._thread.start()

    def replace(self, path: str, content: str) -> None:
        """Answer `path` with `content` instead of what the portal would say."""
        with self._lock:
            self.documents[path] = content

    def heal(self) -> None:
        """Forget every trouble and replacement."""
        with self._lock:
            self._quirks.clear()
            self.documents.clear()

    def count_request(self, path: str) -> None:
        with self._lock:
            self.requests[path] += 1

    def count_bytes(self, sent: int) -> None:
        with self._lock:
            self.bytes_served += sent

    def next_trouble(self, target: str) -> Trouble | None:
        with self._lock:
            for quirk in self._quirks:
                if quirk.match in target and quirk.times != 0 and quirk.befalls():
                    return quirk.trouble
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    # A listener whose clients vanish mid-answer is at work as intended, not in error.
    handle_error: Callable[..., None] = staticmethod(lambda *_: None)


class _Handler(BaseHTTPRequestHandler):
    """GET, HEAD and POST, over connections that stay open."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def __init__(self, *args: Any, portal: Replay) -> None:
        self.portal = portal
        self._trouble: Trouble | None = None
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are counted by the portal, not printed."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self._trouble = self.portal.next_trouble(self.path)
        if self._trouble is Trouble.RESET:
            self._reset()
        elif self._trouble in (Trouble.SERVER_ERROR, Trouble.UNAVAILABLE, Trouble.MISSING):
            self._send(text("<html>trouble</html>", status=int(self._trouble)))
        elif self._trouble is Trouble.HTML:
            self._send(text(MAINTENANCE))
        elif path in self.portal.documents:
            self._send(text(self.portal.documents[path], "text/plain; charset=utf-8"))
        else:
            query = parse_qs(parts.query, keep_blank_values=True)
            asked = Request(self.command, path, self.path, query, dict(self.headers.items()), body)
            self._send(self.portal.answer(asked))

    def _reset(self) -> None:
        linger_zero = struct.pack("ii", 1, 0)  # closing then sends RST, not FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        self.portal.count_request(urlsplit(self.path).path)
        self.close_connection = True
        self.connection.close()

    def _send(self, reply: Reply) -> None:
        if isinstance(reply.body, Path):
            self._send_file(reply, reply.body)
            return
        body = reply.body[: self._length(len(reply.body))].ljust(self._length(len(reply.body)), b" ")
        self._head(
            reply.status, {"Content-Type": reply.kind, "Content-Length": str(len(body)), **reply.headers}
        )
        self._body(BytesIO(body), len(body))

    def _send_file(self, reply: Reply, path: Path) -> None:
        stat = path.stat()
        first, last, status = 0, stat.st_size - 1, 200
        etag = reply.headers.get("ETag", f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"')
        asked = self.headers.get("Range")
        if asked and RANGE.fullmatch(asked) and self.headers.get("If-Range", etag) == etag:
            span = byte_span(asked, stat.st_size)
            if span is None:
                self._head(416, {"Content-Range": f"bytes */{stat.st_size}", "Content-Length": "0"})
                return
            first, last, status = *span, 206
        length = self._length(last - first + 1)
        headers = {
            "Content-Type": reply.kind,
            "Content-Length": str(length),
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
            **reply.headers,
        }
        if status == HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {first}-{last}/{stat.st_size}"
        self._head(status, headers)
        with path.open("rb") as file:
            file.seek(first)
            self._body(file, length)

    def _length(self, right: int) -> int:
        """How many bytes are announced and sent of a body that has `right`."""
        if self._trouble is Trouble.TRUNCATED:
            return right // 2
        return right + (self._trouble is Trouble.LONGER)

    def _body(self, source: BinaryIO, length: int) -> None:
        if self.command == "HEAD":
            return
        unfinished = self._trouble in (Trouble.CUT, Trouble.STALL)
        left = length // 2 if unfinished else length
        while left > 0:
            block = source.read(min(BLOCK, left)) or bytes(left)
            left -= len(block)
            # Before it is sent: whoever has it finds it counted.
            self.portal.count_bytes(len(block))
            self.wfile.write(block)
        if self._trouble is Trouble.STALL:
            self.portal.stopped.wait(60)
        self.close_connection = self.close_connection or unfinished

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        # Before it is sent: whoever has the answer finds it counted.
        self.portal.count_request(urlsplit(self.path).path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def byte_span(asked: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range (RFC 9110 §14.1.2), or None where it cannot be satisfied."""
    first, last = asked.removeprefix("bytes=").split("-")
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) else None
    stop = min(int(last), size - 1) if last else size - 1
    return (int(first), stop) if int(first) <= stop else None
