"""The catalogue: what was asked for, what is under way, what is published."""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, undefer
from sqlalchemy.sql.base import ExecutableOption

from em_pipeline.catalog import rows
from em_pipeline.catalog.engine import answering
from em_pipeline.catalog.entries import (
    DatasetDetail,
    DatasetSummary,
    LevelRow,
    PublishedVersion,
    PublishOutcome,
    SpecOrigin,
    VersionSummary,
    VersionToPublish,
)
from em_pipeline.catalog.models import (
    CheckOfVersion,
    DatasetRow,
    LabelImageOfVersion,
    LevelOfVersion,
    RawFileOfVersion,
    SpecRow,
    VersionRow,
)
from em_pipeline.domain.errors import InputRefused, NotFound, NotPublishable, RecordInvalid
from em_pipeline.domain.identity import check_dataset_id
from em_pipeline.domain.record import DatasetRecord, Status
from em_pipeline.domain.report import ValidationReport
from em_pipeline.domain.spec import DatasetSpec

__all__ = [
    "Catalog",
    "DatasetDetail",
    "DatasetSummary",
    "LevelRow",
    "PublishOutcome",
    "PublishedVersion",
    "SpecOrigin",
    "VersionSummary",
    "VersionToPublish",
]

_log = logging.getLogger(__name__)

_PUBLISHED = (VersionRow.dataset_id == DatasetRow.dataset_id) & (
    VersionRow.version == DatasetRow.published_version
)


class Catalog:
    """The catalogue in the database behind `engine`; safe to use from several threads.

    Every method raises `ServiceUnavailable` where the database does not answer and `SchemaMismatch`
    where it has no tables.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with answering(self.engine), Session(self.engine) as session, session.begin():
            yield session

    def save_spec(self, spec: DatasetSpec, origin: SpecOrigin = "run-time") -> None:
        """Keep `spec`, in place of an earlier one for the same dataset."""
        new = {"source": spec.source, "spec": rows.document(spec), "origin": origin}
        statement = insert(SpecRow).values(dataset_id=spec.dataset_id, **new)
        with self._session() as session:
            session.execute(
                statement.on_conflict_do_update(
                    index_elements=["dataset_id"], set_={**new, "updated_at": func.now()}
                )
            )

    def spec(self, dataset_id: str) -> DatasetSpec | None:
        """The saved spec, or None. Raises `RecordInvalid` for one that is no spec (any more)."""
        with self._session() as session:
            row = session.get(SpecRow, dataset_id)
            return rows.spec(row) if row else None

    def forget(self, dataset_id: str) -> None:
        """Drop the dataset's spec, every version and what was said of it, in one transaction."""
        with self._session() as session:
            session.execute(delete(DatasetRow).where(DatasetRow.dataset_id == dataset_id))
            session.execute(delete(SpecRow).where(SpecRow.dataset_id == dataset_id))

    def specs(self, source: str | None = None) -> list[DatasetSpec]:
        """The saved specs, of `source` where given, by dataset id.

        One that is no spec (any more) is left out and named in the log: it must not hold up the others.
        """
        statement = select(SpecRow).order_by(SpecRow.dataset_id)
        if source is not None:
            statement = statement.where(SpecRow.source == source)
        with self._session() as session:
            found = []
            for row in session.scalars(statement):
                try:
                    found.append(rows.spec(row))
                except RecordInvalid as invalid:
                    _log.warning("%s", invalid)
            return found

    def begin(self, dataset_id: str, source: str, message: str = "") -> None:
        """An ingest starts: the dataset is listed as processing; a published version stays published."""
        check_dataset_id(dataset_id)
        new = {"status": Status.PROCESSING, "progress": 0.0, "message": rows.storable(message)}
        statement = insert(DatasetRow).values(dataset_id=dataset_id, source=source, **new)
        with self._session() as session:
            session.execute(
                statement.on_conflict_do_update(
                    index_elements=["dataset_id"], set_={**new, "updated_at": func.now()}
                )
            )

    def set_status(
        self,
        dataset_id: str,
        status: Status,
        *,
        progress: float | None = None,
        message: str = "",
        revision: str | None = None,
    ) -> None:
        """Say where the ingest stands. `progress` (0–1) and `revision` stay where None is given.

        Raises `NotFound` where it never began, `InputRefused` for a progress outside 0–1 and
        `NotPublishable` for `complete` where no version is published.
        """
        if progress is not None and not 0 <= progress <= 1:
            raise InputRefused(f"Set the progress of {dataset_id}", f"{progress} is not within 0–1")
        with self._session() as session:
            dataset = session.get(DatasetRow, dataset_id, with_for_update=True)
            if dataset is None:
                raise _not_found(session, dataset_id)
            if status is Status.COMPLETE and dataset.published_version is None:
                raise NotPublishable(
                    f"Call {dataset_id} complete", "no version of it is published", "Publish one first"
                )
            dataset.status = status
            dataset.message = rows.storable(message)
            dataset.updated_at = func.now()
            if progress is not None:
                dataset.progress = progress
            if revision is not None:
                dataset.revision = revision

    def publish(self, version: VersionToPublish) -> PublishOutcome:
        """Make `version` the visible one, with all that is known of it, in one transaction.

        The published version again is a no-op; one published before becomes visible again as it was.
        Raises `NotPublishable` unless its report passed and is of this version and ledger, and where this
        version is already published with another ledger.
        """
        from em_pipeline.catalog import publication  # brings pyarrow, which readers do without

        with self._session() as session:
            return publication.publish(session, version)

    def refuse_other_bytes(self, report: ValidationReport) -> None:
        """Before anything of a version is moved: raise `NotPublishable` where `publish` would never take it.

        That is where it was published with other ledgers than those that `report` is of.
        """
        from em_pipeline.catalog import publication  # brings pyarrow, which readers do without

        with self._session() as session:
            publication.refuse_other_bytes(session, report)

    def published(self) -> list[DatasetSummary]:
        """Datasets with a published version, by id."""
        with self._session() as session:
            found = session.execute(
                select(DatasetRow, VersionRow).join(VersionRow, _PUBLISHED).order_by(DatasetRow.dataset_id)
            )
            return [rows.summary(dataset, version) for dataset, version in found]

    def published_records(self) -> list[DatasetRecord]:
        """The records of the published versions, by dataset id."""
        statement = select(VersionRow.record).join(DatasetRow, _PUBLISHED).order_by(DatasetRow.dataset_id)
        with self._session() as session:
            return [DatasetRecord.model_validate(record) for record in session.scalars(statement)]

    def all_datasets(self) -> list[DatasetSummary]:
        """Published datasets and those only begun, by id."""
        statement = select(DatasetRow, VersionRow).outerjoin(VersionRow, _PUBLISHED)
        with self._session() as session:
            found = session.execute(statement.order_by(DatasetRow.dataset_id))
            return [rows.summary(dataset, version) for dataset, version in found]

    def dataset(self, dataset_id: str) -> DatasetDetail:
        """All that is known of a dataset. Raises `NotFound` naming the nearest ids."""
        with self._session() as session:
            dataset = session.get(DatasetRow, dataset_id)
            if dataset is None:
                raise _not_found(session, dataset_id)
            version = _published(session, dataset_id, undefer(VersionRow.record), undefer(VersionRow.spec))
            return _detail(session, dataset, version)

    def published_version(self, dataset_id: str) -> PublishedVersion | None:
        """What is needed to serve the dataset; None where nothing of it is published."""
        with self._session() as session:
            version = _published(session, dataset_id)
            return _serving(session, version) if version else None


def _published(session: Session, dataset_id: str, *options: ExecutableOption) -> VersionRow | None:
    statement = select(VersionRow).join(DatasetRow, _PUBLISHED).options(*options)
    return session.scalar(statement.where(DatasetRow.dataset_id == dataset_id))


def _serving(session: Session, version: VersionRow) -> PublishedVersion:
    key = {"dataset_id": version.dataset_id, "version": version.version}
    levels = select(LevelOfVersion).filter_by(**key).order_by(LevelOfVersion.level)
    labels = select(LabelImageOfVersion).filter_by(**key).order_by(LabelImageOfVersion.folder)
    return rows.published_version(version, [*session.scalars(levels)], [*session.scalars(labels)])


def _detail(session: Session, dataset: DatasetRow, version: VersionRow | None) -> DatasetDetail:
    summary = rows.summary(dataset, version)
    if version is None:
        return DatasetDetail(summary, None, None, (), None, (), (), ())
    key = {"dataset_id": version.dataset_id, "version": version.version}
    record = rows.as_published(DatasetRecord, version.record, version)
    files = select(RawFileOfVersion).filter_by(**key).order_by(RawFileOfVersion.path)
    checks = select(CheckOfVersion).filter_by(**key).order_by(CheckOfVersion.position)
    versions = (
        select(VersionRow)
        .where(VersionRow.dataset_id == dataset.dataset_id, VersionRow.published_at.is_not(None))
        .order_by(VersionRow.published_at.desc())
    )
    return DatasetDetail(
        summary=summary,
        spec=rows.as_published(DatasetSpec, version.spec, version),
        record=record,
        conflicts=record.conflicts,
        published=_serving(session, version),
        raw_files=tuple(rows.raw_file(row) for row in session.scalars(files)),
        checks=tuple(rows.check(row) for row in session.scalars(checks)),
        versions=tuple(
            rows.version_summary(row, dataset.published_version) for row in session.scalars(versions)
        ),
    )


def _not_found(session: Session, dataset_id: str) -> NotFound:
    known = session.scalars(select(DatasetRow.dataset_id)).all()
    if dataset_id in known:
        return NotFound(
            f"Find the published version of {dataset_id}",
            "nothing of it is published yet",
            f"`em ingest {dataset_id}` carries it through",
        )
    nearest = difflib.get_close_matches(dataset_id, known, n=3, cutoff=0.5)
    return NotFound(
        f"Find the dataset {dataset_id!r}",
        "the catalogue has no such id",
        f"The nearest are {', '.join(nearest)}" if nearest else "`em ls --all` lists the known ids",
    )
