"""Open volumes, shared between requests."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from em_pipeline.catalog.entries import PublishedVersion
from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.storage.store import Store
from em_pipeline.volumes.reader import VolumeReader


def open_published(store: Store, version: PublishedVersion) -> VolumeReader:
    """The volume of a published version.

    Raises `ChunkCorrupt` where it or its ledger is not in the store, or is not what was published: the
    catalogue vouches for it, so this is damage and never "no data".
    """
    try:
        folder, _, name = version.ledger_key.rpartition("/")
        reader = VolumeReader.open(store.blobs(version.volume_key), store.blobs(folder), name)
    except NotFound as error:
        raise ChunkCorrupt(
            error.tried, error.found, "Restore the store, or ingest the dataset again"
        ) from error
    if reader.ledger.sha256 != version.ledger_sha256:
        reader.close()
        raise ChunkCorrupt(
            f"Open version {version.version} of {version.dataset_id}",
            f"its ledger has the SHA-256 {reader.ledger.sha256}, {version.ledger_sha256} was published",
            f"Restore the store, or run `em verify {version.dataset_id} --discard`, then "
            f"`em ingest {version.dataset_id}`: it is written again",
        )
    return reader


@dataclass(eq=False)
class _Entry:
    """`leases` and `evicted` are guarded by the cache's lock, `reader` by the entry's own."""

    leases: int = 0
    evicted: bool = False
    reader: VolumeReader | None = None
    opening: threading.Lock = field(default_factory=threading.Lock)


class ReaderCache:
    """Keeps the `capacity` most recently used readers open, by the key of their volume in the store.

    A reader is opened once however many requests want it at the same moment. One that is evicted while
    requests still read from it is closed when the last of them is done.
    """

    def __init__(self, open_reader: Callable[[PublishedVersion], VolumeReader], capacity: int = 32) -> None:
        self._open_reader = open_reader
        self._capacity = capacity
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def lease(self, version: PublishedVersion) -> Iterator[VolumeReader]:
        """The version's reader, open for as long as the `with` block lasts. Raises what opening raises."""
        entry = self._take(version.volume_key)
        try:
            yield self._opened(entry, version)
        finally:
            self._give_back(entry)

    def close(self) -> None:
        """Close every reader that is not in use, the others as they are given back."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
            idle = self._evict(entries)
        _close(idle)

    def _opened(self, entry: _Entry, version: PublishedVersion) -> VolumeReader:
        with entry.opening:
            if entry.reader is None:
                entry.reader = self._open_reader(version)
            return entry.reader

    def _take(self, key: str) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.leases += 1
            surplus = len(self._entries) - self._capacity
            idle = self._evict([self._entries.popitem(last=False)[1] for _ in range(surplus)])
        _close(idle)
        return entry

    def _give_back(self, entry: _Entry) -> None:
        with self._lock:
            entry.leases -= 1
            idle = [entry] if entry.evicted and entry.leases == 0 else []
        _close(idle)

    @staticmethod
    def _evict(entries: list[_Entry]) -> list[_Entry]:
        for entry in entries:
            entry.evicted = True
        return [entry for entry in entries if entry.leases == 0]


def _close(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.reader is not None:
            entry.reader.close()
