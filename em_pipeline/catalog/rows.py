"""Between table rows and the catalogue's values."""

import math
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from em_pipeline.catalog.entries import (
    DatasetSummary,
    LabelImage,
    LevelRow,
    PublishedVersion,
    VersionSummary,
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
from em_pipeline.domain.errors import InputRefused, RecordInvalid
from em_pipeline.domain.files import RawFile
from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.domain.record import Status
from em_pipeline.domain.report import CheckResult
from em_pipeline.domain.spec import DatasetSpec

Published = TypeVar("Published", bound=BaseModel)


def document(model: BaseModel) -> dict[str, Any]:
    """A model as a JSON document that PostgreSQL takes."""
    stored: dict[str, Any] = storable(model.model_dump(mode="json"))
    return stored


def storable(value: Any) -> Any:
    """`value` without what JSON in PostgreSQL cannot hold: NUL, in text from file headers, becomes ␀; a
    number that is not finite becomes None."""
    if isinstance(value, str):
        return value.replace("\0", "␀")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable(key): storable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [storable(part) for part in value]
    return value


def spec(row: SpecRow) -> DatasetSpec:
    """Raises `RecordInvalid` for what an editor of the table, or another em-pipeline, left there."""
    try:
        return DatasetSpec.model_validate(row.spec)
    except (ValidationError, InputRefused) as error:
        raise RecordInvalid(
            f"Read the spec of {row.dataset_id} from the table specs",
            _fault(error),
            "Where a newer em-pipeline wrote it, update this one; else correct or delete that row, and "
            "register the dataset again",
        ) from error


def as_published(model: type[Published], stored: dict[str, Any], version: VersionRow) -> Published:
    """A document of a published version. Raises `RecordInvalid` where this em-pipeline has others."""
    try:
        return model.model_validate(stored)
    except (ValidationError, InputRefused) as error:
        raise RecordInvalid(
            f"Read the {model.__name__} that version {version.version} of {version.dataset_id} "
            "was published with",
            _fault(error),
            "Where a newer em-pipeline published it, update this one; else ingest the dataset again, which "
            f"publishes a version that this one reads: `em ingest {version.dataset_id}`",
        ) from error


def _fault(error: ValidationError | InputRefused) -> str:
    if isinstance(error, InputRefused):
        return error.found
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"


def summary(dataset: DatasetRow, version: VersionRow | None) -> DatasetSummary:
    """`version` is the published one. Of a pending dataset no volume is stored."""
    begun = DatasetSummary(
        dataset_id=dataset.dataset_id,
        source=dataset.source,
        status=dataset.status,
        progress=dataset.progress,
        message=dataset.message,
        revision=dataset.revision,
        created_at=dataset.created_at,
        updated_at=dataset.updated_at,
    )
    if version is None:
        return begun
    return replace(
        begun,
        version=version.version,
        published_at=version.published_at,
        title=version.title,
        shape=Shape(version.shape_z, version.shape_y, version.shape_x),
        voxel_size_nm=VoxelSize(z=version.voxel_size_z, y=version.voxel_size_y, x=version.voxel_size_x),
        data_type=version.data_type,
        organism=version.organism,
        tissue=version.tissue,
        modality=version.modality,
        licence=version.licence,
        doi=version.doi,
        completeness=version.completeness,
        coverage=version.coverage,
        conflicts=version.conflicts,
        raw_bytes=version.raw_bytes,
        stored_bytes=None if dataset.status is Status.PENDING else version.stored_bytes,
    )


def version_summary(row: VersionRow, current: str | None) -> VersionSummary:
    """`row` is published; `current` is the version that is visible."""
    assert row.published_at is not None  # noqa: S101 - the caller asked for published versions
    return VersionSummary(
        version=row.version,
        revision=row.revision,
        writer_version=row.writer_version,
        ledger_sha256=row.ledger_sha256,
        volume_key=row.volume_key,
        raw_bytes=row.raw_bytes,
        stored_bytes=row.stored_bytes,
        published_at=row.published_at,
        current=row.version == current,
    )


def published_version(
    row: VersionRow, levels: list[LevelOfVersion], labels: list[LabelImageOfVersion]
) -> PublishedVersion:
    """`row` is published; `levels` and `labels` are its own, in order."""
    assert row.published_at is not None  # noqa: S101 - the caller asked for the published version
    return PublishedVersion(
        dataset_id=row.dataset_id,
        version=row.version,
        revision=row.revision,
        volume_key=row.volume_key,
        ledger_key=row.ledger_key,
        ledger_sha256=row.ledger_sha256,
        levels=tuple(level(one) for one in levels),
        statistics=row.statistics,
        published_at=row.published_at,
        coverage=row.coverage,
        labels=tuple(label_image(one) for one in labels),
    )


def label_image(row: LabelImageOfVersion) -> LabelImage:
    return LabelImage(
        folder=row.folder,
        name=row.name,
        data_type=row.data_type,
        levels=tuple(_level_from(document) for document in row.levels),
        coverage=row.coverage,
        ledger_sha256=row.ledger_sha256,
        volume_key=row.volume_key,
        ledger_key=row.ledger_key,
        stored_bytes=row.stored_bytes,
    )


def _level_from(document: dict[str, Any]) -> LevelRow:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
    }
    return LevelRow(**values)


def label_image_row(dataset_id: str, version: str, label: LabelImage) -> LabelImageOfVersion:
    row = LabelImageOfVersion(dataset_id=dataset_id, version=version, **vars(label))
    row.levels = [vars(one) for one in label.levels]
    row.name = storable(label.name)
    return row


def level(row: LevelOfVersion) -> LevelRow:
    return LevelRow(
        level=row.level,
        shape=(row.shape_z, row.shape_y, row.shape_x),
        chunk_shape=(row.chunk_z, row.chunk_y, row.chunk_x),
        shard_shape=(row.shard_z, row.shard_y, row.shard_x),
        voxel_size_nm=(row.voxel_size_z, row.voxel_size_y, row.voxel_size_x),
        translation_nm=(row.translation_z, row.translation_y, row.translation_x),
    )


def level_row(dataset_id: str, version: str, one: LevelRow, chunks: int, stored_bytes: int) -> LevelOfVersion:
    row = LevelOfVersion(
        dataset_id=dataset_id, version=version, level=one.level, chunks=chunks, stored_bytes=stored_bytes
    )
    row.shape_z, row.shape_y, row.shape_x = one.shape
    row.chunk_z, row.chunk_y, row.chunk_x = one.chunk_shape
    row.shard_z, row.shard_y, row.shard_x = one.shard_shape
    row.voxel_size_z, row.voxel_size_y, row.voxel_size_x = one.voxel_size_nm
    row.translation_z, row.translation_y, row.translation_x = one.translation_nm
    return row


def raw_file(row: RawFileOfVersion) -> RawFile:
    return RawFile(
        url=row.url,
        path=row.path,
        size=row.size,
        sha256=row.sha256,
        etag=row.etag,
        modified=row.modified,
        offset=row.offset,
    )


def check(row: CheckOfVersion) -> CheckResult:
    return CheckResult(
        name=row.name, passed=row.passed, severity=row.severity, message=row.message, details=row.details
    )
