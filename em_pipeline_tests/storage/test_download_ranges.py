"""Byte ranges of one URL, as chunks inside a shard, each held as a file of its own."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from em_pipeline.domain.errors import InputRefused, RecordInvalid, SourceUnavailable
from em_pipeline.domain.files import RemoteFile
from em_pipeline.storage.download import changed_since
from em_pipeline_tests.portals.faulty import Fault, FaultyServer, faulty_server
from em_pipeline_tests.storage.downloads import PART, PATIENT, Watcher, hold, leftovers

pytestmark = pytest.mark.usefixtures("unhurried")

SHARD = random.Random(1).randbytes(20 * PART + 321)
OTHER = random.Random(2).randbytes(20 * PART + 321)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server({"/shard": SHARD}) as running:
        yield running


def chunk(server: FaultyServer, offset: int, size: int, **listed: object) -> RemoteFile:
    return RemoteFile.model_validate(
        {"url": f"{server.url}/shard", "path": f"c/{offset}", "offset": offset, "size": size, **listed}
    )


def test_ranges_of_one_url_become_files_and_nothing_else_is_fetched(
    server: FaultyServer, tmp_path: Path
) -> None:
    spans = [(0, 100), (100, 1), (5_000, 3 * PART + 7), (len(SHARD) - 50, 50)]
    manifest = hold([chunk(server, *span) for span in spans], tmp_path)
    for file, (offset, size) in zip(manifest.files, spans, strict=True):
        data = SHARD[offset : offset + size]
        assert (tmp_path / file.path).read_bytes() == data
        assert (file.offset, file.size) == (offset, size)
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        assert file.etag == server.etags["/shard"]
    assert server.sent == sum(size for _, size in spans)
    assert not leftovers(tmp_path)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, len(SHARD) - 1), size=st.integers(1, 3 * PART))
def test_any_range_inside_is_held_exactly(
    server: FaultyServer, tmp_path_factory: pytest.TempPathFactory, offset: int, size: int
) -> None:
    size = min(size, len(SHARD) - offset)
    folder = tmp_path_factory.mktemp("raw")
    (file,) = hold([chunk(server, offset, size)], folder).files
    assert (folder / file.path).read_bytes() == SHARD[offset : offset + size]


def test_a_server_that_ignores_ranges_is_refused_before_it_sends_the_shard(
    server: FaultyServer, tmp_path: Path
) -> None:
    big = SHARD * 40
    server.files["/shard"] = big
    server.always = Fault(ignore_range=True)
    with pytest.raises(RecordInvalid, match="sends no parts"):
        hold([chunk(server, 1000, 100)], tmp_path)
    # What the sockets' buffers took before we hung up.
    assert server.sent < len(big)
    assert not (tmp_path / "c/1000").exists()


def test_a_server_that_ignores_a_range_once_is_asked_again(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [Fault(ignore_range=True)]
    (file,) = hold([chunk(server, 1000, 100)], tmp_path).files
    assert (tmp_path / file.path).read_bytes() == SHARD[1000:1100]


@pytest.mark.parametrize("offset", [len(SHARD) - 10, len(SHARD) + 5])
def test_a_range_beyond_the_end_is_refused(server: FaultyServer, tmp_path: Path, offset: int) -> None:
    with pytest.raises(RecordInvalid, match="the server has"):
        hold([chunk(server, offset, 50)], tmp_path)


def test_a_shard_that_changed_since_it_was_listed_is_refused(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(RecordInvalid, match="its ETag went"):
        hold([chunk(server, 0, 50, etag='"listed"')], tmp_path)


def test_a_shard_that_changes_within_a_range_restarts_it(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [None, None, Fault(become=OTHER)]
    watcher = Watcher()
    (file,) = hold([chunk(server, 100, 6 * PART)], tmp_path, watcher=watcher).files
    assert (tmp_path / file.path).read_bytes() == OTHER[100 : 100 + 6 * PART]
    assert any("from its beginning" in note for note in watcher.notes)


def test_ranges_of_different_contents_are_never_held_together(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [None, Fault(become=OTHER)]
    chunks = [chunk(server, offset, 100) for offset in (0, 100, 200)]
    with pytest.raises(SourceUnavailable, match="between them, its ETag went"):
        hold(chunks, tmp_path)
    manifest = hold(chunks, tmp_path)
    assert b"".join((tmp_path / file.path).read_bytes() for file in manifest.files) == OTHER[:300]


def test_ranges_resume_and_are_recalled_by_their_offset(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [None] * 4 + [Fault(status=500)] * 100
    with pytest.raises(SourceUnavailable):
        hold([chunk(server, 100, 8 * PART)], tmp_path)
    server.faults = []
    manifest = hold([chunk(server, 100, 8 * PART)], tmp_path)
    assert server.sent <= (8 + PATIENT.connections) * PART
    asked = len(server.requests)
    assert hold([chunk(server, 100, 8 * PART)], tmp_path) == manifest
    assert len(server.requests) == asked
    moved = chunk(server, 200, 8 * PART, path="c/100")
    (file,) = hold([moved], tmp_path).files
    assert (tmp_path / "c/100").read_bytes() == SHARD[200 : 200 + 8 * PART]
    assert changed_since(manifest, tmp_path) == ["c/100"]
    assert file.offset == 200


def test_an_interrupted_range_is_not_continued_as_another(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = [None] * 4 + [Fault(status=500)] * 100
    with pytest.raises(SourceUnavailable):
        hold([chunk(server, 100, 8 * PART)], tmp_path)
    server.faults = []
    hold([chunk(server, 300, 8 * PART, path="c/100")], tmp_path)
    assert (tmp_path / "c/100").read_bytes() == SHARD[300 : 300 + 8 * PART]


def test_a_range_of_a_file_here_or_over_ftp_and_one_without_end_are_refused(
    server: FaultyServer, tmp_path: Path
) -> None:
    for url in ((tmp_path / "a").as_uri(), "ftp://127.0.0.1/a"):
        with pytest.raises(RecordInvalid, match="only a range"):
            hold([RemoteFile(url=url, path="a", offset=1, size=2)], tmp_path / "raw")
    with pytest.raises(ValidationError):
        RemoteFile(url=server.url, path="a", offset=1)
    with pytest.raises(InputRefused):
        hold([RemoteFile(url="s3:///a", path="a")], tmp_path / "raw")
