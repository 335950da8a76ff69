"""What our own object store is asked for, whichever kind it is: one request each, repeated while it may help.

`em_pipeline.storage.objects` reads portals' public buckets; this is for the bucket that we write.
"""

import atexit
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from em_pipeline.domain.errors import InputRefused, StorageFailed, StoreUnavailable
from em_pipeline.domain.wording import counted
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints

T = TypeVar("T")

LEAST_PART: Final = 5 << 20
"""Bytes; S3 takes no smaller part but the last, Google none that is no multiple of 256 KiB:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html and
https://cloud.google.com/storage/docs/performing-resumable-uploads#chunked-upload."""

TRY_AGAIN: Final = (
    "Check that the store and the network are up; what is finished is kept, so run the same again"
)
_jitter = random.Random()  # noqa: S311 - spreads retries, protects nothing


@dataclass(frozen=True)
class ObjectPolicy:
    """How hard a store is asked. A blob being written holds `parts_at_once` + 1 parts of `part_bytes`.

    A request is made up to `attempts` times, with waits from `backoff_s`, doubled up to `longest_wait_s`;
    `timeout_s` is the longest silence that is borne. `connections` are of one process.
    """

    part_bytes: int = 16 << 20
    parts_at_once: int = 3
    connections: int = 16
    attempts: int = 10
    backoff_s: float = 0.25
    longest_wait_s: float = 8.0
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        whole = self.part_bytes >= LEAST_PART and self.part_bytes % (256 << 10) == 0
        if not whole or min(self.parts_at_once, self.connections, self.attempts) < 1:
            raise InputRefused(
                "Read the settings for the object store",
                f"parts of {self.part_bytes} bytes, {self.parts_at_once} at once, "
                f"{self.connections} connections, {self.attempts} attempts",
                f"Parts are multiples of 256 KiB from {LEAST_PART} bytes; the others are 1 or more",
            )


@dataclass(frozen=True)
class ObjectAccess:
    """A bucket and how it is reached. `scheme` is s3 or gs; credentials are found, never kept, here."""

    scheme: str
    bucket: str
    endpoints: ObjectEndpoints = PUBLIC
    policy: ObjectPolicy = field(default_factory=ObjectPolicy)

    def url(self, key: str) -> str:
        return f"{self.scheme}://{self.bucket}/{key}"


@dataclass(frozen=True)
class StoredObject:
    """What a listing says of one object. `tag` changes with the content, `modified` is of the store's clock.

    Two objects of one size and tag have the same content; other tags say nothing.
    """

    key: str
    size: int
    tag: str
    modified: float


Page = tuple[list[StoredObject], str | None]
"""Of a listing: some objects, and the token of the page after it, None for the last."""


@dataclass(frozen=True)
class Leased:
    """A small object: its `tag` as `put_if` takes it, and seconds since it was put, by the store's clock."""

    payload: bytes
    tag: str
    age_s: float


@dataclass(frozen=True)
class Part:
    """Some bytes of an object: the `number`th part (from 1), whose first byte is that at `start`."""

    number: int
    start: int
    payload: memoryview


class Upload(Protocol):
    """One object on its way in parts; not there before `complete`."""

    def send(self, part: Part) -> None: ...

    def complete(self, last: Part) -> None:
        """Send what is left, which may be nothing, and make the object visible."""
        ...

    def abort(self) -> None:
        """Forget everything that was sent."""
        ...


class ObjectClient(Protocol):
    """One bucket, for the threads of one process.

    Every method raises `StorageFailed` where the store refuses or does not answer for as long as the policy
    says, and `InputRefused` where there are no credentials.
    """

    access: ObjectAccess
    executor: ThreadPoolExecutor
    parts_at_once: int

    def get(self, key: str) -> bytes:
        """Raises `NotFound`."""
        ...

    def get_range(self, key: str, start: int, nbytes: int) -> bytes:
        """Up to `nbytes` ≥ 1, nothing at and after the end. Raises `NotFound`."""
        ...

    def size(self, key: str) -> int | None: ...

    def put(self, key: str, payload: bytes | memoryview) -> None: ...

    def look(self, key: str) -> Leased | None: ...

    def put_if(self, key: str, payload: bytes, tag: str | None) -> str | None:
        """Put where the object still has `tag`, or is not there for None. The new tag, or None if not put."""
        ...

    def delete_if(self, key: str, tag: str) -> None:
        """Delete the object if it still has `tag`."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete those that are there."""
        ...

    def list(self, prefix: str, at_most: int | None = None) -> Iterator[StoredObject]:
        """All objects whose keys begin with `prefix`, in the order of their keys."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Copy within the bucket, by the store itself."""
        ...

    def begin(self, key: str) -> Upload: ...

    def abort_unfinished(self, prefix: str) -> None:
        """Forget what killed writers had sent of objects whose keys begin with `prefix`."""
        ...

    def close(self) -> None:
        """Close its connections."""
        ...


def repeated(policy: ObjectPolicy, tried: str, ask: Callable[[], T]) -> T:
    """What `ask` returns, repeated while it raises `Fault`. Raises `StoreUnavailable` after the last."""
    for attempt in range(1, policy.attempts + 1):
        try:
            return ask()
        except Fault as fault:
            if attempt == policy.attempts:
                found = f"{counted(attempt, 'attempt')} failed, the last with: {fault}"
                raise StoreUnavailable(tried, found, TRY_AGAIN) from fault
            wait = min(policy.longest_wait_s, policy.backoff_s * 2 ** (attempt - 1))
            time.sleep(max(wait * _jitter.uniform(0.5, 1.0), min(fault.wait_s or 0.0, policy.longest_wait_s)))
    raise AssertionError("attempts are at least one")


NO_ANSWER: Final = (LookupError, TypeError, ValueError)
"""What reading an answer raises that is not the store's, as that of a proxy whose store is down."""


def no_answer(error: Exception) -> Fault:
    """Of one of `NO_ANSWER`."""
    lacks = f"it lacks {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
    return Fault(f"an answer that is none of the store's: {lacks}")


def check_page(prefix: str, found: Sequence[StoredObject]) -> None:
    """Raise `Fault` where a page of a listing has objects that were not asked for."""
    for entry in found:
        if not entry.key.startswith(prefix):
            raise Fault(f"a listing of {prefix!r} has {entry.key!r}")


def no_bucket(tried: str, access: ObjectAccess) -> StorageFailed:
    return StorageFailed(
        tried,
        f"there is no bucket {access.bucket}",
        f"Create it, or correct EM_STORE_URL (and {access.endpoints.setting_of(access.scheme)})",
    )


def where_to_look(access: ObjectAccess) -> str:
    return f"Check EM_STORE_URL and {access.endpoints.setting_of(access.scheme)}"


def redirected(access: ObjectAccess, status: int, place: str) -> StorageFailed:
    """Requests are signed for one address, and bytes are not sent to whom somebody names."""
    return StorageFailed(
        f"Reach {access.url('')}",
        f"the store's address answers HTTP {status} and sends us to {place}",
        "Set EM_STORE_ENDPOINT to the address at which the store itself answers",
    )


def no_permission(tried: str, found: str) -> StorageFailed:
    return StorageFailed(
        tried,
        f"the store refused it ({found})",
        "The credentials need to list, read, write and delete in the bucket",
    )


_clients: dict[ObjectAccess, ObjectClient] = {}
_clients_lock = threading.Lock()


def client_of(access: ObjectAccess) -> ObjectClient:
    """This process's client of the bucket."""
    with _clients_lock:
        if access not in _clients:
            _clients[access] = _connect(access)
        return _clients[access]


def _connect(access: ObjectAccess) -> ObjectClient:
    if access.scheme == "s3":
        from em_pipeline.storage.s3_client import S3Client

        return S3Client(access)
    from em_pipeline.storage.gcs_client import GcsClient

    return GcsClient(access)


def _forget_clients() -> None:
    """A forked child shares no connection with its parent."""
    global _clients, _clients_lock
    _clients, _clients_lock = {}, threading.Lock()


@atexit.register
def _close_clients() -> None:
    for client in _clients.values():
        client.close()


os.register_at_fork(after_in_child=_forget_clients)
