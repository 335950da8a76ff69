"""A small client for portals' APIs: JSON and text documents, and what a file's headers say."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from em_pipeline.domain.errors import RecordInvalid
from em_pipeline.domain.progress import Progress, Silent
from em_pipeline.storage.answers import WEB_PAGE, WEB_PAGES, looks_like_html
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints, https_url
from em_pipeline.storage.transport import USER_AGENT, HttpPolicy, Transport

if TYPE_CHECKING:
    import httpx

# Far above any record of a portal we know; a listing larger than this is asked for in pages.
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
SHOWN = 200
# Method Not Allowed and Not Implemented: the server has no HEAD here, which says nothing about the file.
NO_HEAD = frozenset({405, 501})
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """A whole answer, its content decoded."""

    status: int
    headers: "httpx.Headers"
    body: bytes


@dataclass(frozen=True)
class HeadResult:
    """What a server says of a file without sending it. `size` in bytes; None where it says nothing.

    `modified` is the Last-Modified header as sent. `accepts_ranges` is True only where the server says so.
    """

    size: int | None
    etag: str | None
    modified: str | None
    accepts_ranges: bool


class PortalClient:
    """Asks one portal's API, patiently and within its limits. Safe to use from several threads.

    `connections` is per host; `timeout_s` bounds connecting and each silence of the server; `retries` is how
    often a failed request is repeated; `endpoints` are the object stores'. All methods raise
    `SourceUnavailable` for an outage (connection refused or reset, silence, 5xx, 429 beyond patience),
    `NotFound` for 404 and 410, `InputRefused` for 401, 403 and URLs that are not http(s), and `RecordInvalid`
    for an answer that cannot be used.
    """

    def __init__(
        self,
        *,
        connections: int,
        requests_per_second: float | None = None,
        timeout_s: float = 12.0,
        retries: int = 4,
        user_agent: str = USER_AGENT,
        backoff_s: float = 0.5,
        max_bytes: int = MAX_DOCUMENT_BYTES,
        progress: Progress | None = None,
        endpoints: ObjectEndpoints = PUBLIC,
    ) -> None:
        policy = HttpPolicy(
            connections=connections,
            connect_timeout_s=timeout_s,
            read_timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            requests_per_second=requests_per_second,
            user_agent=user_agent,
            endpoints=endpoints,
        )
        self._max_bytes = max_bytes
        self._transport = Transport(policy, (progress or Silent()).note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.__exit__(None, None, None)

    def get_json(self, url: str) -> Any:
        """The JSON document at `url`."""
        return _parsed(url, *self._document("GET", url, {"Accept": "application/json"}, None))

    def post_json(self, url: str, payload: Any) -> Any:
        """The JSON answer to a posted JSON `payload`. Only for queries: it is repeated after a failure."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        return _parsed(url, *self._document("POST", url, headers, json.dumps(payload).encode()))

    def get_text(self, url: str) -> str:
        """The document at `url` (HTML pages included), decoded by its declared charset, else UTF-8."""
        return _decoded(url, *self._document("GET", url, {}, None))

    def post_text(self, url: str, content: str) -> str:
        """The text answered to `content`, posted as `curl --data` does. Only for queries: it is repeated
        after a failure."""
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return _decoded(url, *self._document("POST", url, form, content.encode()))

    def head(self, url: str, *, accept_encoding: str = "identity") -> HeadResult:
        """Size, validators and range support of the file at `url`, without fetching it.

        The size is of the bytes that would be sent: of the encoded ones only where they were accepted. A web
        page in place of a file is an outage: its size and validators are those of a maintenance page.
        """
        return self._transport.retrying(url, lambda: self._head(url, accept_encoding))

    def _head(self, url: str, accept_encoding: str) -> HeadResult:
        accepted = {"Accept-Encoding": accept_encoding}
        with self._transport.exchange("HEAD", url, accepted, accept=NO_HEAD | {200}) as response:
            response.read()
            if response.status_code not in NO_HEAD:
                _refuse_web_page(url, response)
                size = response.headers.get("Content-Length", "")
                ranges = response.headers.get("Accept-Ranges") == "bytes"
                return _head_result(response, size, accept_encoding, ranges=ranges)
        with self._transport.exchange("GET", url, {**accepted, "Range": "bytes=0-0"}) as response:
            _refuse_web_page(url, response)
            if response.status_code == 206:
                size = response.headers.get("Content-Range", "").rpartition("/")[2]
                return _head_result(response, size, accept_encoding, ranges=True)
            size = response.headers.get("Content-Length", "")
            return _head_result(response, size, accept_encoding, ranges=False)

    def get_range(self, address: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, from byte `offset` on, of what is at an http(s), s3:// or gs:// address.

        Raises `RecordInvalid` where the server sends no parts of files, or the file ends before.
        """
        url = https_url(address, self.endpoints)
        return self._transport.retrying(url, lambda: self._range(url, offset, length))

    def _range(self, url: str, offset: int, length: int) -> bytes:
        span = f"bytes={offset}-{offset + length - 1}"
        headers = {"Accept-Encoding": "identity", "Range": span}
        with self._transport.exchange("GET", url, headers) as response:
            sent = response.headers.get("Content-Range", "no part")
            if not sent.startswith(f"{span.replace('=', ' ')}/"):
                head = next(response.iter_bytes(), b"")
                if looks_like_html(response.headers.get("Content-Type"), head):
                    raise Fault("a web page came in place of a part of the file")
                raise RecordInvalid(
                    f"Fetch {span} of {url}", f"the server sent {sent}", "The file may have been replaced"
                )
            body = self._body(url, response)
        if len(body) != length:
            raise Fault(f"{len(body)} bytes came of {length}")
        return body

    def final_url(self, url: str) -> str:
        """Where `url` leads, with the fragment that belongs to it, without fetching what is there."""

        def ask() -> str:
            with self._transport.exchange("HEAD", url, {}, accept=NO_HEAD | {200}) as response:
                return str(response.url)

        return self._transport.retrying(url, ask)

    @property
    def endpoints(self) -> ObjectEndpoints:
        """Where the objects of s3:// and gs:// addresses are."""
        return self._transport.policy.endpoints

    def ask(self, url: str, understand: Callable[[Answer], T], *, accept: frozenset[int]) -> T:
        """What `understand` makes of the answer to a GET; where it raises `Fault`, it is asked again."""

        def ask() -> T:
            sent = {"Accept-Encoding": "gzip"}
            with self._transport.exchange("GET", url, sent, accept=accept) as response:
                body = self._body(url, response)
            return understand(Answer(response.status_code, response.headers, body))

        return self._transport.retrying(url, ask)

    def _document(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> "tuple[bytes, httpx.Headers]":
        def ask() -> "tuple[bytes, httpx.Headers]":
            sent = {**headers, "Accept-Encoding": "gzip"}
            with self._transport.exchange(
                method, url, sent, content=content, accept=frozenset({200})
            ) as response:
                return self._body(url, response), response.headers

        return self._transport.retrying(url, ask)

    def _body(self, url: str, response: "httpx.Response") -> bytes:
        body = bytearray()
        for piece in response.iter_bytes():
            body += piece
            if len(body) > self._max_bytes:
                raise RecordInvalid(
                    f"Read {url}",
                    f"the document is larger than {self._max_bytes} bytes",
                    "It is no record of a portal we know; check the URL",
                )
        return bytes(body)


def _refuse_web_page(url: str, response: "httpx.Response") -> None:
    named_as_one = PurePosixPath(urlsplit(url).path).suffix.lower() in WEB_PAGES
    if not named_as_one and looks_like_html(response.headers.get("Content-Type"), b""):
        raise Fault(WEB_PAGE)


def _head_result(response: "httpx.Response", size: str, accept_encoding: str, *, ranges: bool) -> HeadResult:
    encoded = response.headers.get("Content-Encoding", "identity") not in ("identity", accept_encoding)
    return HeadResult(
        size=int(size) if size.isdecimal() and not encoded else None,
        etag=response.headers.get("ETag"),
        modified=response.headers.get("Last-Modified"),
        accepts_ranges=ranges,
    )


def _decoded(url: str, body: bytes, headers: "httpx.Headers") -> str:
    import httpx

    charset = httpx.Response(200, headers=headers).charset_encoding or "utf-8"
    try:
        return body.decode(charset)
    except (UnicodeDecodeError, LookupError) as error:
        raise RecordInvalid(f"Read {url}", f"it is not text in {charset}: {error}", "") from error


def _parsed(url: str, body: bytes, headers: "httpx.Headers") -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        shown = body[:SHOWN].decode(errors="replace")
        html = looks_like_html(headers.get("Content-Type"), body)
        kind = "an HTML page in place of JSON" if html else f"no JSON ({error})"
        raise RecordInvalid(
            f"Read {url}",
            f"the portal answered with {kind}, which begins {shown!r}",
            "Open the URL in a browser: the portal may be under maintenance or have moved its API",
        ) from error
