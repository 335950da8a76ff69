"""Documents and indexes of precomputed volumes and DVID that were made to do harm, or are damaged oddly."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.geometry import Shape
from em_pipeline.formats.bounded_json import DEEPEST, parse_json
from em_pipeline.formats.dvid import parse_instance
from em_pipeline.formats.precomputed import open_precomputed
from em_pipeline.formats.precomputed_gzip import gunzip
from em_pipeline.formats.precomputed_info import MOST_INFO_BYTES, parse_info
from em_pipeline.formats.sharded import MOST_INDEX_BYTES, ShardIndexes, Sharding
from em_pipeline_tests.formats.helpers import ramp
from em_pipeline_tests.formats.test_dvid import instance
from em_pipeline_tests.formats.test_precomputed import edited, written

SMALL = Shape(4, 4, 4)
# What a bomb may cost beside what it is allowed to unpack.
SPARE_BYTES = 8 << 20


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def info_with(folder: Path, **changed: Any) -> bytes:
    written(folder, ramp(SMALL))
    edited(folder, lambda _, info: info.update(changed))
    return (folder / "info").read_bytes()


@pytest.mark.parametrize("size", [1, 1000, 65536])
def test_gzip_may_hold_as_much_as_is_allowed(size: int) -> None:
    data = gzip.compress(bytes(size))
    assert gunzip(data, size) == bytes(size)
    with pytest.raises(ValueError, match="holds more than"):
        gunzip(data, size - 1)
    with pytest.raises(ValueError, match="cut short"):
        gunzip(data[:-1], size)


def peak_of(read: Any) -> int:
    """The most memory that Python held while `read` was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedFormat, match="holds more than"):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_info_is_never_unpacked_beyond_its_limit() -> None:
    bomb = gzip.compress(b" " * (100 << 20) + b"{}", 9)
    assert peak_of(lambda: parse_info(bomb, "info")) < 2 * MOST_INFO_BYTES + SPARE_BYTES


def one_shard(index: bytes, *, claimed: int | None = None, encoding: str = "raw") -> ShardIndexes:
    """A volume of one shard with one minishard, whose index is `index` and is said to be `claimed` long."""
    table = np.array([0, len(index) if claimed is None else claimed], "<u8").tobytes()
    shard = table + index

    def read(_: str, offset: int, size: int) -> bytes:
        assert size <= MOST_INDEX_BYTES
        return shard[offset : offset + size]

    return ShardIndexes(Sharding("identity", 0, 0, 0, encoding, "raw"), read, "volume")


def test_the_index_of_a_minishard_is_never_unpacked_beyond_its_limit() -> None:
    shards = one_shard(gzip.compress(bytes(100 << 20), 9), encoding="gzip")
    assert peak_of(lambda: shards.locate(0)) < 2 * MOST_INDEX_BYTES + SPARE_BYTES


def test_an_index_of_petabytes_is_never_asked_for() -> None:
    with pytest.raises(UnsupportedFormat, match="the index of minishard 0 lies at"):
        one_shard(b"", claimed=1 << 60).locate(0)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([[0, 1], [0, 0], [7, 0]], "a chunk of 0 bytes"),
        ([[0], [2**64 - 40], [80]], "beyond the end of any file"),
        ([[0], [0], [2**63]], "beyond the end of any file"),
    ],
)
def test_chunks_that_cannot_lie_in_a_shard_are_damage(rows: list[list[int]], found: str) -> None:
    with pytest.raises(UnsupportedFormat, match=found):
        one_shard(np.array(rows, "<u8").tobytes()).locate(0)


def test_json_nests_as_deep_as_is_allowed() -> None:
    assert parse_json(json.dumps(deep(DEEPEST))) == deep(DEEPEST)
    for levels in (DEEPEST + 1, 900, 100_000):
        with pytest.raises(ValueError, match="nests deeper"):
            parse_json("[" * levels + "]" * levels)


@pytest.mark.parametrize("levels", [900, 100_000])
def test_a_document_that_nests_deep_is_refused(tmp_path: Path, levels: int) -> None:
    nested = b"[" * levels + b"]" * levels
    plain = info_with(tmp_path, deep=0)
    (tmp_path / "info").write_bytes(plain.replace(b'"deep": 0', b'"deep": ' + nested))
    with pytest.raises(UnsupportedFormat, match="nests deeper"):
        open_precomputed(tmp_path)
    document = json.dumps({**instance(), "deep": 0}).encode().replace(b'"deep": 0', b'"deep": ' + nested)
    with pytest.raises(UnsupportedFormat, match="nests deeper"):
        parse_instance(document, "info")


@pytest.mark.parametrize(
    "of_scale",
    [
        {"chunk_sizes": []},
        {"size": [float("inf"), 4, 4]},
        {"resolution": [10**400, 4, 4]},
        {"compressed_segmentation_block_size": [0, 8, 8]},
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, of_scale: dict[str, Any]) -> None:
    written(tmp_path, ramp(SMALL))
    edited(tmp_path, lambda scale, _: scale.update(of_scale))
    with pytest.raises(UnsupportedFormat):
        open_precomputed(tmp_path)


@pytest.mark.parametrize(
    "document",
    [
        {**instance(), "Base": {"TypeName": ["uint8blk"]}},
        instance(MaxPoint=[float("inf"), 1, 1]),
        instance(VoxelUnits={"x": 1, "y": 1, "z": 1}),
        instance(BlockSize=8),
    ],
)
def test_instances_that_cannot_be_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFormat):
        parse_instance(json.dumps(document), "info")
