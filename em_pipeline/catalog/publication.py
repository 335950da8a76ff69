"""One transaction that makes a version visible, with everything known of it, or changes nothing."""

from io import BytesIO
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from em_pipeline.catalog import rows
from em_pipeline.catalog.entries import PublishOutcome, VersionToPublish
from em_pipeline.catalog.models import (
    CheckOfVersion,
    DatasetRow,
    LabelImageOfVersion,
    RawFileOfVersion,
    VersionRow,
)
from em_pipeline.domain.errors import NotPublishable
from em_pipeline.domain.record import Status
from em_pipeline.domain.report import ValidationReport
from em_pipeline.volumes.arrow import from_numpy, repeated, to_numpy

STATISTICS = ("min", "max", "mean", "std", "p01", "p99")
BLOCK_COLUMNS = ("z", "y", "x", "nbytes", "crc32c", "state", "valid_fraction", *STATISTICS)
COPY_ROWS = 65536


def refuse_unpublishable(new: VersionToPublish) -> None:
    """Raise `NotPublishable` unless the report passed and every part speaks of this very version."""
    report = new.report
    if not report.passed:
        failed = ", ".join(check.name for check in report.failures) or "it has no blocking check"
        raise _refused(new, f"validation did not pass: {failed}", "Correct the data or its spec, and ingest")
    pairs: dict[str, tuple[object, object]] = {
        "the report's dataset": (report.dataset_id, new.dataset_id),
        "the report's version": (report.version, new.version),
        "the report's ledger": (report.ledger_sha256, new.ledger_sha256),
        "the report's label images": (
            report.label_ledgers,
            {label.folder: label.ledger_sha256 for label in new.labels},
        ),
        "the spec's dataset": (new.spec.dataset_id, new.dataset_id),
        "the record's dataset": (new.record.dataset_id, new.dataset_id),
        "the record's revision": (new.record.revision, new.revision),
        "the manifest's dataset": (new.manifest.dataset_id, new.dataset_id),
        "the manifest's revision": (new.manifest.revision, new.revision),
    }
    for what, (found, expected) in pairs.items():
        if found != expected:
            raise _refused(
                new, f"{what} is {found!r}, not {expected!r}", "Validate this version and publish it"
            )
    _refuse_ledger(new)


def _refuse_ledger(new: VersionToPublish) -> None:
    missing = {"level", *BLOCK_COLUMNS} - set(new.ledger.column_names)
    if missing:
        raise _refused(
            new, f"its ledger has no column {', '.join(sorted(missing))}", "Build the volume again"
        )
    in_ledger = set(pc.unique(new.ledger["level"]).to_pylist())
    described = {level.level for level in new.levels}
    if in_ledger != described or 0 not in described:
        raise _refused(
            new,
            f"its ledger has the levels {sorted(in_ledger)}, the volume {sorted(described)}",
            "Build the volume again",
        )


def publish(session: Session, new: VersionToPublish) -> PublishOutcome:
    """Write what is not written yet and swap the dataset's pointer; the caller commits.

    Publishers of one dataset wait for each other. Raises `NotPublishable`.
    """
    refuse_unpublishable(new)
    dataset = _locked_dataset(session, new)
    previous = dataset.published_version
    refuse_other_bytes(session, new.report)
    existing = session.get(VersionRow, (new.dataset_id, new.version))
    blocks = new.ledger.take(from_numpy(np.flatnonzero(to_numpy(new.ledger["level"]) == 0)))
    if not (existing and existing.published_at):
        _write_version(session, new, blocks)
    if previous != new.version:
        dataset.published_version = new.version
        dataset.status = Status.COMPLETE
        dataset.progress = 1.0
        dataset.message = f"published {new.version}"
        dataset.revision = new.revision
        dataset.updated_at = func.now()
        session.flush()
    return PublishOutcome(
        dataset_id=new.dataset_id,
        version=new.version,
        changed=previous != new.version,
        previous=previous,
        blocks=blocks.num_rows,
        message=_message(new, previous),
    )


def refuse_other_bytes(session: Session, report: ValidationReport) -> None:
    """Raise `NotPublishable` where the report's version was published with other ledgers than its own."""
    existing = session.get(VersionRow, (report.dataset_id, report.version))
    if existing is None or existing.published_at is None:
        return
    found = None
    if existing.ledger_sha256 != report.ledger_sha256:
        found = f"the ledger {existing.ledger_sha256}, this one has {report.ledger_sha256}"
    else:
        labels = select(LabelImageOfVersion.folder, LabelImageOfVersion.ledger_sha256)
        kept = session.execute(labels.filter_by(dataset_id=report.dataset_id, version=report.version))
        if {row.folder: row.ledger_sha256 for row in kept} != report.label_ledgers:
            found = "other label images, or with other ledgers of them"
    if found is not None:
        raise _refused(
            report,
            f"it was published with {found}",
            "What is published never changes. Put back what was published, or run "
            f"`em rm {report.dataset_id} --volume`, which forgets all its versions, and ingest it again",
        )


def _message(new: VersionToPublish, previous: str | None) -> str:
    if previous == new.version:
        return f"{new.dataset_id} {new.version} was published already; nothing changed"
    if previous is None:
        return f"{new.dataset_id} {new.version} is published"
    return f"{new.dataset_id} {new.version} is published in place of {previous}"


def _locked_dataset(session: Session, new: VersionToPublish) -> DatasetRow:
    stub = insert(DatasetRow).values(
        dataset_id=new.dataset_id, source=new.spec.source, status=Status.PROCESSING
    )
    session.execute(stub.on_conflict_do_nothing())
    return session.get_one(DatasetRow, new.dataset_id, with_for_update=True)


def _write_version(session: Session, new: VersionToPublish, blocks: pa.Table) -> None:
    key = {"dataset_id": new.dataset_id, "version": new.version}
    session.execute(delete(VersionRow).filter_by(**key))
    session.add(_version_row(new))
    session.flush()
    totals = _level_totals(new.ledger)
    session.add_all(
        rows.level_row(new.dataset_id, new.version, level, *totals[level.level]) for level in new.levels
    )
    session.add_all(rows.label_image_row(new.dataset_id, new.version, label) for label in new.labels)
    session.add_all(RawFileOfVersion(**key, **rows.document(file)) for file in new.manifest.files)
    session.add_all(
        CheckOfVersion(**key, position=position, **rows.document(check))
        for position, check in enumerate(new.report.checks)
    )
    session.flush()
    _copy_blocks(session, new, blocks)
    session.execute(update(VersionRow).filter_by(**key).values(published_at=func.now()))


def _version_row(new: VersionToPublish) -> VersionRow:
    fields = new.record.fields
    full = next(level for level in new.levels if level.level == 0)
    row = VersionRow(
        dataset_id=new.dataset_id,
        version=new.version,
        revision=new.revision,
        spec=rows.document(new.spec),
        record=rows.document(new.record),
        statistics=rows.storable(dict(new.statistics)),
        completeness=new.record.completeness,
        coverage=new.coverage,
        conflicts=len(new.record.conflicts),
        raw_bytes=new.manifest.size,
        stored_bytes=new.stored_bytes,
        ledger_sha256=new.ledger_sha256,
        volume_key=new.volume_key,
        ledger_key=new.ledger_key,
        writer_version=new.writer_version,
        report_passed=new.report.passed,
    )
    row.shape_z, row.shape_y, row.shape_x = full.shape
    row.voxel_size_z, row.voxel_size_y, row.voxel_size_x = full.voxel_size_nm
    row.title = rows.storable(fields.core.title)
    row.data_type = rows.storable(fields.core.data_type)
    row.modality = rows.storable(fields.core.modality)
    row.organism = rows.storable(fields.sample.organism)
    row.tissue = rows.storable(fields.sample.tissue)
    row.licence = rows.storable(fields.rights.licence)
    row.doi = rows.storable(fields.rights.doi)
    return row


def _level_totals(ledger: pa.Table) -> dict[int, tuple[int, int]]:
    """Level → (chunks, stored bytes)."""
    # Not Table.group_by, whose first use imports pandas.
    levels, lengths = to_numpy(ledger["level"]), to_numpy(ledger["nbytes"])
    chunks = {int(level): levels == level for level in np.unique(levels)}
    return {level: (int(of.sum()), int(lengths[of].sum())) for level, of in chunks.items()}


def _copy_blocks(session: Session, new: VersionToPublish, blocks: pa.Table) -> None:
    """COPY the level-0 rows, as CSV made by Arrow: a large volume has hundreds of thousands."""
    statement = f"COPY blocks (dataset_id, version, {', '.join(BLOCK_COLUMNS)}) FROM STDIN (FORMAT csv)"
    driver: Any = session.connection().connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for start in range(0, blocks.num_rows, COPY_ROWS):
                copy.write(_csv(new, blocks.slice(start, COPY_ROWS)))
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        said = error.diag.message_primary or str(error)
        raise _refused(new, f"its ledger was refused: {said}", "Build the volume again") from error


def _csv(new: VersionToPublish, blocks: pa.Table) -> bytes:
    columns = {name: _column(name, blocks[name]) for name in BLOCK_COLUMNS}
    table = pa.table(
        {
            "dataset_id": repeated(new.dataset_id, blocks.num_rows),
            "version": repeated(new.version, blocks.num_rows),
            **columns,
        }
    )
    out = BytesIO()
    csv.write_csv(table, out, csv.WriteOptions(include_header=False))
    return out.getvalue()


def _column(name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    if name == "state":
        return pc.cast(values, pa.string())
    if name not in STATISTICS:
        return values
    numbers = pc.cast(values, pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, pa.nulls(len(numbers), pa.float64()))


def _refused(new: VersionToPublish | ValidationReport, found: str, to_do: str) -> NotPublishable:
    return NotPublishable(f"Publish {new.dataset_id} {new.version}", found, to_do)
