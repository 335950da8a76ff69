"""A folder of blobs in a bucket of an object store (S3, Google)."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from em_pipeline.domain.blobs import Run
from em_pipeline.domain.errors import NotFound
from em_pipeline.storage.lease import LOCK, lease
from em_pipeline.storage.local_files import is_temporary
from em_pipeline.storage.object_client import ObjectAccess, ObjectClient, StoredObject, client_of
from em_pipeline.storage.object_sink import ObjectSink
from em_pipeline.storage.signing import DEFAULT_REGION

DELETED_AT_ONCE = 1000


@dataclass(frozen=True)
class ObjectBlobs:
    """Implements `Blobs` below `prefix` of a bucket; empty for all of it.

    S3 and Google's store show an object to everyone from the moment that its upload is answered; nothing is
    remembered of listings, so every answer is of now. Credentials are those that AWS's and Google's tools
    find; without any, methods raise `InputRefused`.
    """

    access: ObjectAccess
    prefix: str = ""

    @property
    def url(self) -> str:
        return self.access.url(self.prefix).rstrip("/")

    @property
    def sink_bytes(self) -> int:
        policy = self.access.policy
        return (policy.parts_at_once + 1) * policy.part_bytes

    @property
    def requests_at_once(self) -> int:
        return self.access.policy.connections

    def below(self, prefix: str) -> "ObjectBlobs":
        return ObjectBlobs(self.access, self._key(prefix).rstrip("/"))

    def read(self, name: str) -> bytes:
        return self._client.get(self._key(name))

    def read_range(self, name: str, start: int, nbytes: int) -> bytes:
        if nbytes:
            return self._client.get_range(self._key(name), start, nbytes)
        if self.size(name) is None:
            raise NotFound(f"Read {self.access.url(self._key(name))}", "there is no such object")
        return b""

    def read_runs(self, runs: Iterable[Run], held: int) -> Generator[memoryview, None, None]:
        """As `Blobs` says: a request for each run, those behind it under way while its pieces are taken."""
        client, waiting = self._client, iter(runs)
        following, asked = next(waiting, None), 0
        flying: deque[tuple[Run, Future[bytes]]] = deque()
        try:
            while flying or following:
                while following and (not flying or asked + following.nbytes <= held):
                    key, wanted = self._key(following.name), following.nbytes
                    answer = client.executor.submit(client.get_range, key, following.start, wanted)
                    flying.append((following, answer))
                    asked += wanted
                    following = next(waiting, None)
                landed = flying[0][0]
                yield from _pieces(landed, flying.popleft()[1].result())
                asked -= landed.nbytes
        finally:
            for _, answer in flying:
                answer.cancel()
            wait([answer for _, answer in flying])

    def size(self, name: str) -> int | None:
        return self._client.size(self._key(name))

    def write(self, name: str, payload: bytes) -> None:
        if len(payload) <= self.access.policy.part_bytes:
            self._client.put(self._key(name), payload)
            return
        sink = self.create(name)
        try:
            sink.append(payload)
            sink.commit()
        finally:
            sink.abandon()

    def create(self, name: str) -> ObjectSink:
        return ObjectSink(self._client, self._key(name))

    def create_scratch(self, name: str) -> ObjectSink:
        return self.create(name)

    def delete(self, name: str) -> None:
        self._client.delete([self._key(name)])

    def delete_all(self, prefix: str = "") -> None:
        self._client.abort_unfinished(self._start(prefix))
        # The lock is its holder's until he leaves.
        self.delete_each(name for name, _ in self._all(prefix) if name != LOCK)

    def delete_each(self, names: Iterable[str]) -> None:
        """Remove many blobs, in as few requests as the store allows."""
        doomed = (self._key(name) for name in names)
        while some := list(islice(doomed, DELETED_AT_ONCE)):
            self._client.delete(some)

    def names(self, prefix: str = "") -> Iterator[str]:
        yield from (name for name, _ in self._all(prefix) if _is_blob(name))

    def entries(self) -> dict[str, StoredObject]:
        """What the store says of each blob, by its name."""
        return {name: entry for name, entry in self._all("") if _is_blob(name)}

    def clear_unfinished(self) -> None:
        self._client.abort_unfinished(self._start(""))

    def hold(self) -> AbstractContextManager[None]:
        return lease(self._client, self._key(LOCK), f"Write in {self.url}")

    def kvstore(self) -> dict[str, Any]:
        """As `Blobs` says. Tensorstore knows another server than Google's own for gs:// only by
        TENSORSTORE_GCS_HTTP_URL in the environment (https://google.github.io/tensorstore/environment.html).
        """
        spec = {"bucket": self.access.bucket, "path": self._start("")}
        if self.access.scheme == "gs":
            return {"driver": "gcs", **spec}
        endpoints = self.access.endpoints
        if not endpoints.s3:
            return {
                "driver": "s3",
                **spec,
                **({"aws_region": endpoints.s3_region} if endpoints.s3_region else {}),
            }
        region = endpoints.s3_region or DEFAULT_REGION
        return {"driver": "s3", **spec, "endpoint": endpoints.s3.rstrip("/"), "aws_region": region}

    @property
    def _client(self) -> ObjectClient:
        return client_of(self.access)

    def _all(self, prefix: str) -> Iterator[tuple[str, StoredObject]]:
        skipped = len(self._start(""))
        for entry in self._client.list(self._start(prefix)):
            yield entry.key[skipped:], entry

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _start(self, prefix: str) -> str:
        """What the keys of everything in the folder `prefix` of this folder begin with."""
        folder = self._key(prefix).rstrip("/") if prefix else self.prefix
        return f"{folder}/" if folder else ""


def _pieces(run: Run, payload: bytes) -> Iterator[memoryview]:
    """The pieces of a run, cut from its bytes, of which there may be too few."""
    start = 0
    for nbytes in run.pieces:
        yield memoryview(payload)[start : start + nbytes]
        start += nbytes


def _is_blob(name: str) -> bool:
    """Keys that end in "/" are folders of stores' web consoles, those of temporary names are our locks."""
    return not name.endswith("/") and not any(map(is_temporary, name.split("/")))
