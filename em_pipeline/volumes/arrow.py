"""Between numpy and Arrow by their shared memory layout.

pyarrow's own conversions (`pa.array`, `pa.scalar`, `to_numpy`) import pandas when first used, which takes a
third of a second that every command and every Dagster step would pay for a few small columns.
Layout: Arrow columnar format, "Physical memory layout".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def from_numpy(values: NDArray[Any]) -> pa.Array:
    """A primitive array; NaN becomes null."""
    values = np.ascontiguousarray(values)
    present = ~np.isnan(values) if values.dtype.kind == "f" else None
    validity = None
    if present is not None and not present.all():
        validity = pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [validity, pa.py_buffer(values)]
    )


def to_numpy(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """The values of a primitive column; null becomes NaN, and is not allowed in integers (`ValueError`)."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    if column.null_count and dtype.kind != "f":
        raise ValueError(f"{column.null_count} of {len(column)} integers are missing")
    if isinstance(column, pa.Array):
        return _chunk_values(column, dtype)
    parts = [_chunk_values(chunk, dtype) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def strings(texts: Sequence[str]) -> pa.Array:
    """An array of texts."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *(len(text) for text in encoded)], dtype=np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(encoded), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    )


def repeated(text: str, count: int) -> pa.Array:
    """`text`, `count` times."""
    indices = from_numpy(np.zeros(count, np.int32))
    return pa.DictionaryArray.from_arrays(indices, strings([text])).cast(pa.string())


def _chunk_values(chunk: pa.Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    validity, data = chunk.buffers()
    span = slice(chunk.offset, chunk.offset + len(chunk))
    values = np.frombuffer(data, dtype, count=span.stop)[span]
    if not chunk.null_count:
        return values
    bits = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[span].astype(bool)
    return np.where(bits, values, dtype.type(np.nan))
