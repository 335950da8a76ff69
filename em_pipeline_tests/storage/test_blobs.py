"""What `Blobs` promises, of each place that blobs are kept in."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from em_pipeline.domain.blobs import Blobs, Run
from em_pipeline.domain.errors import Busy, NotFound
from em_pipeline.storage.local_blobs import LocalBlobs

MIB = 1 << 20
PLACES = ["local", pytest.param("s3", marks=pytest.mark.integration), "gcs"]


@pytest.fixture(params=PLACES)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "local":
        return LocalBlobs(tmp_path / "place")
    folder: Blobs = request.getfixturevalue(f"{request.param}_blobs")
    return folder


def test_a_blob_is_read_whole_in_parts_and_beyond_its_end(blobs: Blobs) -> None:
    blobs.write("a/b c+é%20.json", b"0123456789")
    assert blobs.read("a/b c+é%20.json") == b"0123456789"
    assert blobs.size("a/b c+é%20.json") == 10
    for start, nbytes in ((0, 10), (3, 4), (8, 5), (10, 1), (15, 2), (3, 0)):
        assert blobs.read_range("a/b c+é%20.json", start, nbytes) == b"0123456789"[start : start + nbytes]
    blobs.write("empty", b"")
    assert (blobs.read("empty"), blobs.size("empty"), blobs.read_range("empty", 0, 5)) == (b"", 0, b"")


def test_runs_are_read_in_pieces_and_no_more_is_asked_for_than_may_be_held(blobs: Blobs) -> None:
    content = bytes(range(200))
    blobs.write("a", content)
    asked: list[int] = []

    def runs() -> Iterator[Run]:
        for start in range(0, 220, 20):  # the last one begins at the end
            asked.append(start)
            yield Run("a", start, (5, 12, 3))

    taken, most = [], 0
    with closing(blobs.read_runs(runs(), 70)) as pieces:
        for piece in pieces:
            taken.append(bytes(piece))
            most = max(most, 20 * len(asked) - sum(map(len, taken)))
    ends = [at for start in range(0, 220, 20) for at in (start, start + 5, start + 17)]
    assert taken == [content[a:b] for a, b in zip(ends, [*ends[1:], 220], strict=True)]
    assert asked == list(range(0, 220, 20))
    # Three runs, and one that is known of and not yet asked for.
    assert most <= (80 if blobs.requests_at_once else 20)
    assert list(map(bytes, blobs.read_runs([Run("a", 0, (100, 100))], 1))) == [content[:100], content[100:]]
    assert list(map(bytes, blobs.read_runs([Run("a", 190, (5, 10))], 70))) == [
        content[190:195],
        content[195:],
    ]
    assert list(blobs.read_runs([], 70)) == []


def test_a_run_of_what_is_not_there_is_not_found(blobs: Blobs) -> None:
    blobs.write("a", b"0123456789")
    pieces = blobs.read_runs([Run("a", 0, (5, 5)), Run("none", 0, (5,)), Run("a", 0, (1,))], 1000)
    assert [bytes(next(pieces)), bytes(next(pieces))] == [b"01234", b"56789"]
    with pytest.raises(NotFound, match="none"):
        next(pieces)
    pieces = blobs.read_runs([Run("a", start, (1,)) for start in range(10)], 1000)
    assert bytes(next(pieces)) == b"0"
    pieces.close()  # those not yet under way are not asked for


def test_only_what_is_not_there_is_not_found(blobs: Blobs) -> None:
    blobs.write("a/b", b"x")
    for name in ("none", "a", "a/b/c", "a/none"):
        assert blobs.size(name) is None
        with pytest.raises(NotFound, match=name):
            blobs.read(name)
        for nbytes in (0, 1):
            with pytest.raises(NotFound, match=name):
                blobs.read_range(name, 0, nbytes)
        blobs.delete(name)
    assert list(blobs.names()) == ["a/b"]


def test_a_write_replaces_and_a_deletion_is_final(blobs: Blobs) -> None:
    blobs.write("x", b"old and long")
    blobs.write("x", b"new")
    assert blobs.read("x") == b"new"
    blobs.delete("x")
    blobs.delete("x")
    assert blobs.size("x") is None
    assert list(blobs.names()) == []


def test_names_are_sorted_relative_and_those_of_whole_folders(blobs: Blobs) -> None:
    assert list(blobs.names()) == []
    assert list(blobs.names("none")) == []
    names = ["a/b/1", "a/b/10", "a/b/2", "a-b/1", "a.json", "b"]
    for name in names:
        blobs.write(name, b"")
    assert list(blobs.names()) == sorted(names)
    assert list(blobs.names("a")) == ["a/b/1", "a/b/10", "a/b/2"]
    assert list(blobs.names("a/b/")) == ["a/b/1", "a/b/10", "a/b/2"]
    below = blobs.below("a")
    assert list(below.names("b")) == ["b/1", "b/10", "b/2"]
    assert below.below("b").url.startswith(blobs.url)
    below.write("c", b"1")
    assert blobs.read("a/c") == b"1"


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 5 * MIB + 1, 16 * MIB + 12345], ids=str)
@pytest.mark.parametrize("kind", ["create", "create_scratch"])
def test_a_blob_appears_whole_when_it_is_committed(blobs: Blobs, kind: str, size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    content = content[:size]
    blobs.write("a/x", b"old")
    sink = getattr(blobs, kind)("a/x")
    buffer = bytearray(3 * MIB + 7)
    for at in range(0, size, len(buffer)):
        piece = content[at : at + len(buffer)]
        buffer[: len(piece)] = piece
        sink.append(memoryview(buffer)[: len(piece)])
    buffer[:] = bytes(len(buffer))  # its bytes were taken when `append` returned
    assert blobs.read("a/x") == b"old"
    assert list(blobs.names()) == ["a/x"]
    sink.commit()
    sink.abandon()
    assert blobs.size("a/x") == size
    assert blobs.read("a/x") == content
    assert list(blobs.names()) == ["a/x"]


@pytest.mark.parametrize("kind", ["create", "create_scratch"])
def test_an_abandoned_blob_leaves_what_was_there(blobs: Blobs, kind: str) -> None:
    blobs.write("x", b"old")
    for size in (0, 1, 6 * MIB):
        sink = getattr(blobs, kind)("x")
        sink.append(bytes(size))
        sink.abandon()
        sink.abandon()
    assert blobs.read("x") == b"old"
    assert list(blobs.names()) == ["x"]


def test_what_numpy_holds_is_appended_byte_by_byte(blobs: Blobs) -> None:
    import numpy as np

    samples = np.arange(1000, dtype=">u2")
    sink = blobs.create("x")
    sink.append(samples.data)
    sink.append(b"")
    sink.append(b"end")
    sink.commit()
    assert blobs.read("x") == samples.tobytes() + b"end"


def test_a_folder_is_emptied_with_what_its_writers_left(blobs: Blobs) -> None:
    for name in ("a/1", "a/b/2", "a-b", "c"):
        blobs.write(name, b"")
    blobs.delete_all("a")
    assert list(blobs.names()) == ["a-b", "c"]
    blobs.delete_all("a")
    blobs.create("a/half").append(bytes(6 * MIB))
    blobs.delete_all()
    assert list(blobs.names()) == []
    blobs.clear_unfinished()


def test_a_folder_is_held_by_one_and_may_be_emptied_meanwhile(blobs: Blobs) -> None:
    other = pickle.loads(pickle.dumps(blobs))
    with blobs.hold():
        blobs.write("x", b"1")
        with pytest.raises(Busy), other.hold():
            pytest.fail("held twice")
        with blobs.below("part").hold():
            assert list(blobs.names()) == ["x"]
        blobs.delete_all()
        with pytest.raises(Busy), other.hold():
            pytest.fail("held twice")
    with other.hold():
        assert other.url == blobs.url
    assert list(blobs.names()) == []


TENSORSTORE = """
import json, sys
import tensorstore as ts
store = ts.KvStore.open(json.loads(sys.argv[1])).result()
assert store.read("b/x").result().value == b"0123456789"
assert store.read("none").result().state == "missing"
store.write("b/y", b"1").result()
assert sorted(store.list().result()) == [b"b/x", b"b/y"]
"""


def test_tensorstore_finds_the_blobs(blobs: Blobs) -> None:
    spec = blobs.below("a").kvstore()
    # Its driver for Google's store takes another server from the environment only.
    elsewhere = {"TENSORSTORE_GCS_HTTP_URL": blobs.access.endpoints.gs} if spec["driver"] == "gcs" else {}
    blobs.write("a/b/x", b"0123456789")
    command = [sys.executable, "-c", TENSORSTORE, json.dumps(spec)]
    subprocess.run(command, check=True, env={**os.environ, **elsewhere}, timeout=60)
    assert blobs.read("a/b/y") == b"1"
