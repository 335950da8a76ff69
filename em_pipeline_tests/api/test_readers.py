"""The cache of open volumes: opened once, bounded, never closed under a request that reads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from em_pipeline.api.readers import ReaderCache
from em_pipeline.catalog.entries import PublishedVersion
from em_pipeline.domain.errors import ChunkCorrupt


class CountingReader:
    """Stands where a volume's reader would, and remembers being used after it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Openings:
    """Opens readers and keeps all it opened."""

    def __init__(self) -> None:
        self.readers: list[CountingReader] = []
        self.failures: list[Exception] = []

    def __call__(self, version: PublishedVersion) -> Any:
        if self.failures:
            raise self.failures.pop()
        self.readers.append(CountingReader())
        return self.readers[-1]


def version(name: str) -> PublishedVersion:
    return PublishedVersion(
        dataset_id=f"files-{name}",
        version="v1",
        revision="r1",
        volume_key=f"volumes/files-{name}/v1.ome.zarr",
        ledger_key="l",
        ledger_sha256="0" * 64,
        levels=(),
        statistics={},
        published_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_a_reader_is_opened_once_and_kept() -> None:
    openings = Openings()
    cache = ReaderCache(openings, capacity=2)
    for _ in range(3):
        with cache.lease(version("a")):
            pass
    assert len(openings.readers) == 1
    assert openings.readers[0].closed == 0


def test_concurrent_requests_open_it_once() -> None:
    openings = Openings()
    barrier = threading.Barrier(16)
    opening = threading.Event()

    def slowly(wanted: PublishedVersion) -> Any:
        opening.wait(0.05)
        return openings(wanted)

    cache = ReaderCache(slowly, capacity=2)

    def request(_: int) -> Any:
        barrier.wait()
        with cache.lease(version("a")) as reader:
            return reader

    with ThreadPoolExecutor(16) as pool:
        readers = set(pool.map(request, range(16)))
    assert len(readers) == len(openings.readers) == 1


def test_the_least_recently_used_is_closed() -> None:
    openings = Openings()
    cache = ReaderCache(openings, capacity=2)
    for name in ("a", "b", "a", "c"):
        with cache.lease(version(name)):
            pass
    a, b, c = openings.readers
    assert (a.closed, b.closed, c.closed) == (0, 1, 0)


def test_an_evicted_reader_is_closed_after_its_last_request() -> None:
    openings = Openings()
    cache = ReaderCache(openings, capacity=1)
    with cache.lease(version("a")):
        with cache.lease(version("a")), cache.lease(version("b")):
            pass
        assert openings.readers[0].closed == 0
    assert openings.readers[0].closed == 1


def test_more_requests_at_once_than_capacity() -> None:
    openings = Openings()
    cache = ReaderCache(openings, capacity=1)
    with cache.lease(version("a")) as a, cache.lease(version("b")) as b, cache.lease(version("c")) as c:
        assert {a.closed, b.closed, c.closed} == {0}  # type: ignore[attr-defined]
    assert sorted(reader.closed for reader in openings.readers) == [0, 1, 1]


def test_a_failed_opening_is_tried_again() -> None:
    openings = Openings()
    openings.failures = [ChunkCorrupt("Open it", "no ledger")]
    cache = ReaderCache(openings, capacity=1)
    with pytest.raises(ChunkCorrupt), cache.lease(version("a")):
        pass
    with cache.lease(version("a")) as reader:
        assert reader is openings.readers[0]


def test_closing_waits_for_requests_under_way() -> None:
    openings = Openings()
    cache = ReaderCache(openings, capacity=2)
    with cache.lease(version("b")):
        pass
    with cache.lease(version("a")):
        cache.close()
        idle, used = openings.readers
        assert (idle.closed, used.closed) == (1, 0)
    assert used.closed == 1


def test_many_threads_and_few_places_never_read_a_closed_volume() -> None:
    openings = Openings()
    cache = ReaderCache(openings, capacity=2)

    def request(number: int) -> int:
        with cache.lease(version("abcde"[number % 5])) as reader:
            before: int = reader.closed  # type: ignore[attr-defined]
            return before

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(request, range(2000))) == {0}
    cache.close()
    assert {reader.closed for reader in openings.readers} == {1}
