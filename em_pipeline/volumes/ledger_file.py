"""Rows and what is said beside them as a parquet file: all of the ledger that needs Arrow.

Arrow takes a tenth of a second to load, so this module is only imported where a ledger is read or written
(`volumes.ledger`), and while voxels are being written until then (`ledger.load_ahead`).
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from em_pipeline.domain.blobs import BlobSink
from em_pipeline.volumes.arrow import from_numpy, strings, to_numpy

REFUSALS: Final = (pa.ArrowException,)
"""What Arrow raises of files that it cannot read, besides Python's own."""
Texts = Mapping[str, Sequence[str]]
"""Of fields whose numbers stand for texts, by name, which number stands for which."""
_GROUP: Final = 1 << 20
"""Rows of a row group, whose columns are in memory while it is written: about 100 MiB of them."""
_BATCH: Final = 1 << 16
"""Rows that are read at once."""


class RowsFile:
    """The bytes of a file that `write_rows` wrote, open to be read. Raises `REFUSALS` and Python's own."""

    def __init__(self, payload: bytes) -> None:
        # Not read_table, which imports pandas (see `volumes.arrow`).
        self._file = pq.ParquetFile(pa.BufferReader(payload), page_checksum_verification=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        pa.default_memory_pool().release_unused()

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        """What is said beside the rows."""
        return self._file.metadata.metadata or {}

    def rows(self, dtype: np.dtype[Any], texts: Texts, count: int) -> NDArray[Any]:
        """The rows. Raises `ValueError` unless there are `count`, and what reading raises."""
        if self._file.metadata.num_rows != count:
            raise ValueError(f"{self._file.metadata.num_rows} rows for {count} chunks")
        rows = np.empty(count, dtype)
        first = 0
        # In this thread alone: Arrow's own each keep what they decoded with.
        for batch in self._file.iter_batches(_BATCH, use_threads=False):
            part = rows[first : first + batch.num_rows]
            for name in dtype.names or ():
                column = batch.column(name)
                part[name] = _numbers(name, column, texts[name]) if name in texts else to_numpy(column)
            first += batch.num_rows
        return rows


def write_rows(blob: BlobSink, rows: NDArray[Any], texts: Texts, metadata: Mapping[bytes, bytes]) -> None:
    """Append `rows` (structured) and `metadata` to `blob`, as a file. Raises what the blob raises.

    Takes memory for the columns of `_GROUP` rows besides.
    """
    schema = _schema(rows.dtype, texts)
    with pq.ParquetWriter(
        _Appended(blob), schema, compression="zstd", version="2.6", write_page_checksum=True
    ) as file:
        # Not as the schema's metadata, which Arrow stores twice.
        file.add_key_value_metadata(dict(metadata))
        for first in range(0, len(rows), _GROUP):
            file.write_table(table_of(rows[first : first + _GROUP], texts), row_group_size=_GROUP)


def table_of(rows: NDArray[Any], texts: Texts) -> pa.Table:
    """The rows as the file's columns."""
    schema = _schema(rows.dtype, texts)
    columns = [_column(rows[name], texts.get(name)) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


class _Appended(io.RawIOBase):
    """A blob that is being written, as a file."""

    def __init__(self, blob: BlobSink) -> None:
        super().__init__()
        self._blob = blob
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, payload: Any) -> int:
        self._blob.append(payload)
        self._size += len(payload)
        return len(payload)

    def tell(self) -> int:
        return self._size


def _numbers(name: str, column: pa.Array, texts: Sequence[str]) -> NDArray[Any]:
    """Index in `texts` of every text of a column.

    Without `pyarrow.compute`, which takes as long to load as the rest of Arrow.
    """
    number_of = {text: number for number, text in enumerate(texts)}
    if not isinstance(column, pa.DictionaryArray):
        found, which = column.to_pylist(), None
    else:
        found, which = column.dictionary.to_pylist(), to_numpy(column.indices)
    if not number_of.keys() >= set(found):
        raise ValueError(f"it has chunks in an unknown {name}")
    numbers: NDArray[Any] = np.array([number_of[text] for text in found], np.intp)
    if which is None:
        return numbers
    if which.size and not 0 <= which.min() <= which.max() < len(numbers):
        raise ValueError(f"it has chunks of no {name}")
    chosen: NDArray[Any] = numbers[which]
    return chosen


def _schema(dtype: np.dtype[Any], texts: Texts) -> pa.Schema:
    return pa.schema([_field(name, dtype[name], name in texts) for name in dtype.names or ()])


def _field(name: str, dtype: np.dtype[Any], of_texts: bool) -> pa.Field:
    kind = pa.dictionary(pa.int8(), pa.string()) if of_texts else pa.from_numpy_dtype(dtype)
    return pa.field(name, kind, nullable=dtype.kind == "f")


def _column(values: NDArray[Any], texts: Sequence[str] | None) -> pa.Array:
    if texts is None:
        return from_numpy(values)
    return pa.DictionaryArray.from_arrays(from_numpy(values.astype(np.int8)), strings(texts))
