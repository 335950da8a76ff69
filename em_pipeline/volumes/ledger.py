"""The ledger: one row for each chunk of each level, written when the chunk was, in parquet beside the volume.

Rows are complete and in C order (level, z, y, x). The file's key-value metadata holds the SHA-256 of every
zarr.json, the statistics and histogram of level 0, the digest of the plan and, where there are any, the
voxels of level 0 that the source does not hold. Parquet's checksums cover pages of rows only, so the
SHA-256 of these facts lies beside them. The same volume makes the same bytes: no times, no machine.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.statistics import SUMMARY_FIELDS, Summary, VolumeStatistics, bin_count

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT: Final = 2
_KEY: Final = b"em_pipeline.ledger"
_SEAL: Final = b"em_pipeline.ledger.sha256"
_UNREADABLE: Final = (OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What reading raises, besides Arrow's own, of a file or of facts that are not a ledger's."""


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

_TEXTS: Final = {"state": STATES}


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

    `rows` are all rows as one array of `ROW`, in C order; `grids` the chunks of each level. `documents` are
    the SHA-256 of each zarr.json, by path below the volume. `statistics` are those of level 0, `missing` its
    voxels that the source does not hold, None where it holds them all.
    """

    def __init__(self, rows: NDArray[Any], facts: Mapping[str, Any], sha256: str) -> None:
        self.rows = rows
        self.sha256 = sha256
        self.grids = _grids(facts)
        self.documents: Mapping[str, str] = dict(facts["documents"])
        self.plan_digest = str(facts["plan"])
        self.statistics = _statistics(facts)
        missing = facts.get("missing")
        self.missing = None if missing is None else Missing.from_json(missing)
        self._starts = _starts(self.grids)
        self._check_complete()

    @classmethod
    def read(cls, place: Blobs, name: str) -> Self:
        """The ledger `name` in `place`. Raises `NotFound` without one, `ChunkCorrupt` for a damaged one.

        Takes the file's bytes and its rows of memory, and little else.
        """
        from em_pipeline.volumes.ledger_file import REFUSALS, RowsFile

        payload = place.read(name)
        try:
            with RowsFile(payload) as file:
                facts = _facts_of(file.metadata)
                rows = file.rows(ROW, _TEXTS, int(_starts(_grids(facts))[-1]))
            return cls(rows, facts, hashlib.sha256(payload).hexdigest())
        except (*_UNREADABLE, *REFUSALS) as error:
            tried = f"Read the ledger {place.url}/{name}"
            raise ChunkCorrupt(tried, f"{type(error).__name__}: {error}") from error

    @property
    def coverage(self) -> float:
        """Share of the voxels of level 0 that the source holds, 0–1."""
        return 1.0 if self.missing is None else 1 - self.missing.voxels / self.missing.shape.voxels

    def table(self) -> "pa.Table":
        """The rows as the file's columns."""
        from em_pipeline.volumes.ledger_file import table_of

        return table_of(self.rows, _TEXTS)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all encoded chunks."""
        return int(self.rows["nbytes"].sum())

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
        counts = np.bincount(self.rows["state"], minlength=len(STATES))
        return {state: int(n) for state, n in zip(STATES, counts, strict=True)}

    def _position(self, level: int, index: tuple[int, int, int]) -> int:
        if not 0 <= level < len(self.grids):
            raise NotFound(f"Find level {level}", f"the volume has levels 0 to {len(self.grids) - 1}")
        if not all(0 <= i < n for i, n in zip(index, self.grids[level], strict=True)):
            grid = " × ".join(map(str, self.grids[level]))
            raise NotFound(f"Find chunk {tuple(index)} of level {level}", f"it has {grid} chunks (z, y, x)")
        return int(self._starts[level] + np.ravel_multi_index(index, self.grids[level]))

    def _check_complete(self) -> None:
        """Raises `ValueError` unless the rows are those of the grids, in order."""
        for level, grid in enumerate(self.grids):
            rows = self.level_rows(level)
            places = np.ogrid[: grid.z, : grid.y, : grid.x]
            for name, expected in zip(("level", "z", "y", "x"), (level, *places), strict=True):
                if not (rows[name] == expected).all():
                    raise ValueError(f"the rows of level {level} are not its {grid} chunks in order")
        if (self.rows["nbytes"] < 0).any():
            raise ValueError("a chunk has a negative length")


def load_ahead() -> None:
    """Load what reads and writes the file, so that it is there when the rows are.

    Raises `ImportError`, as reading and writing do then.
    """
    import_module("em_pipeline.volumes.ledger_file")


def in_order(parts: Iterable[NDArray[Any]], grids: Sequence[Shape]) -> NDArray[Any]:
    """All rows of `parts` (`ROW`, in any order) as one array in C order; each part may go once it is taken.

    Raises `ChunkCorrupt` where a chunk of the `grids` has no row, or a row is of no chunk of theirs.
    """
    tried = "Put the ledger together"
    starts = _starts(grids)
    rows = np.empty(starts[-1], ROW)
    rows["level"] = -1
    for part in parts:
        for level in sorted(set(part["level"].tolist())):  # np.unique loads numpy.ma
            of = part[part["level"] == level]
            try:
                rows[starts[level] + np.ravel_multi_index((of["z"], of["y"], of["x"]), grids[level])] = of
            except (ValueError, IndexError) as error:
                raise ChunkCorrupt(tried, "a unit has rows of chunks that do not exist") from error
    if lacking := np.count_nonzero(rows["level"] < 0):
        raise ChunkCorrupt(tried, f"{lacking} of {len(rows)} chunks have no row")
    return rows


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
    """Write `rows` (`ROW`, C order) and the facts beside them as a blob. Raises `StorageFailed`.

    Takes memory for the columns of a million rows besides.
    """
    from em_pipeline.volumes.ledger_file import write_rows

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
    text = json.dumps(facts, separators=(",", ":")).encode()
    seal = hashlib.sha256(text).hexdigest().encode()
    blob = place.create(name)
    try:
        write_rows(blob, rows, _TEXTS, {_KEY: text, _SEAL: seal})
        blob.commit()
    finally:
        blob.abandon()


def _facts_of(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The facts in a file's metadata. Raises `ValueError` where they are not those that were written."""
    text = metadata.get(_KEY, b"")
    if hashlib.sha256(text).hexdigest().encode() != metadata.get(_SEAL):
        raise ValueError("its facts are not those that were written, or have no checksum")
    facts: dict[str, Any] = json.loads(text)
    if facts["format"] != FORMAT:
        raise ValueError(f"it is of format {facts['format']}, not {FORMAT}")
    return facts


def _statistics(facts: Mapping[str, Any]) -> VolumeStatistics:
    dtype = np.dtype(facts["dtype"])
    histogram = np.zeros(bin_count(dtype), np.int64)
    histogram[facts["histogram"]["bins"]] = facts["histogram"]["counts"]
    numbers: dict[str, Any] = {name: math.nan if n is None else n for name, n in facts["statistics"].items()}
    return VolumeStatistics(**numbers, dtype=dtype, histogram=histogram)


def _grids(facts: Mapping[str, Any]) -> tuple[Shape, ...]:
    return tuple(Shape(*grid) for grid in facts["grids"])


def _starts(grids: Sequence[Shape]) -> NDArray[np.int64]:
    """The row at which each level begins; then the count of all rows."""
    return np.cumsum([0, *(grid.voxels for grid in grids)])


def _json_numbers(statistics: VolumeStatistics) -> Iterator[tuple[str, float | None]]:
    for f in fields(Summary):
        value = getattr(statistics, f.name)
        yield f.name, value if math.isfinite(value) else None
