"""One bucket of Google Cloud Storage, through its JSON API.

https://cloud.google.com/storage/docs/json_api/v1 and, for uploads in parts,
https://cloud.google.com/storage/docs/performing-resumable-uploads.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx

from em_pipeline.domain.errors import InputRefused, NotFound, StorageFailed
from em_pipeline.storage.answers import retry_after
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.object_client import (
    NO_ANSWER,
    TRY_AGAIN,
    Leased,
    ObjectAccess,
    Page,
    Part,
    StoredObject,
    check_page,
    no_answer,
    no_bucket,
    no_permission,
    redirected,
    repeated,
    where_to_look,
)

T = TypeVar("T")

SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
LISTING: Final = "storage#objects"
GENERATION: Final = "x-goog-generation"
FIELDS: Final = "kind,items(name,size,md5Hash,crc32c,updated),nextPageToken"
PIECE: Final = 256 << 10
RESUME: Final = 308
GONE: Final = frozenset({404, 410, 499})
_RANGE = re.compile(r"bytes=0-(\d+)")


class GcsClient:
    """Implements `ObjectClient`. An upload takes its parts one after the other."""

    parts_at_once = 1

    def __init__(self, access: ObjectAccess) -> None:
        self.access = access
        self.executor = ThreadPoolExecutor(access.policy.connections, "object-store")
        base = access.endpoints.gs.rstrip("/")
        self._objects = f"{base}/storage/v1/b/{access.bucket}/o"
        self._uploads = f"{base}/upload/storage/v1/b/{access.bucket}/o"
        # A token never goes to a server that anyone could listen to: emulators on this machine need none.
        self._auth = _GoogleAuth() if base.startswith("https://") else None
        self._http = httpx.Client(
            timeout=httpx.Timeout(access.policy.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=access.policy.connections + 8),
        )

    def get(self, key: str) -> bytes:
        return self.ask("Read", key, lambda: _of_google(self._media(key)).content)

    def get_range(self, key: str, start: int, nbytes: int) -> bytes:
        def ranged() -> bytes:
            answer = self._media(key, {"Range": f"bytes={start}-{start + nbytes - 1}"}, accept=(416,))
            if answer.status_code == 416:  # it begins at or after the end
                return b""
            content = _of_google(answer).content
            return content[start : start + nbytes] if answer.status_code == 200 else content

        return self.ask("Read", key, ranged)

    def size(self, key: str) -> int | None:
        try:
            return self.ask(
                "Look at", key, lambda: int(_object(self.send("GET", self._named(key), key))["size"])
            )
        except NotFound:
            return None

    def put(self, key: str, payload: bytes | memoryview) -> None:
        self.ask("Write", key, lambda: _object(self._insert(key, payload)))

    def look(self, key: str) -> Leased | None:
        def looked() -> Leased:
            answer = self._media(key)
            told = answer.headers
            age = parsedate_to_datetime(told["Date"]) - parsedate_to_datetime(told["Last-Modified"])
            return Leased(answer.content, told[GENERATION], age.total_seconds())

        try:
            return self.ask("Read", key, looked)
        except NotFound:
            return None

    def put_if(self, key: str, payload: bytes, tag: str | None) -> str | None:
        def put() -> str | None:
            answer = self._insert(key, payload, accept=(412,), ifGenerationMatch=tag or "0")
            return None if answer.status_code == 412 else str(_object(answer)["generation"])

        return self.ask("Write", key, put)

    def delete_if(self, key: str, tag: str) -> None:
        self._delete(key, ifGenerationMatch=tag)

    def delete(self, keys: Sequence[str]) -> None:
        for _ in self.executor.map(self._delete, keys):
            pass

    def _delete(self, key: str, **conditions: str) -> None:
        def delete() -> None:
            answer = self.send("DELETE", self._named(key), key, params=conditions, accept=(412,))
            if answer.status_code not in (204, 412):
                raise Fault(f"HTTP {answer.status_code} where Google says 204")

        try:
            self.ask("Delete", key, delete)
        except NotFound:
            return

    def list(self, prefix: str, at_most: int | None = None) -> Iterator[StoredObject]:
        return islice(self._listed(prefix, min(1000, at_most or 1000)), at_most)

    def _listed(self, prefix: str, page: int) -> Iterator[StoredObject]:
        asked = {"prefix": prefix, "maxResults": str(page), "fields": FIELDS}
        while True:
            found, following = self.ask("List", prefix, lambda: self._page(asked))
            yield from found
            if following is None:
                return
            asked["pageToken"] = following

    def _page(self, asked: dict[str, str]) -> Page:
        answer = _json(self.send("GET", self._objects, None, params=asked))
        if answer["kind"] != LISTING:  # all that Google says of none
            raise Fault(f"a listing of the kind {answer['kind']}")
        found = [_stored(entry) for entry in answer.get("items", [])]
        check_page(asked["prefix"], found)
        following = answer.get("nextPageToken") or None
        if following is not None and following == asked.get("pageToken"):
            raise Fault("the answer names itself as the page after it")
        return found, following

    def copy(self, source: str, target: str) -> None:
        url = f"{self._named(source)}/rewriteTo/b/{self.access.bucket}/o/{quote(target, safe='')}"
        asked: dict[str, str] = {}

        def copy() -> str | None:
            told = _json(self.send("POST", url, source, params=asked))
            if not told["done"]:
                return str(told["rewriteToken"])
            _ = told["resource"]["generation"]  # what is copied is an object
            return None

        while token := self.ask("Copy", source, copy):
            asked["rewriteToken"] = token

    def begin(self, key: str) -> "GcsUpload":
        def begun() -> str:
            asked = {"uploadType": "resumable", "name": key}
            return self.send("POST", self._uploads, None, params=asked).headers["Location"]

        return GcsUpload(self, key, self.ask("Begin", key, begun))

    def abort_unfinished(self, prefix: str) -> None:
        """Nothing to do: what was sent of an upload is neither listed nor charged, and ends after a week."""

    def close(self) -> None:
        self._http.close()

    def _media(
        self, key: str, headers: dict[str, str] | None = None, accept: Sequence[int] = ()
    ) -> httpx.Response:
        # Objects are sent as they are kept; `identity` would make Google decode those that are compressed.
        wanted = {"Accept-Encoding": "gzip", **(headers or {})}
        return self.send("GET", self._named(key), key, params={"alt": "media"}, headers=wanted, accept=accept)

    def _insert(
        self, key: str, payload: bytes | memoryview, accept: Sequence[int] = (), **conditions: str
    ) -> httpx.Response:
        asked = {"uploadType": "media", "name": key, **conditions}
        return self.send("POST", self._uploads, None, params=asked, body=memoryview(payload), accept=accept)

    def send(
        self,
        method: str,
        url: str,
        key: str | None,
        *,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: memoryview | None = None,
        accept: Sequence[int] = (),
    ) -> httpx.Response:
        """One attempt. 404 is `NotFound` where `key` is asked for and the bucket is there."""
        sized = {"Content-Length": str(len(body) if body is not None else 0)} if method != "GET" else {}
        content = None if body is None else _pieces(body)
        tried = f"{method} {self.access.url(key or '')}"
        try:
            answer = self._http.request(
                method,
                url,
                params=params,
                headers={**sized, **(headers or {})},
                content=content,
                auth=self._auth,
            )
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Fault(f"{type(error).__name__}: {error}") from error
        status = answer.status_code
        # What tells of a resumable upload is no redirect, and has no address.
        if answer.has_redirect_location or (300 <= status < 400 and status not in accept):
            raise redirected(self.access, status, answer.headers.get("Location", "elsewhere"))
        if status < 300 or status in accept:
            return answer
        found = f"HTTP {status} {answer.text[:200]}"
        if status >= 500 or status in (408, 429):
            raise Fault(found, retry_after(answer.headers.get("Retry-After")))
        if status in (401, 403):
            raise no_permission(tried, found)
        if status == 404 and key is not None:
            self._page({"prefix": key, "maxResults": "1", "fields": FIELDS})
            raise NotFound(tried, "there is no such object")
        if status == 404:
            raise no_bucket(tried, self.access)
        raise StorageFailed(tried, f"the store answered {found}", where_to_look(self.access))

    def _named(self, key: str) -> str:
        return f"{self._objects}/{quote(key, safe='')}"

    def ask(self, verb: str, key: str, request: Callable[[], T]) -> T:
        def attempt() -> T:
            try:
                return request()
            except NO_ANSWER as error:
                raise no_answer(error) from error

        return repeated(self.access.policy, f"{verb} {self.access.url(key)}", attempt)


class GcsUpload:
    """A resumable upload: after a failure, the store says how much of it arrived."""

    def __init__(self, client: GcsClient, key: str, session: str) -> None:
        self._client = client
        self._key = key
        self._session = session

    def send(self, part: Part) -> None:
        self._send(f"Write part {part.number} of", part, "*")

    def complete(self, last: Part) -> None:
        self._send("Complete", last, str(last.start + len(last.payload)))

    def abort(self) -> None:
        self._client.ask(
            "Abort the upload of", self._key, lambda: self._put({}, None, accept=tuple(GONE), method="DELETE")
        )

    def _send(self, verb: str, part: Part, total: str) -> None:
        start, end = part.start, part.start + len(part.payload)
        sure = True

        def attempt() -> None:
            nonlocal sure
            at = start if sure else self._arrived(total)
            sure = False
            while True:
                if at is None or (at == end and total == "*"):
                    return
                if not start <= at <= end:
                    lost = f"of {start} bytes that it had taken it has {at}"
                    raise StorageFailed(f"Write {self._client.access.url(self._key)}", lost, TRY_AGAIN)
                place = f"{at}-{end - 1}" if at < end else "*"
                at = _taken(
                    self._put({"Content-Range": f"bytes {place}/{total}"}, part.payload[at - start :])
                )

        self._client.ask(verb, self._key, attempt)

    def _arrived(self, total: str) -> int | None:
        """Bytes that the store has; None where it has made the object of them."""
        return _taken(self._put({"Content-Range": f"bytes */{total}"}, None))

    def _put(
        self,
        headers: dict[str, str],
        body: memoryview | None,
        accept: Sequence[int] = (RESUME,),
        method: str = "PUT",
    ) -> httpx.Response:
        return self._client.send(method, self._session, None, headers=headers, body=body, accept=accept)


def _pieces(body: memoryview) -> Iterator[bytes]:
    """The body so that each piece, and not the whole, has to be taken within the timeout."""
    return (bytes(body[at : at + PIECE]) for at in range(0, len(body), PIECE))


def _json(answer: httpx.Response) -> dict[str, Any]:
    """Raises `ValueError` or `TypeError` where it is no JSON object."""
    told = answer.json()
    if not isinstance(told, dict):
        raise TypeError(f"{str(told)[:200]!r} is no object of JSON")
    return told


def _object(answer: httpx.Response) -> dict[str, Any]:
    """What Google says of an object, which has a generation. Raises like `_json`, and `KeyError`."""
    told = _json(answer)
    _ = told["generation"]
    return told


def _of_google(answer: httpx.Response) -> httpx.Response:
    """An object's bytes as Google sends them, with its generation. Raises `KeyError`."""
    _ = answer.headers[GENERATION]
    return answer


def _stored(entry: dict[str, Any]) -> StoredObject:
    crc = entry["crc32c"]
    tag = f"{entry.get('md5Hash', '')} {crc}"  # objects that were composed have no MD5
    modified = datetime.fromisoformat(entry["updated"]).timestamp()
    return StoredObject(entry["name"], int(entry["size"]), tag, modified)


def _taken(answer: httpx.Response) -> int | None:
    if answer.status_code != RESUME:
        _object(answer)
        return None
    match = _RANGE.fullmatch(answer.headers.get("Range", ""))
    return int(match[1]) + 1 if match else 0


class _GoogleAuth(httpx.Auth):
    """The token of the credentials that Google's own tools would use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._credentials: Any = None

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        headers: dict[str, str] = {}
        with self._lock:
            self._token(request, headers)
        request.headers.update(headers)
        yield request

    def _token(self, request: httpx.Request, headers: dict[str, str]) -> None:
        from google.auth import default, exceptions
        from google.auth.transport.requests import Request

        tried = f"{request.method} {request.url}"
        try:
            if self._credentials is None:
                self._credentials, _ = default(scopes=[SCOPE])
            self._credentials.before_request(Request(), request.method, str(request.url), headers)
        except exceptions.DefaultCredentialsError as error:
            raise InputRefused(
                tried,
                "no Google credentials were found",
                "Set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
            ) from error
        except exceptions.GoogleAuthError as error:
            if error.retryable:
                raise Fault(f"{type(error).__name__}: {error}") from error
            raise InputRefused(
                tried, f"Google refused the credentials: {error}", "Renew them, as for gcloud"
            ) from error
