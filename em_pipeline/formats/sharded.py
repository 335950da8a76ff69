"""Chunks inside shard files, as neuroglancer's `neuroglancer_uint64_sharded_v1` stores them.

Specification: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md
A chunk's id, shifted and hashed, names its shard and its minishard. A shard begins with the shard index (for
each minishard, where its own index lies); the minishard index lists chunk ids and where their bytes lie.
Nothing here touches a disk or a network: bytes come through a `ReadRange`.
"""

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.formats.precomputed_gzip import gunzip

# (Name of the shard file, first byte, number of bytes) → those bytes; None where there is no such file.
ReadRange = Callable[[str, int, int], bytes | None]
SHARDED_TYPE = "neuroglancer_uint64_sharded_v1"
HASHES = ("identity", "murmurhash3_x86_128")
ENCODINGS = ("raw", "gzip")
HEXADECIMAL = re.compile(r"[0-9a-f]+")
# A shard index has 16 bytes for each of 2^bits minishards; real volumes use 6 to 11 bits.
MOST_MINISHARD_BITS = 16
# Each entry of a minishard's index has 24 bytes; writers keep to some thousand entries.
MOST_INDEX_BYTES = 24 << 20
# An exbibyte, beyond any file system and object store; well within 64 bits.
LARGEST_FILE = 1 << 60


class ChunkPlace(NamedTuple):
    """Where a chunk's bytes lie: `size` bytes of the file `shard` from byte `offset` on."""

    shard: str
    offset: int
    size: int


@dataclass(frozen=True)
class Sharding:
    """The parameters of a sharded scale. A missing `data_encoding` means `raw`, as in hemibrain's `info`."""

    hash: str
    preshift_bits: int
    minishard_bits: int
    shard_bits: int
    minishard_index_encoding: str
    data_encoding: str

    @classmethod
    def parse(cls, spec: Mapping[str, Any], where: str) -> "Sharding":
        """Raises `UnsupportedFormat` for another kind, unknown hashes and encodings, and impossible bits."""
        tried = f"Read the sharding of {where}"
        if spec.get("@type") != SHARDED_TYPE:
            raise UnsupportedFormat(tried, f"its kind is {spec.get('@type')!r}", f"{SHARDED_TYPE} is read")
        bits = [spec.get(name, -1) for name in ("preshift_bits", "minishard_bits", "shard_bits")]
        if not all(isinstance(n, int) and 0 <= n <= 64 for n in bits) or bits[1] > MOST_MINISHARD_BITS:
            raise UnsupportedFormat(tried, f"its preshift, minishard and shard bits are {bits}")
        hashing = str(spec.get("hash"))
        encodings = [str(spec.get(name, "raw")) for name in ("minishard_index_encoding", "data_encoding")]
        if hashing not in HASHES or not set(encodings) <= set(ENCODINGS):
            raise UnsupportedFormat(
                tried,
                f"its hash is {hashing!r}, its index and data encodings are {encodings}",
                f"The hashes {', '.join(HASHES)} and the encodings {', '.join(ENCODINGS)} are read",
            )
        return cls(hashing, *bits, *encodings)

    def place(self, chunk_id: int) -> tuple[int, int]:
        """Shard and minishard of a chunk: of the hash of `chunk_id >> preshift_bits`, the lowest
        `minishard_bits` are the minishard, the next `shard_bits` the shard."""
        hashed = _hashed(self.hash, chunk_id >> self.preshift_bits)
        minishard = hashed & ((1 << self.minishard_bits) - 1)
        shard = (hashed >> self.minishard_bits) & ((1 << self.shard_bits) - 1)
        return shard, minishard

    def shard_name(self, shard: int) -> str:
        """Lower-case hexadecimal, padded to ⌈shard_bits / 4⌉ digits, and `.shard`."""
        return f"{shard:0{-(-self.shard_bits // 4)}x}.shard"

    @property
    def index_bytes(self) -> int:
        return 16 << self.minishard_bits


class ShardIndexes:
    """Finds chunks in the shards of one scale; each index is read once. Safe to use from several threads.

    `where` names the scale in messages. Raises what `read` raises, so that an outage stays an outage.
    """

    def __init__(self, sharding: Sharding, read: ReadRange, where: str) -> None:
        self.sharding = sharding
        self._read = read
        self._where = where
        self._locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()
        self._shards: dict[int, bytes | None] = {}
        self._minishards: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardIndexes, (self.sharding, self._read, self._where)

    def locate(self, chunk_id: int) -> ChunkPlace | None:
        """Where the chunk lies; None where its shard, its minishard or its entry does not exist.

        That is how the format says that a chunk was never written. Raises `UnsupportedFormat` for an index
        that cannot be one.
        """
        shard, minishard = self.sharding.place(chunk_id)
        found = self._minishard(shard, minishard).get(chunk_id)
        return None if found is None else ChunkPlace(self.sharding.shard_name(shard), *found)

    def chunks(self, name: str) -> Iterator[int]:
        """Ids of the chunks that the shard file `name` lists where `locate` finds them.

        Raises like `locate`. A file that is called as no shard lists none.
        """
        digits = name.removesuffix(".shard")
        shard = int(digits, 16) if HEXADECIMAL.fullmatch(digits) else -1
        if shard < 0 or self.sharding.shard_name(shard) != name:
            return
        for minishard in range(1 << self.sharding.minishard_bits):
            for chunk in self._minishard(shard, minishard):
                if self.sharding.place(chunk) == (shard, minishard):
                    yield chunk

    def _minishard(self, shard: int, minishard: int) -> dict[int, tuple[int, int]]:
        with self._guard:
            lock = self._locks[shard]
        with lock:
            if shard not in self._shards:
                self._shards[shard] = self._read(
                    self.sharding.shard_name(shard), 0, self.sharding.index_bytes
                )
            index = self._shards[shard]
            if (shard, minishard) not in self._minishards:
                found = {} if index is None else self._read_minishard(shard, minishard, index)
                self._minishards[shard, minishard] = found
            return self._minishards[shard, minishard]

    def _read_minishard(self, shard: int, minishard: int, index: bytes) -> dict[int, tuple[int, int]]:
        name, first = self.sharding.shard_name(shard), self.sharding.index_bytes
        if len(index) != first:
            raise self._damaged(name, f"its index has {len(index)} bytes, not {first}")
        start, end = (int(n) for n in np.frombuffer(index, "<u8", 2, 16 * minishard))
        if start == end:
            return {}
        if start > end or end - start > MOST_INDEX_BYTES:
            raise self._damaged(name, f"the index of minishard {minishard} lies at {start}..{end}")
        data = self._read(name, first + start, end - start)
        if data is None or len(data) != end - start:
            raise self._damaged(name, f"it ends before the index of minishard {minishard}")
        try:
            return _entries(self._decoded(data), first)
        except ValueError as error:
            raise self._damaged(name, f"the index of minishard {minishard} is damaged: {error}") from error

    def _decoded(self, data: bytes) -> bytes:
        gzipped = self.sharding.minishard_index_encoding == "gzip"
        return gunzip(data, MOST_INDEX_BYTES) if gzipped else data

    def _damaged(self, name: str, found: str) -> UnsupportedFormat:
        return UnsupportedFormat(
            f"Find a chunk in {self._where}/{name}", found, "The shard is damaged, or no shard at all"
        )


def _entries(index: bytes, first: int) -> dict[int, tuple[int, int]]:
    """Chunk id → absolute offset, size. Rows of the index: differences of ids, gaps between chunks, sizes.

    Raises `ValueError` for no whole entries, chunks without bytes, and chunks beyond what a file can be.
    """
    if len(index) % 24:
        raise ValueError(f"{len(index)} bytes are no whole number of entries")
    ids, gaps, sizes = np.frombuffer(index, "<u8").reshape(3, -1)
    if not sizes.all():
        raise ValueError("it lists a chunk of 0 bytes")
    # In floats, since unsigned integers begin again at 0.
    if np.sum(gaps, dtype=float) + np.sum(sizes, dtype=float) > LARGEST_FILE:
        raise ValueError("it lists chunks beyond the end of any file")
    ends = np.cumsum(gaps + sizes)
    return {
        int(chunk): (first + int(end - size), int(size))
        for chunk, end, size in zip(np.cumsum(ids), ends, sizes, strict=True)
    }


def _hashed(name: str, value: int) -> int:
    """`value` itself, or the low 8 bytes of MurmurHash3_x86_128 (seed 0) of its 8 little-endian bytes."""
    if name == "identity":
        return value
    import mmh3

    digest = mmh3.hash_bytes(value.to_bytes(8, "little"), 0, False)
    return int.from_bytes(digest[:8], "little")
