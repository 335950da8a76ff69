"""Files in ranges: the bytes themselves, each fetched once, within a budget, and no outage taken for data."""

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import BudgetSpent, InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.storage.ranged import BLOCK, HttpRanges, LocalRanges, Meter, RangedFile
from em_pipeline.storage.transport import HttpPolicy, Transport
from em_pipeline_tests.portals.faulty import Fault, faulty_server
from em_pipeline_tests.portals.folder import Folder

SIZE = 300_000
POLICY = HttpPolicy(connections=1, retries=1, backoff_s=0.01)
# So soon, a busy machine may look like a silent server: more silences are borne.
HASTY = replace(POLICY, read_timeout_s=0.3, retries=3)
DATA = np.random.default_rng(7).integers(0, 256, SIZE, np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "a.tif").write_bytes(DATA)
    (tmp_path / "empty.tif").touch()
    with Folder(tmp_path) as running:
        yield running


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport(POLICY, lambda _: None) as made:
        yield made


def meter(most_bytes: int = 2_000_000, most_requests: int = 20) -> Meter:
    return Meter(most_bytes, most_requests)


class InMemory:
    """Ranges of bytes at hand, which remember what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.name, self.size, self.data = "x", len(data), data
        self.asked: list[range] = []

    def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= self.size
        self.asked.append(range(start, stop))
        return self.data[start:stop]


@given(st.lists(st.tuples(st.integers(0, SIZE + 10), st.integers(0, 60_000)), max_size=12))
def test_reads_are_the_files_bytes_and_no_byte_is_fetched_twice(reads: list[tuple[int, int]]) -> None:
    ranges = InMemory(DATA)
    file = RangedFile(ranges)
    for start, count in reads:
        assert file.seek(start) == start
        assert file.read(count) == DATA[start : start + count]
        assert file.tell() == start + len(DATA[start : start + count])
    fetched = sorted(ranges.asked, key=lambda part: part.start)
    assert all(a.stop <= b.start for a, b in pairwise(fetched))


def test_it_seeks_like_a_file() -> None:
    file = RangedFile(InMemory(DATA))
    assert file.seek(-5, io.SEEK_END) == SIZE - 5
    assert file.read() == DATA[-5:]
    file.seek(10)
    assert file.seek(5, io.SEEK_CUR) == 15
    with pytest.raises(OSError, match="-1"):
        file.seek(-1)


def test_a_long_table_is_read_in_growing_blocks() -> None:
    ranges = InMemory(DATA)
    file = RangedFile(ranges)
    for _ in range(0, SIZE, 12):
        file.read(12)
    assert [len(part) for part in ranges.asked] == [BLOCK, 2 * BLOCK, 4 * BLOCK, SIZE - 7 * BLOCK]


def test_over_http_it_is_the_same_file(folder: Folder, transport: Transport) -> None:
    spent = meter()
    file = RangedFile(HttpRanges(f"{folder.url}/a.tif", transport, spent))
    assert file.size == SIZE
    for start in (0, SIZE - 100, 150_000, 0):
        file.seek(start)
        assert file.read(100) == DATA[start : start + 100]
    assert (spent.requests, spent.bytes) == (folder.asked, folder.bytes_served)
    assert folder.asked == 3
    assert folder.bytes_served < 4 * BLOCK


def test_a_file_of_this_machine_is_counted_too(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(DATA)
    spent = meter()
    file = RangedFile(LocalRanges(path, spent))
    assert file.read() == DATA
    assert spent.bytes == SIZE
    path.write_bytes(DATA[:1000])
    with pytest.raises(InputRefused, match="shorter"):
        RangedFile(_longer(path, spent)).read()


def _longer(path: Path, spent: Meter) -> LocalRanges:
    ranges = LocalRanges(path, spent)
    ranges.size = SIZE
    return ranges


def test_an_empty_file(folder: Folder, transport: Transport) -> None:
    file = RangedFile(HttpRanges(f"{folder.url}/empty.tif", transport, meter()))
    assert (file.size, file.read(10)) == (0, b"")


@pytest.mark.parametrize(("most_bytes", "most_requests"), [(BLOCK + 1, 20), (2_000_000, 1)])
def test_a_spent_budget_stops_before_the_request(
    folder: Folder, transport: Transport, most_bytes: int, most_requests: int
) -> None:
    spent = meter(most_bytes, most_requests)
    file = RangedFile(HttpRanges(f"{folder.url}/a.tif", transport, spent))
    file.seek(200_000)
    with pytest.raises(BudgetSpent, match="allowed"):
        file.read(1)
    assert folder.asked == 1
    assert folder.bytes_served <= most_bytes
    file.check_outage()
    with pytest.raises(BudgetSpent):
        file.check()


@pytest.mark.parametrize("trouble", [Trouble.SERVER_ERROR, Trouble.UNAVAILABLE, Trouble.RESET, Trouble.HTML,
                                     Trouble.CUT, Trouble.STALL])  # fmt: skip
def test_trouble_is_cured_or_an_outage(folder: Folder, trouble: Trouble) -> None:
    with Transport(HASTY if trouble is Trouble.STALL else POLICY, lambda _: None) as transport:
        folder.trouble(trouble, times=1)
        file = RangedFile(HttpRanges(f"{folder.url}/a.tif", transport, meter()))
        folder.trouble(trouble, times=1)
        file.seek(200_000)
        assert file.read(10) == DATA[200_000:200_010]
        folder.trouble(trouble)
        file.seek(100_000)
        with pytest.raises(SourceUnavailable):
            file.read(10)
        with pytest.raises(SourceUnavailable):
            file.check_outage()
        with pytest.raises(SourceUnavailable):
            HttpRanges(f"{folder.url}/a.tif", transport, meter())


def test_what_is_not_there_is_not_found(folder: Folder, transport: Transport) -> None:
    with pytest.raises(NotFound):
        HttpRanges(f"{folder.url}/b.tif", transport, meter())


def test_a_file_that_changes_meanwhile_is_refused(folder: Folder, transport: Transport) -> None:
    folder.etag = '"1"'
    file = RangedFile(HttpRanges(f"{folder.url}/a.tif", transport, meter()))
    folder.etag = '"2"'
    file.seek(200_000)
    with pytest.raises(SourceUnavailable, match="changed"):
        file.read(1)


def test_without_ranges_a_small_file_is_taken_whole(tmp_path: Path, transport: Transport) -> None:
    (tmp_path / "a.tif").write_bytes(DATA)
    with Folder(tmp_path, ranges=False) as server:
        spent = meter()
        file = RangedFile(HttpRanges(f"{server.url}/a.tif", transport, spent))
        assert file.read() == DATA
        assert (server.asked, spent.bytes) == (1, SIZE)


def test_without_ranges_a_large_file_is_refused_unread(tmp_path: Path, transport: Transport) -> None:
    (tmp_path / "a.tif").write_bytes(DATA)
    with (
        Folder(tmp_path, ranges=False) as server,
        pytest.raises(InputRefused, match=r"300000 bytes.*inspect the local copy"),
    ):
        HttpRanges(f"{server.url}/a.tif", transport, meter(most_bytes=SIZE - 1))


def test_encoded_bytes_are_refused(transport: Transport) -> None:
    with faulty_server({"/a.tif": DATA}) as server:
        server.faults = [Fault(headers={"Content-Encoding": "gzip"})]
        with pytest.raises(RecordInvalid, match="gzip"):
            HttpRanges(f"{server.url}/a.tif", transport, meter())
