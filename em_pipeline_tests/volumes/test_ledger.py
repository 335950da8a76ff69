"""The ledger's rows on their way into a file and out of it: in order, the same, and in little memory."""

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from em_pipeline.domain.errors import ChunkCorrupt
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes import ledger_file
from em_pipeline.volumes.ledger import ROW, STATES, Ledger, in_order, write_ledger
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.statistics import VolumeStatistics

GRIDS = (Shape(3, 4, 5), Shape(2, 2, 3), Shape(1, 1, 1))
STATISTICS = VolumeStatistics(1, 0, *[1.0] * 6, dtype=np.dtype("uint8"), histogram=np.ones(256, np.int64))


def made_up(grids: tuple[Shape, ...]) -> NDArray[Any]:
    """Rows of every chunk in C order; no two of the same voxels, and some of none."""
    count = sum(grid.voxels for grid in grids)
    rows = np.zeros(count, ROW)
    rng = np.random.default_rng(7)
    for name in ROW.names or ():
        rows[name] = rng.random(count) if ROW[name].kind == "f" else rng.integers(0, len(STATES), count)
    rows["nbytes"], rows["crc32c"] = rng.integers(0, 2**40, count), rng.integers(0, 2**32, count)
    rows["mean"][::7] = np.nan
    places = [(level, *place) for level, grid in enumerate(grids) for place in np.ndindex(*grid)]
    for name, column in zip(("level", "z", "y", "x"), zip(*places, strict=True), strict=True):
        rows[name] = column
    return rows


def write(folder: Path, rows: NDArray[Any], grids: tuple[Shape, ...], missing: Missing | None = None) -> None:
    write_ledger(
        LocalBlobs(folder),
        "l.parquet",
        rows,
        grids=grids,
        documents={"zarr.json": b"{}"},
        statistics=STATISTICS,
        plan_digest="p",
        missing=missing,
    )


def read(folder: Path) -> Ledger:
    return Ledger.read(LocalBlobs(folder), "l.parquet")


@pytest.mark.parametrize(("group", "batch"), [(1 << 20, 1 << 16), (16, 7), (10, 100)])
def test_rows_come_back_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, batch: int
) -> None:
    monkeypatch.setattr(ledger_file, "_GROUP", group)
    monkeypatch.setattr(ledger_file, "_BATCH", batch)
    rows = made_up(GRIDS)
    write(tmp_path, rows, GRIDS)
    found = read(tmp_path)
    assert found.rows.tobytes() == rows.tobytes()
    assert found.table().column_names == list(ROW.names or ())
    assert found.table()["state"].to_pylist() == [str(STATES[n]) for n in rows["state"]]
    assert found.table()["mean"].null_count == np.isnan(rows["mean"]).sum()


@given(order=st.permutations(range(73)), size=st.integers(1, 73))
def test_rows_of_units_are_put_in_order(order: list[int], size: int) -> None:
    rows = made_up(GRIDS)
    parts = (rows[order[first : first + size]] for first in range(0, len(rows), size))
    assert in_order(parts, GRIDS).tobytes() == rows.tobytes()


def test_a_chunk_without_a_row_is_an_error() -> None:
    with pytest.raises(ChunkCorrupt, match="2 of 73 chunks have no row"):
        in_order([made_up(GRIDS)[2:]], GRIDS)


@pytest.mark.parametrize(("name", "value"), [("x", 5), ("z", -1), ("level", 3), ("level", -1)])
def test_a_row_of_no_chunk_is_an_error(name: str, value: int) -> None:
    rows = made_up(GRIDS)
    rows[name][4] = value
    with pytest.raises(ChunkCorrupt, match="Put the ledger together"):
        in_order([rows], GRIDS)


@pytest.mark.parametrize(("name", "value"), [("x", 3), ("level", 1), ("nbytes", -1)])
def test_rows_that_are_not_those_of_the_grids_are_refused(tmp_path: Path, name: str, value: int) -> None:
    rows = made_up(GRIDS)
    rows[name][4] = value
    write(tmp_path, rows, GRIDS)
    with pytest.raises(ChunkCorrupt, match=r"not its|negative"):
        read(tmp_path)


def test_fewer_rows_than_chunks_are_refused(tmp_path: Path) -> None:
    write(tmp_path, made_up(GRIDS)[:-1], GRIDS)
    with pytest.raises(ChunkCorrupt, match="72 rows for 73 chunks"):
        read(tmp_path)


def facts_of(ledger: Ledger) -> tuple[Any, ...]:
    """All that a ledger says, to compare."""
    missing = ledger.missing and ledger.missing.to_json()
    numbers = (ledger.statistics, ledger.statistics.histogram.tolist())
    return ledger.rows.tobytes(), ledger.grids, dict(ledger.documents), ledger.plan_digest, numbers, missing


def test_no_flipped_bit_of_the_metadata_changes_what_is_read(tmp_path: Path) -> None:
    whole = BoundingBox.of_shape(Shape(30, 40, 50))
    lacking = Missing.of([BoundingBox.of_shape(Shape(3, 4, 5))], whole)
    write(tmp_path, made_up(GRIDS), GRIDS, lacking)
    path = tmp_path / "l.parquet"
    written, expected = path.read_bytes(), facts_of(read(tmp_path))
    first = len(written) - 8 - int.from_bytes(written[-8:-4], "little")
    refused = 0
    # The distance is odd, so that every bit of a byte has its turn.
    for bit in range(8 * first, 8 * len(written), 61):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert facts_of(read(tmp_path)) == expected
        except ChunkCorrupt:
            refused += 1
    assert refused > 100


def with_metadata(folder: Path, **changed: bytes | None) -> None:
    """Write the ledger anew with other metadata: `facts`, `seal`; None takes it away."""
    path = folder / "l.parquet"
    table, metadata = pq.read_table(path), dict(pq.read_metadata(path).metadata)
    for name, text in changed.items():
        key = {"facts": b"em_pipeline.ledger", "seal": b"em_pipeline.ledger.sha256"}[name]
        metadata.pop(key)
        if text is not None:
            metadata[key] = text
    with pq.ParquetWriter(path, table.schema.remove_metadata(), write_page_checksum=True) as file:
        file.write_table(table.replace_schema_metadata())
        file.add_key_value_metadata({key: metadata[key] for key in metadata if key != b"ARROW:schema"})


@pytest.mark.parametrize("changed", [{"seal": None}, {"facts": None}, {"facts": b"{}"}, {"seal": b"0"}])
def test_facts_without_their_checksum_are_refused(tmp_path: Path, changed: dict[str, bytes | None]) -> None:
    write(tmp_path, made_up(GRIDS), GRIDS)
    with_metadata(tmp_path, **changed)
    with pytest.raises(ChunkCorrupt, match="checksum"):
        read(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 1},
        {"statistics": {}},
        {"statistics": None},
        {"histogram": {"bins": [256], "counts": [1]}},
        {"dtype": "no type"},
        {"grids": [[1, 2]]},
        {"documents": None},
        {"missing": {"cuts": [[0, 1]] * 2, "runs": []}},
        {"missing": 7},
    ],
)
def test_facts_that_make_no_sense_are_refused_when_the_ledger_is_read(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    write(tmp_path, made_up(GRIDS), GRIDS)
    facts = json.loads(pq.read_metadata(tmp_path / "l.parquet").metadata[b"em_pipeline.ledger"])
    text = json.dumps(facts | changed).encode()
    with_metadata(tmp_path, facts=text, seal=hashlib.sha256(text).hexdigest().encode())
    with pytest.raises(ChunkCorrupt, match="Read the ledger"):
        read(tmp_path)


def with_states(folder: Path, states: pa.Array) -> None:
    """Write the ledger anew with other states."""
    path = folder / "l.parquet"
    table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
    changed = table.set_column(table.column_names.index("state"), "state", states)
    with pq.ParquetWriter(path, changed.schema, write_page_checksum=True) as file:
        file.write_table(changed)
        file.add_key_value_metadata({k: v for k, v in metadata.items() if k != b"ARROW:schema"})


def test_states_in_another_order_or_as_plain_text_are_the_same(tmp_path: Path) -> None:
    rows = made_up(GRIDS)
    write(tmp_path, rows, GRIDS)
    texts = pa.array([str(STATES[n]) for n in rows["state"]])
    for states in (texts, texts.dictionary_encode()):
        with_states(tmp_path, states)
        assert read(tmp_path).rows.tobytes() == rows.tobytes()


@pytest.mark.parametrize("wrong", ["lost", None])
def test_unknown_and_lacking_states_are_refused(tmp_path: Path, wrong: str | None) -> None:
    write(tmp_path, made_up(GRIDS), GRIDS)
    texts = pa.array([wrong, *["data"] * 72])
    for states in (texts, texts.dictionary_encode()):
        with_states(tmp_path, states)
        with pytest.raises(ChunkCorrupt, match=r"unknown state|missing"):
            read(tmp_path)


def test_rows_take_few_times_their_size(tmp_path: Path) -> None:
    grids = (Shape(46, 46, 47),)
    rows = made_up(grids)
    units = [rows[first : first + 64] for first in range(0, len(rows), 64)]
    write(tmp_path, rows[:1], (Shape(1, 1, 1),))  # what is imported first is not the rows'
    read(tmp_path)

    def peak(work: Any) -> float:
        """What Python and numpy took at most, and what Arrow holds of it afterwards, in sizes of the rows."""
        tracemalloc.start()
        held = pa.default_memory_pool().bytes_allocated()
        work()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return (most + pa.default_memory_pool().bytes_allocated() - held) / rows.nbytes

    assert peak(lambda: write(tmp_path, in_order(iter(units), grids), grids)) < 2.6
    assert peak(lambda: read(tmp_path)) < 2.2
    ledger = read(tmp_path)
    assert peak(lambda: (ledger.states(), ledger.stored_bytes, ledger.level_rows(0))) < 0.2
