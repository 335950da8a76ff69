from pathlib import Path

import numpy as np
import pytest

from em_pipeline.domain.errors import ChunkCorrupt
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.shard import NOT_STORED, ShardWriter, index_nbytes, read_shard_index

CHUNKS = Shape(1, 2, 2)


def writer(folder: Path) -> ShardWriter:
    return ShardWriter(folder / "c" / "0", CHUNKS, partial=folder / "partial")


def test_chunks_lie_one_after_the_other_and_the_index_is_last(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    shard.append((0, 0, 1), b"first")
    shard.append((0, 1, 1), b"second!")
    assert not shard.path.exists()
    assert shard.publish()
    whole = shard.path.read_bytes()
    assert whole[:12] == b"firstsecond!"
    assert len(whole) == 12 + index_nbytes(CHUNKS)
    missing = [NOT_STORED, NOT_STORED]
    assert read_shard_index(shard.path, CHUNKS).tolist() == [missing, [0, 5], missing, [5, 7]]
    assert not (tmp_path / "partial").exists()


def test_chunks_out_of_order_are_a_mistake(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    shard.append((0, 1, 0), b"x")
    for place in ((0, 1, 0), (0, 0, 1)):
        with pytest.raises(ValueError, match="C order"):
            shard.append(place, b"y")
    shard.abandon()
    assert not list(tmp_path.iterdir())


def test_a_shard_without_chunks_is_no_file(tmp_path: Path) -> None:
    assert not writer(tmp_path).publish()
    assert not list(tmp_path.iterdir())


def test_damaged_indices_are_corrupt(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    with pytest.raises(ChunkCorrupt, match="missing"):
        read_shard_index(shard.path, CHUNKS)
    shard.append((0, 0, 0), bytes(100))
    shard.publish()
    whole = bytearray(shard.path.read_bytes())
    for place in np.random.default_rng(0).integers(100, len(whole), 10):
        altered = whole.copy()
        altered[place] ^= 1
        shard.path.write_bytes(altered)
        with pytest.raises(ChunkCorrupt, match="checksum"):
            read_shard_index(shard.path, CHUNKS)
    shard.path.write_bytes(whole[:20])
    with pytest.raises(ChunkCorrupt, match="only 20 bytes"):
        read_shard_index(shard.path, CHUNKS)
