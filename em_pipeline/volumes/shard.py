"""Shards: chunks one after the other, then an index of them (zarr v3 `sharding_indexed`, index at the end).

The index is one (offset, nbytes) pair of little-endian uint64 per chunk in C order, both 2⁶⁴−1 for a chunk
that is not stored, followed by the CRC-32C of those bytes.
"""

import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import ChunkCorrupt
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.durable import storage_errors, write_fully

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


def read_shard_index(path: Path, chunks: Shape) -> ShardIndex:
    """The index of a shard of `chunks` per axis. Raises `ChunkCorrupt`: missing, truncated or altered."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if (start := size - index_nbytes(chunks)) < 0:
                raise ChunkCorrupt(f"Read the index of shard {path}", f"the file has only {size} bytes")
            return decode_index(os.pread(file.fileno(), size - start, start), str(path))
    except FileNotFoundError as error:
        raise ChunkCorrupt(f"Read the index of shard {path}", "the file is missing") from error
    except OSError as error:
        raise ChunkCorrupt(f"Read the index of shard {path}", str(error)) from error


class ShardWriter:
    """Appends encoded chunks to one shard and closes it with the index.

    Chunks come in C order of their place in the shard, so that the same chunks make the same bytes. The
    file grows as `partial` and gets its name from `publish`; without a chunk there never is a file.
    """

    def __init__(self, path: Path, chunks: Shape, *, partial: Path) -> None:
        self.path = path
        self._chunks = chunks
        self._partial = partial
        self._descriptor: int | None = None
        self._offset = 0
        self._next = 0
        self._index = np.full((chunks.voxels, 2), NOT_STORED, np.uint64)

    def append(self, place: tuple[int, int, int], payload: bytes) -> None:
        """Store the chunk at `place` (z, y, x in the shard). Raises `StorageFailed`."""
        position = int(np.ravel_multi_index(place, self._chunks))
        if position < self._next:
            raise ValueError(f"chunk {place} of {self.path} comes after chunk {self._next - 1} in C order")
        with storage_errors(f"Write shard {self.path}"):
            if self._descriptor is None:
                self._descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            write_fully(self._descriptor, payload, self._offset)
        self._index[position] = (self._offset, len(payload))
        self._offset += len(payload)
        self._next = position + 1

    def publish(self) -> bool:
        """Write the index, fsync and rename; whether there is a file. Raises `StorageFailed`.

        The folder's own fsync is left to the caller, who has many shards in it.
        """
        if self._descriptor is None:
            return False
        with storage_errors(f"Write shard {self.path}"):
            write_fully(self._descriptor, encode_index(self._index), self._offset)
            os.fsync(self._descriptor)
            self._close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.replace(self.path)
        return True

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._close()
        self._partial.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
