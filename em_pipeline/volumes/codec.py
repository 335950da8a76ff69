"""How one chunk becomes bytes, and back.

8-bit images are entropy-coded (zstd 1): on EM voxels higher levels and shuffles cost time and save nothing.
16-bit images are bit-shuffled for lz4, wider numbers byte-shuffled for zstd, labels get zstd 3.
imagecodecs rather than numcodecs: both release the GIL, but here the number of threads is an argument
(blosc's threads finish in any order, so only one of them gives the same bytes every time).
"""

import struct
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import DTypeLike, NDArray

from em_pipeline.domain.errors import ChunkCorrupt, InputRefused
from em_pipeline.domain.lazy_volume import Kind


@dataclass(frozen=True)
class _Recipe:
    compressor: Literal["none", "zstd", "blosc"]
    level: int = 0
    inner: str = ""
    shuffle: str = ""


RECIPES: Final = {
    "none": _Recipe("none"),
    "zstd-1": _Recipe("zstd", 1),
    "zstd-3": _Recipe("zstd", 3),
    "blosc-lz4": _Recipe("blosc", 5, "lz4", "bitshuffle"),
    "blosc-zstd": _Recipe("blosc", 1, "zstd", "shuffle"),
}
"""Codec names that a spec may give."""

DATA_TYPES: Final = frozenset(
    (
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "float32",
        "float64",
    )
)
"""Data types that we write, as zarr v3 and numpy name them (zarr v3 core specification, "Data types")."""

_BLOSC_HEADER: Final = struct.Struct("<4xI4xI")
"""`nbytes` and `cbytes` of the 16-byte header (c-blosc README_CHUNK_FORMAT)."""


def crc32c(payload: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C (Castagnoli, RFC 3720, appendix B.4) of the bytes, contiguous."""
    return int(google_crc32c.value(payload))


def check_data_type(dtype: DTypeLike) -> np.dtype[Any]:
    """`dtype` in native byte order. Raises `InputRefused` for one that we do not write."""
    native = np.dtype(dtype).newbyteorder("=")
    if native.name not in DATA_TYPES:
        raise InputRefused(
            f"Write voxels of type {native.name}",
            f"volumes hold one of {', '.join(sorted(DATA_TYPES))}",
            "Convert it where the source is read (bool to uint8, complex to its magnitude)",
        )
    return native


@dataclass(frozen=True)
class ChunkCodec:
    """Encodes chunks of one data type. Thread-safe; the GIL is released while it works."""

    name: str
    dtype: np.dtype[Any]

    @classmethod
    def for_dtype(cls, dtype: DTypeLike, kind: Kind, name: str | None = None) -> Self:
        """The codec `name`, or without one the codec that suits the type and kind.

        Raises `InputRefused` for an unknown name or type.
        """
        native = check_data_type(dtype)
        if name is not None and name not in RECIPES:
            raise InputRefused(f"Use the codec {name!r}", "it is not known", f"Codecs: {', '.join(RECIPES)}")
        return cls(name=name or _default_name(native, kind), dtype=native)

    @property
    def _recipe(self) -> _Recipe:
        return RECIPES[self.name]

    def encode(self, chunk: NDArray[Any]) -> bytes:
        """Bytes of a C-contiguous chunk (z, y, x): the same for the same voxels, always."""
        return self.encode_into(chunk, np.empty(self.bound(chunk.nbytes), np.uint8)).tobytes()

    def encode_into(self, chunk: NDArray[Any], out: Any) -> NDArray[np.uint8]:
        """Like `encode`, into the bytes `out` (uint8, `bound` of them); the part of it that was taken."""
        stored: Any = np.ascontiguousarray(chunk, dtype=self.dtype.newbyteorder("<"))
        recipe = self._recipe
        if recipe.compressor == "none":
            out[: stored.nbytes] = stored.reshape(-1).view(np.uint8)
            taken: NDArray[np.uint8] = out[: stored.nbytes]
            return taken
        if recipe.compressor == "zstd":
            encoded: Any = imagecodecs.zstd_encode(stored, level=recipe.level, out=out)
            return encoded  # type: ignore[no-any-return] # a part of `out`, whatever the stubs say
        blosc: Any = imagecodecs.blosc_encode(
            stored,
            level=recipe.level,
            compressor=recipe.inner,
            shuffle=recipe.shuffle,
            typesize=self.dtype.itemsize,
            numthreads=1,
            out=out,
        )
        return blosc  # type: ignore[no-any-return]

    @staticmethod
    def bound(nbytes: int) -> int:
        """Bytes that a chunk of `nbytes` may take at most once encoded.

        ZSTD_COMPRESSBOUND (zstd.h: n + n/256, 64 KiB more for small n) exceeds BLOSC_MAX_OVERHEAD (16 bytes).
        """
        return nbytes + (nbytes >> 8) + (64 << 10)

    def decode(self, payload: bytes, dtype: DTypeLike, shape: tuple[int, int, int]) -> NDArray[Any]:
        """Writable voxels (z, y, x), native byte order. Raises `ChunkCorrupt` for anything else."""
        native = np.dtype(dtype).newbyteorder("=")
        nbytes = int(np.prod(shape)) * native.itemsize
        out: Any = np.empty(nbytes, np.uint8)
        try:
            found = self._decode_into(payload, out)
        except (imagecodecs.ZstdError, imagecodecs.BloscError, struct.error) as error:
            raise _undecodable(self.name, len(payload), str(error)) from error
        if found != nbytes:
            raise _undecodable(self.name, len(payload), f"{found} bytes came out where {nbytes} belong")
        voxels: NDArray[Any] = out.view(native.newbyteorder("<")).reshape(shape)
        return voxels.astype(native, copy=False)

    def _decode_into(self, payload: bytes, out: Any) -> int:
        recipe = self._recipe
        if recipe.compressor == "none":
            if len(payload) == out.size:
                out[:] = np.frombuffer(payload, np.uint8)
            return len(payload)
        if recipe.compressor == "zstd":
            return len(imagecodecs.zstd_decode(payload, out=out))
        # The decoder trusts the sizes in the header and would read past the end of a truncated chunk.
        nbytes, cbytes = _BLOSC_HEADER.unpack_from(payload)
        if cbytes != len(payload) or nbytes != out.size:
            raise _undecodable(self.name, len(payload), f"its header says {cbytes} bytes for {nbytes}")
        return len(imagecodecs.blosc_decode(payload, numthreads=1, out=out))

    def metadata(self) -> list[dict[str, Any]]:
        """The codec chain of the inner chunks, as zarr v3 writes it."""
        serialise: dict[str, Any] = {"name": "bytes"}
        if self.dtype.itemsize > 1:
            serialise["configuration"] = {"endian": "little"}
        recipe = self._recipe
        if recipe.compressor == "none":
            return [serialise]
        if recipe.compressor == "zstd":
            return [serialise, {"name": "zstd", "configuration": {"level": recipe.level, "checksum": False}}]
        blosc = {
            "typesize": self.dtype.itemsize,
            "cname": recipe.inner,
            "clevel": recipe.level,
            "shuffle": recipe.shuffle,
            "blocksize": 0,
        }
        return [serialise, {"name": "blosc", "configuration": blosc}]


def _default_name(dtype: np.dtype[Any], kind: Kind) -> str:
    if kind == "labels":
        return "zstd-3"
    return {1: "zstd-1", 2: "blosc-lz4"}.get(dtype.itemsize, "blosc-zstd")


def _undecodable(codec: str, nbytes: int, found: str) -> ChunkCorrupt:
    return ChunkCorrupt(f"Decode a chunk of {nbytes} bytes with {codec}", found)
