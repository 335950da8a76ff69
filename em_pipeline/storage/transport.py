"""HTTP exchanges with portals: pooled connections, limits, redirects, and which failures may pass.

Every request to a portal goes through `Transport`.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, cast

from em_pipeline.domain.errors import InputRefused, RecordInvalid, SourceUnavailable
from em_pipeline.storage.answers import check_status, check_url, redirected
from em_pipeline.storage.faults import Behind, Fault, Unconnected
from em_pipeline.storage.host_slots import machine_folder
from em_pipeline.storage.lanes import Host, Lane
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints
from em_pipeline.storage.pace import Line
from em_pipeline.storage.signing import signature

if TYPE_CHECKING:
    import ssl

    import httpx


USER_AGENT = "em-pipeline/0.1 (public electron-microscopy volumes as OME-Zarr)"
MAX_REDIRECTS = 5
# Bodies of redirects up to this size are read to the end, so that the connection can be used again.
DRAINED_BODY = 64 * 1024
TRY_LATER = "Nothing is known about the data; try again later"

_jitter = random.SystemRandom()
T = TypeVar("T")


@dataclass(frozen=True)
class HttpPolicy:
    """How politely and how patiently portals are asked.

    `connections` is per host, of all processes that meet in the folder `locks`. `retries` is how often a
    failed request is repeated; the n-th repetition waits `backoff_s · 2ⁿ` seconds, at most `longest_wait_s`,
    of which up to half is random. A portal that asks for a longer wait (Retry-After) than `longest_wait_s`
    counts as unavailable. `connect_retries` takes the place of `retries` where no connection comes about
    (None: the same). `endpoints` are the object stores'.
    """

    connections: int = 4
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 12.0
    retries: int = 5
    connect_retries: int | None = None
    backoff_s: float = 0.5
    longest_wait_s: float = 60.0
    requests_per_second: float | None = None
    user_agent: str = USER_AGENT
    endpoints: ObjectEndpoints = PUBLIC
    locks: Path = field(default_factory=machine_folder)

    def __post_init__(self) -> None:
        positive = (self.connections, self.connect_timeout_s, self.read_timeout_s, self.longest_wait_s)
        rate = self.requests_per_second
        least = min(self.retries, self.connect_retries or 0, self.backoff_s)
        if min(positive) <= 0 or least < 0 or (rate is not None and rate <= 0):
            raise InputRefused(
                "Read the settings for portals",
                f"one of them is not positive: {self}",
                "Connections, timeouts and rates are above 0, retries and backoff at least 0",
            )


class Stopped(Exception):
    """Another thread of the same transport failed for good; this one's work has no use any more."""


class Transport:
    """A pool of HTTP/1.1 connections under one policy. Safe to use from several threads.

    `note` is told of every retry, in a sentence.
    """

    def __init__(self, policy: HttpPolicy, note: Callable[[str], None]) -> None:
        self.policy = policy
        self._note = note
        self._stop = threading.Event()
        self._hosts: dict[str, Host] = {}
        self._hosts_lock = threading.Lock()

    def _connection(self, scheme: str) -> "httpx.Client":
        """A client that opens one connection, to `http` or `https`, when it is first asked."""
        import httpx

        policy = self.policy
        return httpx.Client(
            verify=_trust() if scheme == "https" else _no_trust(),
            http2=False,
            follow_redirects=False,  # `exchange` follows them, to check each
            headers={"User-Agent": policy.user_agent},
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=5.0),
        )

    def stop(self) -> None:
        """Make every waiting or reading thread raise `Stopped` soon."""
        self._stop.set()

    def check_running(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self._hosts.values():
            host.close()

    def look(self) -> None:
        """Cut exchanges with a `line` that their host leaves behind others. Call it some times a second."""
        now = time.monotonic()
        for host in list(self._hosts.values()):
            host.pace.look(now)

    @contextmanager
    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        content: bytes | None = None,
        accept: frozenset[int] = frozenset({200, 206}),
        patience_s: float | None = None,
        line: Line | None = None,
    ) -> "Iterator[httpx.Response]":
        """The streamed answer to one request, redirects followed; its status is one of `accept`.

        `patience_s` bounds each silence of the server, by default as the policy says, and twice as long all
        its headers; a body that comes slower than `pace.SLOWEST_BYTES_PER_S` that long is a fault.
        With a `line`, what falls far behind other exchanges with a line is cut when `look` sees it: `Behind`.

        Raises `Fault` for what may pass, also while the caller reads the body; `NotFound` for 404 and 410;
        `InputRefused` for 401 and 403 (no public data: asking again cannot help, so not `SourceUnavailable`)
        and for a URL that is not http(s); `RecordInvalid` for other refusals and bad redirects.
        """
        target = check_url(url, url)
        for _ in range(MAX_REDIRECTS + 1):
            with self._one(method, target, headers, content, patience_s, line) as response:
                location = response.headers.get("Location") if response.is_redirect else None
                if location is None:
                    check_status(method, url, response, accept)
                    yield response
                    return
                _drain(response)
                if response.status_code == 303:  # See Other: the answer is elsewhere, to be fetched
                    method, content = "GET", None
                target = redirected(url, target, location)
        raise RecordInvalid(
            f"Fetch {url}", f"more than {MAX_REDIRECTS} redirects", "Check the URL in a browser"
        )

    @contextmanager
    def _one(
        self,
        method: str,
        url: "httpx.URL",
        headers: Mapping[str, str],
        content: bytes | None,
        patience_s: float | None,
        line: Line | None,
    ) -> "Iterator[httpx.Response]":
        import httpx

        from em_pipeline.storage.patience import HEADER_SILENCES, Paced

        connecting, silence = self.policy.connect_timeout_s, patience_s or self.policy.read_timeout_s

        host = self._host(url.netloc.decode())
        with host.lane(url.scheme, self._open) as lane:
            self._take_turn(host)
            timeout = httpx.Timeout(silence, connect=connecting, pool=None)
            signed = {**headers, **signature(method, url, self.policy.endpoints)}
            request = lane.client.build_request(
                method,
                url,
                headers=signed,
                content=content,
                timeout=timeout,
                extensions={"trace": lane.headers.trace},
            )
            seen = line or Line()
            watched = host.pace.watching(seen, lane.headers.end) if line else nullcontext()
            try:
                with watched:
                    with lane.headers.within(connecting + HEADER_SILENCES * silence):
                        response = lane.client.send(request, stream=True)
                    seen.came(0)
                    body = cast("httpx.SyncByteStream", response.stream)
                    response.stream = Paced(body, silence, self.check_running, seen)
                    try:
                        yield response
                    finally:
                        # A body not read to its end closes its connection: the next attempt gets a new one.
                        response.close()
            except httpx.ConnectTimeout as error:
                raise Unconnected(f"no connection within {connecting:g} s") from error
            except httpx.ConnectError as error:
                raise Unconnected(f"{type(error).__name__}: {error}") from error
            except httpx.TimeoutException as error:
                raise Fault(f"no bytes for {silence:g} s ({type(error).__name__})") from error
            except (httpx.TransportError, httpx.DecodingError) as error:
                if seen.behind:
                    raise Behind(seen.behind) from error
                raise Fault(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def slot(self, host: str) -> Iterator[None]:
        """The right to one more connection to `host`, in its turn, for protocols other than HTTP."""
        allowed = self._host(host)
        with allowed.turns:
            slot = allowed.slots.acquire(self._sleep, self._note)
            try:
                self._take_turn(allowed)
                yield
            finally:
                slot.release()

    def _open(self, host: Host, scheme: str) -> Lane:
        from em_pipeline.storage.patience import HeaderDeadline

        slot = host.slots.acquire(self._sleep, self._note)
        try:
            return Lane(slot, scheme, self._connection(scheme), HeaderDeadline())
        except BaseException:
            slot.release()
            raise

    def _host(self, name: str) -> Host:
        with self._hosts_lock:
            if name not in self._hosts:
                self._hosts[name] = Host(name, self.policy.connections, self.policy.locks)
            return self._hosts[name]

    def _take_turn(self, host: Host) -> None:
        self.check_running()
        if self.policy.requests_per_second is None:
            return
        with host.lock:
            turn = max(host.next_request, time.monotonic())
            host.next_request = turn + 1 / self.policy.requests_per_second
        self._sleep(turn - time.monotonic())

    def _sleep(self, seconds: float) -> None:
        self._stop.wait(max(0.0, seconds))
        self.check_running()

    def wait_after(self, url: str, attempts: int, fault: Fault, *, to_do: str = TRY_LATER) -> None:
        """Wait before asking for `url` again: `attempts` ≥ 1 in a row have failed, the last with `fault`.

        Raises `SourceUnavailable` with `to_do`, or what the fault says, where the policy's patience ends.
        """
        policy = self.policy
        asked = fault.wait_s or 0.0
        retries = policy.retries
        if isinstance(fault, Unconnected) and policy.connect_retries is not None:
            retries = policy.connect_retries
        if attempts > retries or asked > policy.longest_wait_s:
            if fault.lasting is not None:
                raise fault.lasting from fault
            too_long = f" (the portal asks to wait {asked:g} s)" if asked > policy.longest_wait_s else ""
            raise SourceUnavailable(
                f"Fetch {url}",
                f"{attempts} attempt{'s' if attempts > 1 else ''} failed, the last with: {fault}{too_long}",
                to_do,
            ) from fault
        backoff = min(policy.longest_wait_s, policy.backoff_s * 2 ** (attempts - 1))
        wait = max(asked, backoff * _jitter.uniform(0.5, 1.0))
        self._note(f"{url}: {fault}; asking again in {wait:.1f} s (attempt {attempts + 1})")
        self._sleep(wait)

    def retrying(self, url: str, ask: Callable[[], T]) -> T:
        """What `ask` returns, repeated while it raises `Fault`. `SourceUnavailable` when patience ends."""
        attempts = 0
        while True:
            try:
                return ask()
            except Fault as fault:
                attempts += 1
                self.wait_after(url, attempts, fault)


@cache
def _trust() -> "ssl.SSLContext":
    """Whose certificates are believed; reading them takes longer than a request."""
    import httpx

    return httpx.create_ssl_context()


@cache
def _no_trust() -> "ssl.SSLContext":
    """For connections that are not encrypted: one to https would fail."""
    import ssl

    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _drain(response: "httpx.Response") -> None:
    if int(response.headers.get("Content-Length") or DRAINED_BODY + 1) <= DRAINED_BODY:
        response.read()
