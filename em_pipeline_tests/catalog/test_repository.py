"""The catalogue: specs, stubs, publishing, reading back."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from em_pipeline.catalog.entries import PublishOutcome, VersionToPublish
from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.errors import InputRefused, NotFound, NotPublishable, RecordInvalid
from em_pipeline.domain.files import Manifest, RawFile
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.domain.record import Status
from em_pipeline.domain.report import CheckResult, Severity
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline_tests.catalog.examples import (
    DATASET,
    FAILED,
    claim,
    ledger,
    levels,
    record,
    version,
    with_labels,
)

pytestmark = pytest.mark.integration


def test_specs_are_kept_and_replaced(catalog: Catalog) -> None:
    first = DatasetSpec(source="files", accession="a", bounding_box=BoundingBox.of_shape((3, 4, 5)))
    other = DatasetSpec(source="empiar", accession="EMPIAR-1")
    catalog.save_spec(first, origin="curated")
    catalog.save_spec(other)
    assert catalog.specs() == [other, first]
    assert catalog.specs("files") == [first]
    changed = first.model_copy(update={"include": ("*.tif",)})
    catalog.save_spec(changed)
    assert catalog.spec(first.dataset_id) == changed
    assert catalog.spec("files-unknown") is None


@pytest.mark.parametrize("damage", ['{"source": "files"}', "[]", '{"source": "files", "accession": "/"}'])
def test_a_damaged_spec_is_named_and_holds_up_no_other(
    catalog: Catalog, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    good, bad = (DatasetSpec(source="files", accession=name) for name in ("good", "bad"))
    catalog.save_spec(good)
    catalog.save_spec(bad)
    with catalog.engine.begin() as connection:
        change = sa.text("UPDATE specs SET spec = CAST(:spec AS jsonb) WHERE dataset_id = 'files-bad'")
        connection.execute(change, {"spec": damage})
    with pytest.raises(RecordInvalid, match=r"files-bad.*delete that row"):
        catalog.spec("files-bad")
    assert catalog.specs() == [good]
    assert "files-bad" in caplog.text
    catalog.save_spec(bad)
    assert catalog.spec("files-bad") == bad


def test_a_stub_is_listed_but_not_published(catalog: Catalog) -> None:
    catalog.begin(DATASET, "files", "asking files")
    catalog.set_status(DATASET, Status.SAVING_DATA, progress=0.5, message="chunk 4 of 8", revision="r1")
    (only,) = catalog.all_datasets()
    assert (only.status, only.progress, only.message) == (Status.SAVING_DATA, 0.5, "chunk 4 of 8")
    assert (only.revision, only.version, only.shape) == ("r1", None, None)
    assert catalog.published() == []
    assert catalog.published_version(DATASET) is None
    assert catalog.dataset(DATASET).record is None


def test_status_refusals(catalog: Catalog) -> None:
    catalog.begin(DATASET, "files")
    with pytest.raises(NotFound, match=DATASET):
        catalog.set_status("files-cel", Status.FAILED)
    with pytest.raises(InputRefused, match="0–1"):
        catalog.set_status(DATASET, Status.PROCESSING, progress=1.5)
    with pytest.raises(NotPublishable):
        catalog.set_status(DATASET, Status.COMPLETE)
    with pytest.raises(InputRefused):
        catalog.begin("../etc", "files")


def test_publish_and_read_back(catalog: Catalog) -> None:
    new = version()
    outcome = catalog.publish(new)
    assert (outcome.changed, outcome.previous, outcome.blocks) == (True, None, 8)
    (summary,) = catalog.published()
    assert summary.status is Status.COMPLETE
    assert (summary.title, summary.organism, summary.licence) == ("A cell", "Mus musculus", "CC-BY-4.0")
    assert summary.shape == Shape(200, 210, 220)
    assert summary.voxel_size_nm == VoxelSize(z=8, y=4, x=4)
    assert (summary.raw_bytes, summary.stored_bytes, summary.conflicts) == (1000, 821, 1)
    detail = catalog.dataset(DATASET)
    assert detail.record is not None
    assert detail.record.fields == new.record.fields
    assert len(detail.record.claims) == len(new.record.claims)
    assert detail.conflicts[0].kept.evidence.raw == "ImageJ=1.52␀spacing=8"
    assert detail.spec == new.spec
    assert detail.raw_files == new.manifest.files
    assert detail.checks == new.report.checks
    assert [(v.version, v.current) for v in detail.versions] == [("v1", True)]
    served = catalog.published_version(DATASET)
    assert served == detail.published
    assert served is not None
    assert served.levels == levels()
    assert served.statistics == {"mean": 3.0, "std": None}
    assert (served.ledger_sha256, served.volume_key) == (new.ledger_sha256, new.volume_key)


def test_level_totals_come_from_the_ledger(catalog: Catalog, engine: sa.Engine) -> None:
    catalog.publish(version())
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT level, chunks, stored_bytes FROM levels ORDER BY level"))
        assert [tuple(row) for row in found] == [(0, 8, sum(range(100, 107))), (1, 1, 108)]


def blocks(engine: sa.Engine) -> list[sa.Row[Any]]:
    with engine.connect() as connection:
        return list(connection.execute(sa.text("SELECT * FROM blocks ORDER BY z, y, x")))


def test_blocks_are_those_of_level_0(catalog: Catalog, engine: sa.Engine) -> None:
    catalog.publish(version(ledger=ledger((3, 2, 3))))
    found = blocks(engine)
    assert [(b.z, b.y, b.x) for b in found] == [
        (z, y, x) for z in range(3) for y in range(2) for x in range(3)
    ]
    assert (found[1].crc32c, found[1].mean) == (2**32 - 2, 1.0)
    (fill,) = (block for block in found if block.state == "fill")
    assert (fill.z, fill.y, fill.x, fill.mean) == (2, 1, 2, None)


def test_states_may_be_dictionary_encoded(catalog: Catalog, engine: sa.Engine) -> None:
    table = ledger()
    position = table.column_names.index("state")
    table = table.set_column(position, "state", table["state"].dictionary_encode())
    assert pa.types.is_dictionary(table["state"].type)
    catalog.publish(version(ledger=table))
    assert [block.state for block in blocks(engine)] == ["data"] * 7 + ["fill"]


def test_label_images_are_published_with_their_seals(catalog: Catalog) -> None:
    new = with_labels(version(coverage=0.75), cells="c" * 64, nuclei="d" * 64)
    catalog.publish(new)
    served = catalog.published_version(DATASET)
    assert served is not None
    assert (served.coverage, served.labels) == (0.75, tuple(new.labels))
    cells = served.label("my cells")
    assert cells == served.label("cells")
    assert (cells.ledger_sha256, cells.volume_key) == ("c" * 64, new.labels[0].volume_key)
    assert cells.levels == levels()
    with pytest.raises(NotFound, match="my cells, my nuclei"):
        served.label("mitochondria")
    assert not catalog.publish(new).changed
    for other in (with_labels(version(), cells="c" * 64), with_labels(version(), cells="e" * 64)):
        with pytest.raises(NotPublishable, match="other label images"):
            catalog.publish(other)


def test_a_byte_range_stays_known(catalog: Catalog) -> None:
    ranged = RawFile(url="https://portal.test/s", path="c/0", size=7, sha256="3" * 64, offset=11)
    manifest = Manifest(dataset_id=DATASET, revision="r1", files=(ranged,))
    catalog.publish(version(manifest=manifest))
    assert catalog.dataset(DATASET).raw_files == (ranged,)


@pytest.mark.parametrize("column", ["record", "spec"])
def test_a_document_of_another_pipeline_is_an_error_with_a_way_out(
    catalog: Catalog, engine: sa.Engine, column: str
) -> None:
    catalog.publish(version())
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE versions DISABLE TRIGGER guard_version"))
        connection.execute(sa.text(f"UPDATE versions SET {column} = {column} || '{{\"novel\"\\: 1}}'"))
    with pytest.raises(RecordInvalid, match=f"novel.*em ingest {DATASET}"):
        catalog.dataset(DATASET)
    assert [summary.dataset_id for summary in catalog.published()] == [DATASET]


def test_the_same_version_again_changes_nothing(catalog: Catalog) -> None:
    catalog.publish(version())
    before = catalog.dataset(DATASET)
    outcome = catalog.publish(version())
    assert not outcome.changed
    assert "already" in outcome.message
    assert catalog.dataset(DATASET) == before


def test_a_new_version_takes_the_place_of_the_old(catalog: Catalog) -> None:
    catalog.publish(version())
    catalog.begin(DATASET, "files", "asking files")
    assert [d.version for d in catalog.published()] == ["v1"]
    outcome = catalog.publish(version(name="v2", revision="r2"))
    assert (outcome.changed, outcome.previous) == (True, "v1")
    detail = catalog.dataset(DATASET)
    assert (detail.summary.version, detail.summary.revision) == ("v2", "r2")
    assert [(v.version, v.current) for v in detail.versions] == [("v2", True), ("v1", False)]
    back = catalog.publish(version())
    assert (back.changed, back.previous) == (True, "v2")
    assert catalog.dataset(DATASET).summary.revision == "r1"


def test_a_published_version_keeps_its_bytes(catalog: Catalog) -> None:
    catalog.publish(version())
    with pytest.raises(NotPublishable, match="never changes"):
        catalog.publish(version(ledger_sha256="b" * 64))
    served = catalog.published_version(DATASET)
    assert served is not None
    assert served.ledger_sha256 == "a" * 64


WARNING = CheckResult(name="contrast", passed=True, severity=Severity.WARNING, message="")

SPOILED = {
    "a failed check": (version(checks=FAILED), "did not pass: ledger"),
    "no blocking check": (version(checks=(WARNING,)), "no blocking check"),
    "another ledger": (replace(version(), ledger_sha256="b" * 64), "report's ledger"),
    "another version": (replace(version(), version="v9"), "report's version"),
    "another dataset": (replace(version(), dataset_id="files-else"), "report's dataset"),
    "another record": (version(record=record("files-else")), "record's dataset"),
    "an older record": (version(record=record(DATASET, "r0")), "record's revision"),
    "an older manifest": (
        version(manifest=Manifest(dataset_id=DATASET, revision="r0", files=())),
        "manifest's revision",
    ),
    "labels the report does not know": (
        replace(version(), labels=with_labels(version(), cells="c" * 64).labels),
        "report's label images",
    ),
    "a level too few": (version(levels=levels()[:1]), "levels"),
    "no crc32c": (version(ledger=ledger().drop_columns("crc32c")), "crc32c"),
}


@pytest.mark.parametrize(("spoiled", "why"), SPOILED.values(), ids=SPOILED)
def test_what_is_not_publishable(catalog: Catalog, spoiled: VersionToPublish, why: str) -> None:
    with pytest.raises(NotPublishable, match=why):
        catalog.publish(spoiled)
    assert catalog.all_datasets() == []


def test_a_failure_half_way_leaves_nothing(catalog: Catalog) -> None:
    table = ledger()
    doubled = pa.concat_tables([table, table])
    with pytest.raises(NotPublishable, match="duplicate key"):
        catalog.publish(version(ledger=doubled))
    assert catalog.all_datasets() == []
    assert catalog.publish(version()).changed


def test_text_with_nul_is_stored(catalog: Catalog) -> None:
    catalog.publish(version(record=record(DATASET, "r1", claim("sample.tissue", "brain\0"))))
    assert catalog.published()[0].tissue == "brain␀"


def test_two_publishers_at_once(catalog: Catalog, engine: sa.Engine) -> None:
    """Same version from some, another from the rest: each is written once, and one of them is visible."""
    gate = threading.Barrier(6)

    def publish(new: VersionToPublish) -> PublishOutcome:
        gate.wait()
        return catalog.publish(new)

    versions = [version(), version(name="v2", revision="r2")] * 3
    with ThreadPoolExecutor(6) as threads:
        outcomes = list(threads.map(publish, versions))
    assert sum(outcome.previous is None for outcome in outcomes) == 1
    detail = catalog.dataset(DATASET)
    assert {v.version for v in detail.versions} == {"v1", "v2"}
    assert len(blocks(engine)) == 2 * 8


def test_an_unknown_dataset_names_the_nearest(catalog: Catalog) -> None:
    catalog.publish(version())
    with pytest.raises(NotFound, match="files-cell"):
        catalog.dataset("files-sell")
    assert catalog.published_version("files-sell") is None
