"""The ledger: one row for each chunk of each level, written when the chunk was, in parquet beside the volume.

Rows are complete and in C order (level, z, y, x). The file's key-value metadata holds the SHA-256 of every
zarr.json, the statistics and histogram of level 0, the digest of the plan and, where there are any, the
voxels of level 0 that the source does not hold. The same volume makes the same bytes: no times, no machine.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.arrow import from_numpy, strings, to_numpy
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.statistics import SUMMARY_FIELDS, Summary, VolumeStatistics, bin_count

FORMAT: Final = 1
_KEY: Final = b"em_pipeline.ledger"


class ChunkState(StrEnum):
    """What a chunk holds.

    `data`: voxels of the source, all of them. `padded`: voxels of the source in part (`valid_fraction` < 1),
    for the chunk reaches past the volume's edge or into what the source does not hold; the rest is the fill
    value. `fill`: every voxel of the source there is the fill value; nothing is stored (`valid_fraction` as
    before). `absent`: the source holds no voxel there; nothing is stored, `valid_fraction` is 0. `corrupt`:
    the source's voxels cannot be read. That stops a rechunk, so volumes written here have none.
    """

    DATA = "data"
    FILL = "fill"
    ABSENT = "absent"
    CORRUPT = "corrupt"
    PADDED = "padded"


STATES: Final = tuple(ChunkState)
STORED: Final = frozenset((ChunkState.DATA, ChunkState.PADDED))
NOTHING_STORED: Final = frozenset((ChunkState.FILL, ChunkState.ABSENT))

ROW: Final = np.dtype(
    [
        ("level", "<i4"),
        ("z", "<i4"),
        ("y", "<i4"),
        ("x", "<i4"),
        ("nbytes", "<i8"),
        ("crc32c", "<u4"),
        ("state", "<u1"),
        ("valid_fraction", "<f8"),
        *SUMMARY_FIELDS,
    ]
)
"""One chunk; `state` indexes `STATES`; `nbytes` and `crc32c` are of the encoded chunk, 0 where none is."""


@dataclass(frozen=True)
class LedgerRow:
    """What was written for one chunk."""

    level: int
    index: Shape
    nbytes: int
    crc32c: int
    state: ChunkState
    valid_fraction: float
    summary: Summary


class Ledger:
    """A ledger file, read and checked for completeness.

    `missing` are the voxels of level 0 that the source does not hold, None where it holds them all.
    """

    def __init__(self, table: pa.Table, sha256: str, where: str) -> None:
        self.table = table
        self.sha256 = sha256
        self._where = where
        self._facts: dict[str, Any] = json.loads(table.schema.metadata[_KEY])
        self.grids = tuple(Shape(*grid) for grid in self._facts["grids"])
        self._starts = np.cumsum([0, *(grid.voxels for grid in self.grids)])
        missing = self._facts.get("missing")
        self.missing = None if missing is None else Missing.from_json(missing)
        self._check_complete()

    @classmethod
    def read(cls, place: Blobs, name: str) -> Self:
        """The ledger `name` in `place`. Raises `NotFound` without one, `ChunkCorrupt` for a damaged one."""
        where = f"{place.url}/{name}"
        payload = place.read(name)
        try:
            # Not read_table, which imports pandas (see `volumes.arrow`).
            table = pq.ParquetFile(io.BytesIO(payload), page_checksum_verification=True).read()
            return cls(table, hashlib.sha256(payload).hexdigest(), where)
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            raise ChunkCorrupt(f"Read the ledger {where}", f"{type(error).__name__}: {error}") from error

    @property
    def documents(self) -> Mapping[str, str]:
        """SHA-256 of each zarr.json, by path below the volume."""
        documents: dict[str, str] = self._facts["documents"]
        return documents

    @property
    def plan_digest(self) -> str:
        return str(self._facts["plan"])

    @property
    def coverage(self) -> float:
        """Share of the voxels of level 0 that the source holds, 0–1."""
        return 1.0 if self.missing is None else 1 - self.missing.voxels / self.missing.shape.voxels

    @cached_property
    def statistics(self) -> VolumeStatistics:
        """Statistics of level 0."""
        dtype = np.dtype(self._facts["dtype"])
        histogram = np.zeros(bin_count(dtype), np.int64)
        histogram[self._facts["histogram"]["bins"]] = self._facts["histogram"]["counts"]
        numbers: dict[str, Any] = {
            name: math.nan if n is None else n for name, n in self._facts["statistics"].items()
        }
        return VolumeStatistics(**numbers, dtype=dtype, histogram=histogram)

    @cached_property
    def rows(self) -> NDArray[Any]:
        """All rows as one structured array of `ROW`, C order."""
        rows = np.empty(self.table.num_rows, ROW)
        for name in ROW.names or ():
            rows[name] = self._states() if name == "state" else to_numpy(self.table[name])
        return rows

    @property
    def stored_bytes(self) -> int:
        """Bytes of all encoded chunks."""
        return int(to_numpy(self.table["nbytes"]).sum())

    def row(self, level: int, index: tuple[int, int, int]) -> LedgerRow:
        """Raises `NotFound` for a level or chunk that the volume does not have."""
        row = self.rows[self._position(level, index)]
        summary = Summary(**{f.name: row[f.name].item() for f in fields(Summary)})
        return LedgerRow(
            level,
            Shape(*index),
            int(row["nbytes"]),
            int(row["crc32c"]),
            STATES[row["state"]],
            float(row["valid_fraction"]),
            summary,
        )

    def level_rows(self, level: int) -> NDArray[Any]:
        """Rows of one level, shaped like its chunk grid (z, y, x)."""
        return self.rows[self._starts[level] : self._starts[level + 1]].reshape(self.grids[level])

    def states(self) -> dict[ChunkState, int]:
        """How many chunks are in each state, all levels together."""
        counts = np.bincount(self._states(), minlength=len(STATES))
        return {state: int(n) for state, n in zip(STATES, counts, strict=True)}

    def _states(self) -> NDArray[Any]:
        """Index in `STATES` of every chunk's state."""
        column = pc.index_in(self.table["state"].cast(pa.string()), value_set=strings(STATES))
        if column.null_count:
            raise ChunkCorrupt(f"Read the ledger {self._where}", "it has chunks in an unknown state")
        return to_numpy(column)

    def _position(self, level: int, index: tuple[int, int, int]) -> int:
        if not 0 <= level < len(self.grids):
            raise NotFound(f"Find level {level}", f"the volume has levels 0 to {len(self.grids) - 1}")
        if not all(0 <= i < n for i, n in zip(index, self.grids[level], strict=True)):
            grid = " × ".join(map(str, self.grids[level]))
            raise NotFound(f"Find chunk {tuple(index)} of level {level}", f"it has {grid} chunks (z, y, x)")
        return int(self._starts[level] + np.ravel_multi_index(index, self.grids[level]))

    def _check_complete(self) -> None:
        """Raises `ValueError` unless the rows are those of the grids, in order."""
        for level, (grid, start) in enumerate(zip(self.grids, self._starts[:-1], strict=True)):
            part = self.table.slice(int(start), grid.voxels)
            places = np.unravel_index(np.arange(grid.voxels), grid)
            expected = (np.full(grid.voxels, level), *places)
            for name, column in zip(("level", "z", "y", "x"), expected, strict=True):
                if not np.array_equal(to_numpy(part[name]), column):
                    raise ValueError(f"the rows of level {level} are not its {grid} chunks in order")
        if self.table.num_rows != self._starts[-1]:
            raise ValueError(f"{self.table.num_rows} rows for {self._starts[-1]} chunks")
        if (to_numpy(self.table["nbytes"]) < 0).any():
            raise ValueError("a chunk has a negative length")


def write_ledger(
    place: Blobs,
    name: str,
    rows: NDArray[Any],
    *,
    grids: tuple[Shape, ...],
    documents: Mapping[str, bytes],
    statistics: VolumeStatistics,
    plan_digest: str,
    missing: Missing | None = None,
) -> None:
    """Write `rows` (`ROW`, any order) and the facts beside them as a blob. Raises `StorageFailed`."""
    rows = np.sort(rows, order=["level", "z", "y", "x"])
    bins = np.flatnonzero(statistics.histogram)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "plan": plan_digest,
        "dtype": statistics.dtype.name,
        "grids": [list(grid) for grid in grids],
        "documents": {name: hashlib.sha256(text).hexdigest() for name, text in sorted(documents.items())},
        "statistics": dict(_json_numbers(statistics)),
        "histogram": {"bins": bins.tolist(), "counts": statistics.histogram[bins].tolist()},
    }
    if missing is not None:
        facts["missing"] = missing.to_json()
    schema = pa.schema([_field(name) for name in ROW.names or ()])
    columns = [_column(name, rows[name]) for name in schema.names]
    metadata = {_KEY: json.dumps(facts, separators=(",", ":"))}
    table = pa.Table.from_arrays(columns, schema=schema.with_metadata(metadata))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", version="2.6", write_page_checksum=True)
    place.write(name, sink.getvalue())


def _json_numbers(statistics: VolumeStatistics) -> Iterator[tuple[str, float | None]]:
    for f in fields(Summary):
        value = getattr(statistics, f.name)
        yield f.name, value if math.isfinite(value) else None


def _field(name: str) -> pa.Field:
    if name == "state":
        return pa.field(name, pa.dictionary(pa.int8(), pa.string()), nullable=False)
    return pa.field(name, pa.from_numpy_dtype(ROW[name]), nullable=ROW[name].kind == "f")


def _column(name: str, values: NDArray[Any]) -> pa.Array:
    if name == "state":
        return pa.DictionaryArray.from_arrays(from_numpy(values.astype(np.int8)), strings(STATES))
    return from_numpy(values)
