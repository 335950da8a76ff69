"""The comparison of the collection: what is in it, what is marked, what is refused."""

import csv
import io
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

import pytest

from em_pipeline.domain.errors import RecordInvalid
from em_pipeline.domain.evidence import Claim, Evidence, Origin
from em_pipeline.domain.record import FIELD_NAMES, DatasetRecord
from em_pipeline.ingest import table_output
from em_pipeline.ingest.tables import (
    ACQUISITION,
    SHOWN_ACQUISITION,
    SHOWN_VOLUMES,
    VOLUMES,
    comparison,
)

RETINA = {
    "core.title": "Retina <55 hpf>",
    "core.data_type": "uint8",
    "core.unit": "µm",
    "core.voxel_size_nm.z": 50.0,
    "core.voxel_size_nm.y": 8.0,
    "core.voxel_size_nm.x": 7.99825,
    "core.channels": 1,
    "core.volume_shape.z": 16,
    "core.volume_shape.y": 5500,
    "core.volume_shape.x": 5496,
    "core.offset.z": 0,
    "core.offset.y": 0,
    "core.offset.x": 0,
    "core.axes": "zyx",
    "core.imaging_start_date": "2018-06-11",
    "acquisition.microscope": "FEI Magellan400",
    "acquisition.accelerating_voltage_kv": 1.9,
    "acquisition.beam_current_pa": 200.0,
    "sample.tissue": "retina",
    "sample.organism": "Danio rerio",
}


def record(name: str, values: Mapping[str, Any], portal: Mapping[str, Any] | None = None) -> DatasetRecord:
    said = [(Origin.FILE, values), (Origin.PORTAL, portal or {})]
    claims = [
        Claim(
            field=field,
            value=value,
            evidence=Evidence(origin=origin, where=f"{origin}.doc", field="at", extractor="test", raw=value),
        )
        for origin, claimed in said
        for field, value in claimed.items()
    ]
    return DatasetRecord.resolve(name, "r", claims)


@pytest.fixture
def records() -> list[DatasetRecord]:
    bare = {"core.voxel_size_nm.z": 5.0, "core.voxel_size_nm.y": 5.0, "core.voxel_size_nm.x": 5.0}
    return [
        record("epfl-volumedata", bare),
        record("empiar-11759", RETINA, {"core.volume_shape.y": 5632, "core.title": "Retina <55 hpf>"}),
    ]


def test_every_dataset_has_a_row_in_both_tables(records: list[DatasetRecord]) -> None:
    found = comparison(records)
    for table in (found.volumes, found.acquisition):
        assert list(table["dataset"]) == ["empiar-11759", "epfl-volumedata"]
    row = found.volumes.iloc[0]
    assert (row["shape_z"], row["voxel_size_x_nm"], row["isotropic"]) == (16, 7.99825, False)
    assert row["specimen"] == "retina, Danio rerio"
    assert found.acquisition.iloc[0]["start_date"] == "2018-06-11"
    assert bool(found.volumes.iloc[1]["isotropic"]) is True


def test_every_column_rests_on_fields_of_the_record() -> None:
    for column in (*VOLUMES, *ACQUISITION):
        assert set(column.fields) <= FIELD_NAMES, column.name
    names = {column.name for column in (*VOLUMES, *ACQUISITION)}
    shown = {name for parts in (*SHOWN_VOLUMES.values(), *SHOWN_ACQUISITION.values()) for name in parts}
    assert shown <= names


@pytest.mark.parametrize(
    ("axes", "channels", "shown"),
    [("czyx", 1, "zyx"), ("xyzc", 1, "xyz"), ("czyx", 2, "czyx"), ("zyx", 1, "zyx"), ("t,c", 1, "t,c")],
)
def test_a_single_channel_is_no_axis(axes: str, channels: int, shown: str) -> None:
    found = comparison([record("a-1", {"core.axes": axes, "core.channels": channels})])
    assert found.volumes.iloc[0]["axes"] == shown


def test_units_are_shown_with_their_sign() -> None:
    found = comparison([record("a-1", {"core.unit": r"\u00B5m"})])
    assert found.volumes.iloc[0]["unit"] == "µm"


def test_all_acquisition_fields_are_compared() -> None:
    compared = {field for column in ACQUISITION for field in column.fields}
    assert {name for name in FIELD_NAMES if name.startswith("acquisition.")} <= compared


def test_a_conflict_marks_its_cell_and_no_other(records: list[DatasetRecord]) -> None:
    found = comparison(records)
    (retina, bare) = table_output.shown_rows(found, found.volumes, SHOWN_VOLUMES)
    cells = dict(zip(["dataset", *SHOWN_VOLUMES], retina, strict=True))
    assert cells["shape"] == ("16×5500×5496", True)
    assert cells["voxel size nm"] == ("50×8×7.99825", False)
    assert not any(disputed for _, disputed in bare)
    (conflict,) = found.conflicts.to_dict("records")
    assert (conflict["field"], conflict["kept"], conflict["rejected"]) == (
        "core.volume_shape.y",
        "5500",
        "5632",
    )
    assert (conflict["kept_origin"], conflict["rejected_from"]) == ("file", "portal.doc")


def test_csv_has_one_row_per_dataset_and_every_column(records: list[DatasetRecord]) -> None:
    rows = list(csv.DictReader(io.StringIO(table_output.csv(comparison(records)))))
    assert len(rows) == 2
    assert set(rows[0]) == {"dataset", "conflicts", *(column.name for column in (*VOLUMES, *ACQUISITION))}
    assert (rows[0]["voltage_kv"], rows[0]["conflicts"], rows[1]["shape_z"]) == (
        "1.9",
        "core.volume_shape.y",
        "",
    )


def test_without_conflicts_and_without_datasets(records: list[DatasetRecord]) -> None:
    calm = comparison(records[:1])
    assert "No conflicts." in table_output.html(calm)
    assert len(table_output.csv(calm).splitlines()) == 2
    nothing = comparison([])
    assert len(table_output.csv(nothing).splitlines()) == 1
    assert "<caption>Volumes</caption>" in table_output.html(nothing)


def test_html_is_whole_escaped_and_needs_nothing_else(records: list[DatasetRecord]) -> None:
    hostile = record("empiar-1", {**RETINA, "acquisition.microscope": "<script>alert(1)</script>"})
    page = table_output.html(comparison([*records, hostile]))
    tags = Tags()
    tags.feed(page)
    assert tags.depth == 0
    assert "script" not in tags.seen
    assert not {"src", "href"} & tags.attributes
    assert page.count('class="disputed"') == 1


class Tags(HTMLParser):
    """Counts open elements."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.seen, self.attributes = 0, set[str](), set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.depth += tag not in self.VOID

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1


def test_markdown_marks_with_a_star(records: list[DatasetRecord]) -> None:
    lines = table_output.markdown(
        comparison(records), comparison(records).volumes, SHOWN_VOLUMES
    ).splitlines()
    assert lines[0].startswith("| dataset | dtype | unit |")
    assert "| 16×5500×5496 * |" in lines[2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("acquisition.accelerating_voltage_kv", 0.0),
        ("core.channels", 0),
        ("core.voxel_size_nm.x", -1.0),
        ("core.offset.z", -3),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(RecordInvalid) as raised:
        comparison([record("empiar-1", {**RETINA, field: value})])
    column = next(one.name for one in (*VOLUMES, *ACQUISITION) if field in one.fields)
    assert column in str(raised.value)


def test_one_dataset_is_compared_once(records: list[DatasetRecord]) -> None:
    with pytest.raises(RecordInvalid, match="dataset"):
        comparison([*records, records[0]])
