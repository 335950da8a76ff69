"""Metadata documents of single zarr arrays.

Zarr v2: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. Zarr v3 with its chunk key encodings and
data types: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html. Shards:
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html.
"""

from typing import Any

import numpy as np

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.formats.arrays import Documents, StoredArray, damaged, joined

SHARDING = "sharding_indexed"
# Codecs of zarr v3 that only say how numbers lie in bytes or check them: not compression.
PLAIN_CODECS = ("bytes", "endian", "crc32c", "transpose", SHARDING)


def read_zarr_array(documents: Documents, path: str) -> StoredArray | None:
    """The zarr array at `path`, v3 or v2, or None. Raises `UnsupportedFormat` for damaged documents."""
    key = joined(path, "zarr.json")
    document = documents.json(key)
    if document is not None:
        return _read_v3(key, path, document) if document.get("node_type") == "array" else None
    key = joined(path, ".zarray")
    document = documents.json(key)
    return None if document is None else _read_v2(key, path, document)


def zarr_attributes(documents: Documents, path: str) -> tuple[str, dict[str, Any]] | None:
    """Key and content of the attributes of the zarr node at `path`; None where there are none."""
    key = joined(path, "zarr.json")
    document = documents.json(key)
    if document is not None:
        return key, document.get("attributes") or {}
    key = joined(path, ".zattrs")
    document = documents.json(key)
    return None if document is None else (key, document)


def _read_v2(key: str, path: str, document: dict[str, Any]) -> StoredArray:
    try:
        shape, chunk = _lengths(document["shape"]), _lengths(document["chunks"])
        separator = document.get("dimension_separator", ".")
        compressor, filters = document["compressor"], document.get("filters") or []
        names = [entry["id"] for entry in [*filters, *([compressor] if compressor else [])]]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(key, f"it does not describe a zarr v2 array ({error!r})") from error
    if len(shape) != len(chunk) or separator not in ("/", "."):
        raise damaged(key, f"shape {shape}, chunks {chunk}, separator {separator!r}")
    if compressor and compressor["id"] == "blosc":
        names[-1] = f"blosc-{compressor.get('cname', 'lz4')}"
    return StoredArray(
        driver="zarr", path=path, document=key, file_format="Zarr v2", shape=shape, chunk=chunk, stored=chunk,
        dtype=_dtype(path, document.get("dtype")), prefix="", separator=separator,
        compression="+".join(names) or "none", axis_names=None, attributes={},
    )  # fmt: skip


def _read_v3(key: str, path: str, document: dict[str, Any]) -> StoredArray:
    try:
        shape, grid = _lengths(document["shape"]), document["chunk_grid"]
        stored = chunk = _lengths(grid["configuration"]["chunk_shape"])
        encoding, codecs = document["chunk_key_encoding"], document["codecs"]
        names = [_codec_name(codec) for codec in codecs]
        while SHARDING in names:
            inner = codecs[names.index(SHARDING)]["configuration"]
            codecs, chunk = inner["codecs"], _lengths(inner["chunk_shape"])
            names = [_codec_name(codec) for codec in codecs]
        style = encoding["name"] if isinstance(encoding, dict) else encoding
        settings = encoding.get("configuration") or {} if isinstance(encoding, dict) else {}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(key, f"it does not describe a zarr v3 array ({error!r})") from error
    if (
        grid["name"] != "regular"
        or style not in ("default", "v2")
        or not len(shape) == len(stored) == len(chunk)
    ):
        raise UnsupportedFormat(
            f"Read {key}", f"its chunk grid is {grid['name']!r}, its chunk keys are {style!r}",
            "Regular grids with the key encodings default and v2 are read",
        )  # fmt: skip
    separator = settings.get("separator", "/" if style == "default" else ".")
    axis_names = document.get("dimension_names")
    return StoredArray(
        driver="zarr3", path=path, document=key, file_format="Zarr v3", shape=shape, chunk=chunk,
        stored=stored, dtype=_dtype(path, document.get("data_type")),
        prefix=f"c{separator}" if style == "default" else "", separator=separator,
        compression="+".join(n for n in names if n not in PLAIN_CODECS) or "none",
        axis_names=tuple(axis_names) if axis_names and all(axis_names) else None,
        attributes=document.get("attributes") or {},
    )  # fmt: skip


def _codec_name(codec: Any) -> str:
    if isinstance(codec, str):
        return codec
    if codec["name"] == "blosc":
        return f"blosc-{codec['configuration'].get('cname', 'lz4')}"
    return str(codec["name"])


def _lengths(values: Any) -> tuple[int, ...]:
    lengths = tuple(int(value) for value in values)
    if any(length < 0 for length in lengths):
        raise ValueError(f"negative lengths {lengths}")
    return lengths


def _dtype(path: str, written: Any) -> np.dtype[Any]:
    """The numpy type, native byte order. Raises `UnsupportedFormat` for structures, text, unknown names."""
    try:
        dtype = np.dtype(written) if isinstance(written, str) else np.dtype("V")
    except TypeError:
        dtype = np.dtype("V")
    if dtype.kind not in "buifc":
        raise UnsupportedFormat(
            f"Read the array {path or '/'!r}",
            f"its voxels are {written!r}",
            "Integers, floats and bool are read",
        )
    return dtype.newbyteorder("=")
