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
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.object_client import (
    TRY_AGAIN,
    Leased,
    ObjectAccess,
    Part,
    StoredObject,
    no_bucket,
    no_permission,
    repeated,
)
from em_pipeline.storage.transport import retry_after

T = TypeVar("T")

SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
FIELDS: Final = "items(name,size,md5Hash,crc32c,updated),nextPageToken"
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
        return self.ask("Read", key, lambda: self._media(key).content)

    def get_range(self, key: str, start: int, nbytes: int) -> bytes:
        def ranged() -> bytes:
            answer = self._media(key, {"Range": f"bytes={start}-{start + nbytes - 1}"}, accept=(416,))
            if answer.status_code == 416:  # it begins at or after the end
                return b""
            return answer.content[start : start + nbytes] if answer.status_code == 200 else answer.content

        return self.ask("Read", key, ranged)

    def size(self, key: str) -> int | None:
        try:
            return self.ask(
                "Look at", key, lambda: int(self.send("GET", self._named(key), key).json()["size"])
            )
        except NotFound:
            return None

    def put(self, key: str, payload: bytes | memoryview) -> None:
        self.ask("Write", key, lambda: self._insert(key, payload))

    def look(self, key: str) -> Leased | None:
        def looked() -> Leased:
            answer = self._media(key)
            told = answer.headers
            age = parsedate_to_datetime(told["Date"]) - parsedate_to_datetime(told["Last-Modified"])
            return Leased(answer.content, told["x-goog-generation"], age.total_seconds())

        try:
            return self.ask("Read", key, looked)
        except NotFound:
            return None

    def put_if(self, key: str, payload: bytes, tag: str | None) -> str | None:
        def put() -> str | None:
            answer = self._insert(key, payload, ifGenerationMatch=tag or "0")
            return None if answer.status_code == 412 else str(answer.json()["generation"])

        return self.ask("Write", key, put)

    def delete_if(self, key: str, tag: str) -> None:
        self._delete(key, ifGenerationMatch=tag)

    def delete(self, keys: Sequence[str]) -> None:
        for _ in self.executor.map(self._delete, keys):
            pass

    def _delete(self, key: str, **conditions: str) -> None:
        def delete() -> None:
            self.send("DELETE", self._named(key), key, params=conditions, accept=(204, 412))

        try:
            self.ask("Delete", key, delete)
        except NotFound:
            return

    def list(self, prefix: str, at_most: int | None = None) -> Iterator[StoredObject]:
        return islice(self._listed(prefix, min(1000, at_most or 1000)), at_most)

    def _listed(self, prefix: str, page: int) -> Iterator[StoredObject]:
        asked = {"prefix": prefix, "maxResults": str(page), "fields": FIELDS}
        while True:
            answer = self.ask(
                "List", prefix, lambda: self.send("GET", self._objects, None, params=asked).json()
            )
            for entry in answer.get("items", []):
                # Objects that were composed have no MD5.
                tag = f"{entry.get('md5Hash', '')} {entry['crc32c']}"
                modified = datetime.fromisoformat(entry["updated"]).timestamp()
                yield StoredObject(entry["name"], int(entry["size"]), tag, modified)
            if not answer.get("nextPageToken"):
                return
            asked["pageToken"] = answer["nextPageToken"]

    def copy(self, source: str, target: str) -> None:
        url = f"{self._named(source)}/rewriteTo/b/{self.access.bucket}/o/{quote(target, safe='')}"
        asked: dict[str, str] = {}
        while True:
            told = self.ask("Copy", source, lambda: self.send("POST", url, source, params=asked).json())
            if told["done"]:
                return
            asked["rewriteToken"] = told["rewriteToken"]

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

    def _insert(self, key: str, payload: bytes | memoryview, **conditions: str) -> httpx.Response:
        asked = {"uploadType": "media", "name": key, **conditions}
        return self.send("POST", self._uploads, None, params=asked, body=memoryview(payload), accept=(412,))

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
        if status < 300 or status in accept:
            return answer
        found = f"HTTP {status} {answer.text[:200]}"
        if status >= 500 or status in (408, 429):
            raise Fault(found, retry_after(answer.headers.get("Retry-After")))
        if status in (401, 403):
            raise no_permission(tried, found)
        if status == 404 and key is not None:
            asked = {"prefix": key, "maxResults": "1", "fields": "nextPageToken"}
            self.send("GET", self._objects, None, params=asked)
            raise NotFound(tried, "there is no such object")
        if status == 404:
            raise no_bucket(tried, self.access)
        raise StorageFailed(tried, f"the store answered {found}", "Check EM_STORE_URL and EM_GS_ENDPOINT")

    def _named(self, key: str) -> str:
        return f"{self._objects}/{quote(key, safe='')}"

    def ask(self, verb: str, key: str, request: Callable[[], T]) -> T:
        return repeated(self.access.policy, f"{verb} {self.access.url(key)}", request)


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


def _taken(answer: httpx.Response) -> int | None:
    if answer.status_code != RESUME:
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
