"""An HTTP proxy on loopback in front of a server: it counts requests and breaks those it is told to."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from em_pipeline_tests.portals.loopback import LoopbackHandler, LoopbackServer

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


class BreakingProxy(LoopbackServer):
    """`requests` holds `METHOD path?query` of each, in order of arrival."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.requests: list[str] = []
        self._plans: list[_Plan] = []
        self._gathered = ("", "", threading.Barrier(1))
        owner = self

        class Handler(_Handler):
            proxy = owner

        super().__init__(Handler)

    def fail(self, method: str, part: str, how: Break, times: int = 1, after: int = 0) -> None:
        """Break the next `times` requests whose address has `part` in it, once `after` of them went well."""
        with self.lock:
            self._plans.append(_Plan(method, part, how, times, after))

    def gather(self, method: str, part: str, count: int) -> None:
        """Answer requests whose address has `part` in it `count` at a time, when as many have come.

        Those for which others do not come within 20 s are refused, with 403.
        """
        self._gathered = (method, part, threading.Barrier(count, timeout=20))

    def wait_for_others(self, method: str, path: str) -> bool:
        """Whether the others came that `gather` wants to be there."""
        gathered, part, others = self._gathered
        if method == gathered and part in path:
            try:
                others.wait()
            except threading.BrokenBarrierError:
                return False
        return True

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


class _Handler(LoopbackHandler):
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
        if not self.proxy.wait_for_others(self.command, self.path):
            how = Break(status=403)
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


@contextlib.contextmanager
def breaking_proxy(target: str) -> Iterator[BreakingProxy]:
    """A running proxy, stopped at the end of the block."""
    with BreakingProxy(target) as proxy:
        yield proxy
