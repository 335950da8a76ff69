"""HTTP: one GET with retries, and problem documents turned into errors."""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from em_client.errors import (
    AnswerDamaged,
    AnswerInvalid,
    ChunkCorrupt,
    EMError,
    NotFound,
    RequestRefused,
    ServerFailed,
    ServerUnavailable,
)

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

UNAVAILABLE = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
# A problem document or listing is small; whatever answers with more is not a sidecar.
LARGEST_DOCUMENT = 64 * 2**20


class Transport:
    """GET below one base URL. Safe to share between threads, and usable after a fork."""

    def __init__(self, base_url: str, timeout_s: float, retries: int) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise RequestRefused(
                f"Use {base_url!r} as the sidecar's address",
                "it does not begin with http:// or https://",
                'An address looks like "http://127.0.0.1:8000"',
            )
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self.retries = retries
        self._http: httpx.Client | None = None
        self._pid = 0
        self._opening = threading.Lock()

    def close(self) -> None:
        if self._http is not None and self._pid == os.getpid():
            self._http.close()
        self._http = None

    def get(
        self, tried: str, path: str, params: Mapping[str, Any], read: "Callable[[httpx.Response], T]"
    ) -> T:
        """What `read` makes of a 200 answer to `path`; `read` may consume the stream.

        Outages, "later" answers and damaged bodies are tried again `retries` times, after pauses that double
        or that the server asks for. Raises the tree in `em_client.errors`.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._attempt(tried, path, params, read)
            except (ServerUnavailable, AnswerDamaged) as failure:
                if attempt == self.retries:
                    raise
                time.sleep(_pause(attempt, failure))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def get_json(self, tried: str, path: str, params: Mapping[str, Any], parse: Callable[[Any], T]) -> T:
        """What `parse` makes of a JSON answer. Raises `AnswerInvalid` where it cannot."""

        def read(response: "httpx.Response") -> T:
            body = _document(tried, response)
            try:
                return parse(json.loads(body))
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise AnswerInvalid(
                    tried,
                    f"{self.base_url} answered {_opening(body)}, which cannot be read ({error!r})",
                    "Check that the address is that of an em-pipeline sidecar",
                ) from error

        return self.get(tried, path, params, read)

    def _attempt(
        self, tried: str, path: str, params: Mapping[str, Any], read: "Callable[[httpx.Response], T]"
    ) -> T:
        import httpx

        try:
            with self._client().stream("GET", self.base_url + path, params=params) as response:
                if response.status_code == httpx.codes.OK:
                    return read(response)
                raise _error(tried, self.base_url, response)
        except httpx.InvalidURL as error:
            raise RequestRefused(tried, f"{self.base_url!r} is not an address ({error})") from error
        except httpx.TransportError as error:
            raise ServerUnavailable(
                tried,
                f"{self.base_url} gave no whole answer ({type(error).__name__}: {error})",
                "Check that the sidecar runs there (`em serve`) and can be reached",
            ) from error

    def _client(self) -> "httpx.Client":
        import httpx

        with self._opening:
            # Sockets must not be shared with a forked worker: it would read its parent's answers.
            if self._http is None or self._pid != os.getpid():
                # Unencoded, the length and checksum on the wire are those of the voxels.
                headers = {"Accept-Encoding": "identity", "User-Agent": "em-client"}
                self._http = httpx.Client(timeout=self.timeout_s, headers=headers)
                self._pid = os.getpid()
            return self._http


def read_exactly(tried: str, response: "httpx.Response", size: int) -> bytearray:
    """The body, of exactly `size` bytes. Raises `AnswerDamaged` where it is shorter or longer."""
    body = bytearray(size)
    view = memoryview(body)
    filled = 0
    for part in response.iter_raw():
        end = filled + len(part)
        if end > size:
            raise AnswerDamaged(tried, f"the body is longer than the {size} bytes its headers promise")
        view[filled:end] = part
        filled = end
    if filled != size:
        raise AnswerDamaged(tried, f"the body ends after {filled} of {size} bytes")
    return body


def _pause(attempt: int, failure: EMError) -> float:
    if isinstance(failure, ServerUnavailable) and failure.retry_after_s is not None:
        return min(failure.retry_after_s, LONGEST_PAUSE_S)
    # Jitter keeps many workers that failed together from coming back together.
    return min(FIRST_PAUSE_S * float(2**attempt), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311


def _document(tried: str, response: "httpx.Response") -> bytes:
    body = bytearray()
    for part in response.iter_raw():
        body += part
        if len(body) > LARGEST_DOCUMENT:
            raise AnswerInvalid(tried, f"the answer is larger than {LARGEST_DOCUMENT} bytes")
    return bytes(body)


def _opening(body: bytes) -> str:
    return repr(body[:80].decode("utf-8", "replace"))


def _error(tried: str, base_url: str, response: "httpx.Response") -> EMError:
    body = _document(tried, response)
    status = response.status_code
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    problem = _problem(body) if kind == "application/problem+json" else None
    if problem is None:
        found = f"{base_url} answered {status} with {kind or 'no content type'}: {_opening(body)}"
        if status in UNAVAILABLE:
            return _unavailable(tried, found, "Try again later", response)
        to_do = "Check that the address is that of an em-pipeline sidecar"
        return AnswerInvalid(tried, found, to_do, status=status)

    slug = str(problem.get("slug", ""))
    said = str(problem.get("tried") or tried)
    found = str(problem.get("found") or problem.get("detail") or problem.get("title") or f"status {status}")
    to_do = str(problem.get("to_do") or "")
    if status in UNAVAILABLE:
        return _unavailable(said, found, to_do, response, slug)
    return _class_of(status, slug)(said, found, to_do, status=status, slug=slug)


def _class_of(status: int, slug: str) -> type[EMError]:
    by_slug: dict[str, type[EMError]] = {"not-found": NotFound, "chunk-corrupt": ChunkCorrupt}
    if slug in by_slug:
        return by_slug[slug]
    return RequestRefused if 400 <= status < 500 else ServerFailed


def _problem(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _unavailable(
    tried: str, found: str, to_do: str, response: "httpx.Response", slug: str = ""
) -> ServerUnavailable:
    error = ServerUnavailable(tried, found, to_do, status=response.status_code, slug=slug)
    wait = response.headers.get("retry-after", "")
    error.retry_after_s = float(wait) if wait.isdecimal() else None
    return error
