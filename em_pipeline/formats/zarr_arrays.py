"""Metadata documents of single zarr arrays.

Zarr v2: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. Zarr v3 with its chunk key encodings and
data types: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html. Shards:
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html.
"""

from typing import Any

import numpy as np

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.formats.arrays import Documents, StoredArray, damaged, joined, lengths_of, understood

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
        with understood(key):
            return key, dict(document.get("attributes") or {})
    key = joined(path, ".zattrs")
    document = documents.json(key)
    return None if document is None else (key, document)


def _read_v2(key: str, path: str, document: dict[str, Any]) -> StoredArray:
    with understood(key):
        shape, chunk = lengths_of(document["shape"], 0), lengths_of(document["chunks"], 1)
        separator = document.get("dimension_separator", ".")
        compressor, filters = document["compressor"], document.get("filters") or []
        names = [str(entry["id"]) for entry in [*filters, *([compressor] if compressor else [])]]
        if compressor and compressor["id"] == "blosc":
            names[-1] = f"blosc-{compressor.get('cname', 'lz4')}"
    if len(shape) != len(chunk) or separator not in ("/", "."):
        raise damaged(key, f"shape {shape}, chunks {chunk}, separator {separator!r}")
    return StoredArray(
        driver="zarr", path=path, document=key, file_format="Zarr v2", shape=shape, chunk=chunk, stored=chunk,
        dtype=_dtype(path, document.get("dtype")), prefix="", separator=separator,
        compression="+".join(names) or "none", axis_names=None, attributes={},
        separator_said="dimension_separator" in document,
    )  # fmt: skip


def _read_v3(key: str, path: str, document: dict[str, Any]) -> StoredArray:
    with understood(key):
        shape, grid = lengths_of(document["shape"], 0), document["chunk_grid"]
        stored = chunk = lengths_of(grid["configuration"]["chunk_shape"], 1)
        codecs = document["codecs"]
        names = [_codec_name(codec) for codec in codecs]
        while SHARDING in names:
            inner = codecs[names.index(SHARDING)]["configuration"]
            codecs, chunk = inner["codecs"], lengths_of(inner["chunk_shape"], 1)
            names = [_codec_name(codec) for codec in codecs]
        style, separator = _key_encoding(document["chunk_key_encoding"])
        axis_names, attributes = document.get("dimension_names"), dict(document.get("attributes") or {})
        axes = tuple(map(str, axis_names)) if axis_names and all(axis_names) else None
        regular = grid["name"] == "regular"
    if not regular or style not in ("default", "v2") or separator not in ("/", "."):
        raise UnsupportedFormat(
            f"Read {key}", f"its grid is {grid['name']!r}, its chunk keys are {style!r} ({separator!r})",
            "Regular grids with the key encodings default and v2 are read",
        )  # fmt: skip
    if not len(shape) == len(stored) == len(chunk):
        raise damaged(key, f"shape {shape}, shards {stored}, chunks {chunk}")
    return StoredArray(
        driver="zarr3", path=path, document=key, file_format="Zarr v3", shape=shape, chunk=chunk,
        stored=stored, dtype=_dtype(path, document.get("data_type")),
        prefix=f"c{separator}" if style == "default" else "", separator=separator,
        compression="+".join(n for n in names if n not in PLAIN_CODECS) or "none",
        axis_names=axes, attributes=attributes,
    )  # fmt: skip


def _key_encoding(encoding: Any) -> tuple[str, str]:
    """Its name, and the separator: `/` by default, `.` by default for keys as in zarr v2."""
    named: dict[str, Any] = {"name": encoding} if isinstance(encoding, str) else encoding
    default = "." if named["name"] == "v2" else "/"
    return named["name"], (named.get("configuration") or {}).get("separator", default)


def _codec_name(codec: Any) -> str:
    if isinstance(codec, str):
        return codec
    if codec["name"] == "blosc":
        return f"blosc-{codec['configuration'].get('cname', 'lz4')}"
    return str(codec["name"])


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
