"""Shards: chunks one after the other, then an index of them (zarr v3 `sharding_indexed`, index at the end).

The index is one (offset, nbytes) pair of little-endian uint64 per chunk in C order, both 2⁶⁴−1 for a chunk
that is not stored, followed by the CRC-32C of those bytes.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Blobs, BlobSink
from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.codec import crc32c

NOT_STORED: Final = (1 << 64) - 1
_CRC_BYTES: Final = 4

ShardIndex = NDArray[np.uint64]
"""(offset, nbytes) of each chunk: shape (chunks, 2), C order."""


def index_nbytes(chunks: Shape) -> int:
    """Bytes of the index, with its checksum, of a shard of that many chunks per axis."""
    return chunks.voxels * 16 + _CRC_BYTES


def encode_index(index: ShardIndex) -> bytes:
    entries = index.astype("<u8").tobytes()
    return entries + crc32c(entries).to_bytes(_CRC_BYTES, "little")


def decode_index(payload: bytes, shard: str) -> ShardIndex:
    """The index from the end of `shard`. Raises `ChunkCorrupt` where the checksum differs."""
    entries, stored = payload[:-_CRC_BYTES], int.from_bytes(payload[-_CRC_BYTES:], "little")
    if crc32c(entries) != stored:
        raise ChunkCorrupt(f"Read the index of shard {shard}", "its checksum differs")
    return np.frombuffer(entries, "<u8").reshape(-1, 2)


def read_shard_index(volume: Blobs, path: str, chunks: Shape, start: int) -> ShardIndex:
    """The index of a shard of `chunks` per axis, whose stored chunks take its first `start` bytes. One read.

    Raises `ChunkCorrupt`: missing, truncated, altered, or with chunks beyond those bytes.
    """
    tried, nbytes = f"Read the index of shard {path} of {volume.url}", index_nbytes(chunks)
    try:
        payload = volume.read_range(path, start, nbytes)
    except NotFound as error:
        raise ChunkCorrupt(tried, "the shard is missing") from error
    if len(payload) != nbytes:
        raise ChunkCorrupt(tried, f"the shard ends before byte {start + nbytes}")
    index = decode_index(payload, path)
    if (index[index[:, 1] != NOT_STORED] > start).any():
        raise ChunkCorrupt(tried, "it places chunks where none were written")
    return index


def expected_index(lengths: NDArray[np.int64]) -> bytes:
    """The encoded index of a shard whose chunks, in C order, have these bytes each; 0 for one not stored."""
    stored = lengths > 0
    index = np.full((len(lengths), 2), NOT_STORED, np.uint64)
    index[stored, 0] = (np.cumsum(lengths) - lengths)[stored]
    index[stored, 1] = lengths[stored]
    return encode_index(index)


def check_frame(volume: Blobs, path: str, lengths: NDArray[np.int64]) -> None:
    """See that a shard has its length and its index, by one small read. `lengths` are those of its chunks.

    Raises `ChunkCorrupt`: missing, shorter or longer, or placing its chunks elsewhere. Of one without a chunk
    nothing is looked for.
    """
    if not lengths.any():
        return
    tried = f"Check shard {path} of {volume.url}"
    start, index = int(lengths.sum()), expected_index(lengths)
    try:
        found = volume.read_range(path, start, len(index) + 1)
    except NotFound as error:
        raise ChunkCorrupt(tried, "it is missing, though its unit was finished") from error
    if found != index:
        raise ChunkCorrupt(tried, "its length or its index has changed since its unit was finished")


class ShardWriter:
    """Appends encoded chunks to one shard and closes it with the index.

    Chunks come in C order of their place in the shard, so that the same chunks make the same bytes. Until
    `publish` the blob stays as it was found; from then on it is this one, or none where there is no chunk.
    """

    def __init__(self, volume: Blobs, path: str, chunks: Shape) -> None:
        self.path = path
        self._volume = volume
        self._chunks = chunks
        self._sink: BlobSink | None = None
        self._offset = 0
        self._next = 0
        self._index = np.full((chunks.voxels, 2), NOT_STORED, np.uint64)

    def append(self, place: tuple[int, int, int], payload: bytes | memoryview) -> None:
        """Store the chunk at `place` (z, y, x in the shard). Raises `StorageFailed`."""
        position = (place[0] * self._chunks.y + place[1]) * self._chunks.x + place[2]
        if position < self._next:
            raise ValueError(f"chunk {place} of {self.path} comes after chunk {self._next - 1} in C order")
        if self._sink is None:
            self._sink = self._volume.create(self.path)
        self._sink.append(payload)
        self._index[position] = (self._offset, len(payload))
        self._offset += len(payload)
        self._next = position + 1

    def publish(self) -> None:
        """Write the index and make the shard visible in place of an older one. Raises `StorageFailed`."""
        if self._sink is None:
            self._volume.delete(self.path)
            return
        self._sink.append(encode_index(self._index))
        self._sink.commit()

    def abandon(self) -> None:
        """Leave nothing behind of what was not published."""
        if self._sink is not None:
            self._sink.abandon()
