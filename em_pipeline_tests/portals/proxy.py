"""An HTTP proxy on loopback in front of a server: it counts requests and breaks those it is told to."""

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PIECE = 64 << 10
HOPS = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})


@dataclass(frozen=True)
class Break:
    """How a request goes wrong. Unset fields are good behaviour.

    `status`: what is answered in place of the server, with `body` and `headers`. `reset_after`,
    `stall_after`: reset the connection, or read no more of it, after that many bytes of the request's body.
    `lose_answer`: reset the connection after the server did what was asked. `cut_answer`: reset it after so
    many bytes of the answer's body.
    """

    status: int | None = None
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    reset_after: int | None = None
    stall_after: int | None = None
    lose_answer: bool = False
    cut_answer: int | None = None


@dataclass
class _Plan:
    method: str
    part: str
    how: Break
    left: int
    after: int


class BreakingProxy:
    """`requests` holds `METHOD path?query` of each, in order of arrival."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._plans: list[_Plan] = []
        owner = self

        class Handler(_Handler):
            proxy = owner

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def fail(self, method: str, part: str, how: Break, times: int = 1, after: int = 0) -> None:
        """Break the next `times` requests whose address has `part` in it, once `after` of them went well."""
        with self.lock:
            self._plans.append(_Plan(method, part, how, times, after))

    def heal(self) -> None:
        with self.lock:
            self._plans.clear()

    def count(self, method: str, part: str = "") -> int:
        with self.lock:
            return sum(each.startswith(f"{method} ") and part in each for each in self.requests)

    def next_break(self, method: str, path: str) -> Break:
        with self.lock:
            self.requests.append(f"{method} {path}")
            for plan in self._plans:
                if plan.method == method and plan.part in path and plan.left:
                    if plan.after:
                        plan.after -= 1
                        return Break()
                    plan.left -= 1
                    return plan.how
        return Break()

    def __enter__(self) -> "BreakingProxy":
        threading.Thread(target=lambda: self._http.serve_forever(poll_interval=0.02), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: BreakingProxy

    def do_GET(self) -> None:
        self.pass_on()

    def do_HEAD(self) -> None:
        self.pass_on()

    def do_POST(self) -> None:
        self.pass_on()

    def do_PUT(self) -> None:
        self.pass_on()

    def do_DELETE(self) -> None:
        self.pass_on()

    def pass_on(self) -> None:
        how = self.proxy.next_break(self.command, self.path)
        stop = how.reset_after if how.reset_after is not None else how.stall_after
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length if stop is None else min(stop, length))
        if how.stall_after is not None:
            self.proxy.closing.wait(30)
        if stop is not None:
            self.reset()
        elif how.status is not None:
            told = [*how.headers, ("Content-Length", str(len(how.body)))]
            self.respond(how.status, told, b"" if self.command == "HEAD" else how.body, None)
        else:
            status, headers, content = self.asked_of_target(body)
            if how.lose_answer:
                self.reset()
            else:
                self.respond(status, headers, content, how.cut_answer)

    def asked_of_target(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.proxy.target, timeout=60)) as connection:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOPS:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            content = answer.read()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOPS]
            return answer.status, headers, content

    def respond(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: int | None) -> None:
        self.send_response_only(status)
        if (
            self.command != "HEAD"
            and status != 204
            and "content-length" not in {n.lower() for n, _ in headers}
        ):
            headers = [*headers, ("Content-Length", str(len(content)))]
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None:
            self.reset()

    def reset(self) -> None:
        # Closing with a zero linger time sends RST in place of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: requests are counted in `BreakingProxy.requests`."""


@contextlib.contextmanager
def breaking_proxy(target: str) -> Iterator[BreakingProxy]:
    """A running proxy, stopped at the end of the block."""
    with BreakingProxy(target) as proxy:
        yield proxy
