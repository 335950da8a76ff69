"""What decodes the chunks of zarr and N5 arrays on this machine.

tensorstore does; the few codecs and filters of zarr arrays that it lacks are decoded by zarr-python.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.formats.arrays import ArrayLayout, StoredArray

# numcodecs would also run pickles; these only decode numbers.
SAFE_CODECS = frozenset(
    (
        *("zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "blosc", "delta", "shuffle", "fixedscaleoffset"),
        *("packbits", "astype", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"),
    )
)
# What the two libraries raise for damaged chunks and for documents that they do not take.
REFUSALS = (ValueError, RuntimeError, NotImplementedError, KeyError, TypeError, OSError)
DEFAULT_LEVEL = 6


class Decoder(Protocol):
    """Reads voxels of an array. Safe in several threads. Raises one of `REFUSALS` for damaged chunks."""

    def read(self, index: tuple[slice | int, ...], order: tuple[int, ...], out: NDArray[Any]) -> None:
        """Write the voxels at `index` (stored axes), transposed by `order`, into `out`."""
        ...


def decoder(root: Path, layout: ArrayLayout) -> Decoder:
    """A decoder of the array of `layout` below `root`. Raises `UnsupportedFormat` for codecs not read."""
    try:
        return _by_tensorstore(root, layout)
    except REFUSALS as error:
        refusal = error
    array = layout.array
    if array.driver == "n5" or not _codecs_of(array) <= SAFE_CODECS:
        raise UnsupportedFormat(
            f"Open the array {array.path or '/'!r}", said(refusal),
            f"It is stored as {array.compression}: store it anew with gzip, zstd or blosc",
        ) from refusal  # fmt: skip
    return _by_zarr_python(root, array)


def said(error: Exception) -> str:
    """What a library says, without the places and settings of its own that it appends."""
    return str(error).partition(" [")[0].partition("\n")[0] or repr(error)


@dataclass(frozen=True)
class ByTensorstore:
    """Decodes only the chunks that a read meets, and keeps none of them."""

    store: Any

    def read(self, index: tuple[slice | int, ...], order: tuple[int, ...], out: NDArray[Any]) -> None:
        import tensorstore

        # An array of tensorstore that shares memory with `out`: voxels are decoded into their place.
        target = tensorstore.array(out, copy=False)
        source = self.store[index].transpose(order)
        target.write(source[tensorstore.d[:].translate_to[0]]).result()


@dataclass(frozen=True)
class ByZarrPython:
    """Decodes what tensorstore refuses."""

    array: Any

    def read(self, index: tuple[slice | int, ...], order: tuple[int, ...], out: NDArray[Any]) -> None:
        out[...] = np.asarray(self.array[index]).transpose(order)


def _by_tensorstore(root: Path, layout: ArrayLayout) -> ByTensorstore:
    import tensorstore

    array = layout.array
    spec: dict[str, Any] = {
        "driver": array.driver,
        "kvstore": {"driver": "file", "path": f"{(root / array.path).absolute()}/"},
    }
    corrected = _corrected(layout)
    if corrected:
        spec["metadata"] = corrected
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    store = tensorstore.open(
        spec, open=True, read=True, context=context, assume_metadata=bool(corrected)
    ).result()
    same = store.dtype.numpy_dtype == layout.dtype
    return ByTensorstore(store if same else tensorstore.cast(store, layout.dtype))


def _corrected(layout: ArrayLayout) -> dict[str, Any]:
    """The document of a zarr v2 array where it needs correction, as tensorstore takes it; else nothing.

    Fiji writes zlib's default level -1, which tensorstore refuses and no decoder needs. Old writers leave out
    the separator, which the layout knows.
    """
    array = layout.array
    document: dict[str, Any] = json.loads(layout.documents[array.document])
    compressor = document.get("compressor") or {}
    levelless = compressor.get("level") == -1
    if array.driver != "zarr" or (array.separator_said and not levelless):
        return {}
    if levelless:
        document["compressor"] = {**compressor, "level": DEFAULT_LEVEL}
    return {**document, "dimension_separator": array.separator}


def _by_zarr_python(root: Path, array: StoredArray) -> ByZarrPython:
    import zarr

    version = 2 if array.driver == "zarr" else 3
    try:
        return ByZarrPython(zarr.open_array(store=str(root / array.path), mode="r", zarr_format=version))
    except REFUSALS as error:
        raise UnsupportedFormat(f"Open the array {array.path or '/'!r}", said(error)) from error


def _codecs_of(array: StoredArray) -> set[str]:
    names = array.compression.split("+") if array.compression != "none" else []
    return {name.removeprefix("numcodecs.").partition("-")[0] for name in names}
