"""A blob on its way to an object store: sent in parts, behind the back of whoever writes it."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import Final

from em_pipeline.domain.errors import StorageFailed
from em_pipeline.storage.object_client import ObjectClient, Part, Upload

PARTS_OF_ONE_SIZE: Final = 1000
"""S3 takes 10 000 parts of an object, so parts grow: by one `part_bytes` with each thousand."""


class ObjectSink:
    """Implements `BlobSink`. Holds `parts_at_once` + 1 parts in memory.

    A blob of up to `part_bytes` is one request; of more, one for each part, one to begin, and with S3 one
    to complete.
    """

    def __init__(self, client: ObjectClient, key: str) -> None:
        self._client = client
        self._key = key
        self._upload: Upload | None = None
        self._flying: deque[tuple[Future[None], bytearray]] = deque()
        self._free: list[bytearray] = []
        self._buffer = bytearray()
        self._filled = 0
        self._sent = 0
        self._parts = 0
        self._closed = False
        self._failed: BaseException | None = None

    def append(self, payload: bytes | memoryview) -> None:
        with self._failing_for_good():
            view = memoryview(payload).cast("B")
            while view:
                if self._filled == len(self._buffer):
                    self._next_buffer()
                taken = min(len(view), len(self._buffer) - self._filled)
                self._buffer[self._filled : self._filled + taken] = view[:taken]
                self._filled += taken
                view = view[taken:]

    def commit(self) -> None:
        with self._failing_for_good():
            tail = memoryview(self._buffer)[: self._filled]
            if self._upload is None:
                self._client.put(self._key, tail)
            else:
                while self._flying:
                    self._land()
                self._upload.complete(Part(self._parts + 1, self._sent, tail))
        self._closed = True

    def abandon(self) -> None:
        if self._closed:
            return
        self._closed = True
        for future, _ in self._flying:
            future.cancel()
        wait([future for future, _ in self._flying])
        self._flying.clear()
        if self._upload is not None:
            with suppress(StorageFailed):  # invisible as it is; `clear_unfinished` removes it
                self._upload.abort()

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """A blob of which anything is missing stays unfinished, whatever is called after."""
        if self._failed is not None:
            raise self._failed
        if self._closed:
            raise ValueError(f"{self._client.access.url(self._key)} is committed or abandoned")
        try:
            yield
        except BaseException as error:
            self._failed = error
            raise

    def _next_buffer(self) -> None:
        """Send the buffer, which is full or none yet, and take another, once there are few enough."""
        if self._filled:
            self._send()
        wanted = self._client.access.policy.part_bytes * (1 + self._parts // PARTS_OF_ONE_SIZE)
        self._free = [buffer for buffer in self._free if len(buffer) == wanted]
        self._buffer = self._free.pop() if self._free else bytearray(wanted)
        self._filled = 0

    def _send(self) -> None:
        if self._upload is None:
            self._upload = self._client.begin(self._key)
        while len(self._flying) >= self._client.parts_at_once:
            self._land()
        self._parts += 1
        future = self._client.executor.submit(
            self._upload.send, Part(self._parts, self._sent, memoryview(self._buffer))
        )
        self._flying.append((future, self._buffer))
        self._sent += self._filled

    def _land(self) -> None:
        future, buffer = self._flying[0]
        future.result()
        self._flying.popleft()
        self._free.append(buffer)
