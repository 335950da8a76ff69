"""The tables. What they refuse beyond types and keys is in the first migration: triggers keep a version
that did not pass from being published, and a published one from being changed."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from em_pipeline.domain.record import Status
from em_pipeline.domain.report import Severity

BLOCK_STATES = ("data", "fill", "absent", "corrupt", "padded")
ORIGINS = ("curated", "run-time")


class Base(DeclarativeBase):
    """Constraints get predictable names, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own protocol
        str: Text,
        float: Double,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        Status: Enum(Status, name="dataset_status", values_callable=lambda states: [s.value for s in states]),
        Severity: Enum(Severity, name="severity", values_callable=lambda levels: [s.value for s in levels]),
    }


class SpecRow(Base):
    """What was asked for, curated or at run time."""

    __tablename__ = "specs"

    dataset_id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(index=True)
    spec: Mapped[dict[str, Any]]
    origin: Mapped[str] = mapped_column(Enum(*ORIGINS, name="spec_origin"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DatasetRow(Base):
    """A dataset, where its newest ingest stands, and which version the world sees."""

    __tablename__ = "datasets"
    __table_args__ = (
        ForeignKeyConstraint(
            ["dataset_id", "published_version"],
            ["versions.dataset_id", "versions.version"],
            name="fk_datasets_published_version",
            use_alter=True,
        ),
        CheckConstraint("progress BETWEEN 0 AND 1", name="progress_is_a_share"),
        CheckConstraint(
            "status <> 'complete' OR published_version IS NOT NULL", name="complete_is_published"
        ),
    )

    dataset_id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(index=True)
    status: Mapped[Status] = mapped_column(index=True)
    progress: Mapped[float] = mapped_column(server_default=text("0"))
    message: Mapped[str] = mapped_column(server_default=text("''"))
    revision: Mapped[str | None]
    published_version: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class VersionRow(Base):
    """One finished version. The columns beside `record` are those people search by.

    `completeness` is the share of the record's fields that have a value, `coverage` the share of the
    volume's voxels that the source holds.
    """

    __tablename__ = "versions"
    __table_args__ = (
        CheckConstraint("published_at IS NULL OR report_passed", name="published_has_passed"),
        CheckConstraint("shape_z > 0 AND shape_y > 0 AND shape_x > 0", name="shape_is_positive"),
        CheckConstraint(
            "voxel_size_z > 0 AND voxel_size_y > 0 AND voxel_size_x > 0", name="voxel_size_is_positive"
        ),
        CheckConstraint("completeness BETWEEN 0 AND 1", name="completeness_is_a_share"),
        CheckConstraint("coverage BETWEEN 0 AND 1", name="coverage_is_a_share"),
        CheckConstraint("raw_bytes >= 0 AND stored_bytes >= 0", name="sizes_are_not_negative"),
    )

    dataset_id: Mapped[str] = mapped_column(
        ForeignKey("datasets.dataset_id", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[str] = mapped_column(primary_key=True)
    revision: Mapped[str]
    spec: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    record: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    statistics: Mapped[dict[str, Any]]
    title: Mapped[str | None]
    shape_z: Mapped[int]
    shape_y: Mapped[int]
    shape_x: Mapped[int]
    voxel_size_z: Mapped[float]
    voxel_size_y: Mapped[float]
    voxel_size_x: Mapped[float]
    data_type: Mapped[str | None] = mapped_column(index=True)
    organism: Mapped[str | None] = mapped_column(index=True)
    tissue: Mapped[str | None] = mapped_column(index=True)
    modality: Mapped[str | None] = mapped_column(index=True)
    licence: Mapped[str | None] = mapped_column(index=True)
    doi: Mapped[str | None] = mapped_column(index=True)
    completeness: Mapped[float]
    coverage: Mapped[float] = mapped_column(server_default=text("1"))
    conflicts: Mapped[int]
    raw_bytes: Mapped[int] = mapped_column(BigInteger)
    stored_bytes: Mapped[int] = mapped_column(BigInteger)
    ledger_sha256: Mapped[str]
    volume_key: Mapped[str]
    ledger_key: Mapped[str]
    writer_version: Mapped[str]
    report_passed: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    published_at: Mapped[datetime | None]


class _OfVersion(Base):
    """Rows that belong to a version and go with it."""

    __abstract__ = True

    # First in the key, since every query asks for one version's rows.
    dataset_id: Mapped[str] = mapped_column(primary_key=True, sort_order=-2)
    version: Mapped[str] = mapped_column(primary_key=True, sort_order=-1)


def _belongs_to_version() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["dataset_id", "version"], ["versions.dataset_id", "versions.version"], ondelete="CASCADE"
    )


class LevelOfVersion(_OfVersion):
    """One pyramid level; lengths in nanometres, shapes in voxels."""

    __tablename__ = "levels"
    __table_args__ = (
        _belongs_to_version(),
        CheckConstraint("shape_z > 0 AND shape_y > 0 AND shape_x > 0", name="shape_is_positive"),
    )

    level: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shape_z: Mapped[int]
    shape_y: Mapped[int]
    shape_x: Mapped[int]
    chunk_z: Mapped[int]
    chunk_y: Mapped[int]
    chunk_x: Mapped[int]
    shard_z: Mapped[int]
    shard_y: Mapped[int]
    shard_x: Mapped[int]
    voxel_size_z: Mapped[float]
    voxel_size_y: Mapped[float]
    voxel_size_x: Mapped[float]
    translation_z: Mapped[float]
    translation_y: Mapped[float]
    translation_x: Mapped[float]
    chunks: Mapped[int] = mapped_column(BigInteger)
    stored_bytes: Mapped[int] = mapped_column(BigInteger)


class LabelImageOfVersion(_OfVersion):
    """One segmentation of the version: below `labels/` of the volume as `folder`, sealed by its own ledger.

    `name` is what the portal calls it; `levels` lists its pyramid like the rows of `levels`.
    """

    __tablename__ = "label_images"
    __table_args__ = (
        _belongs_to_version(),
        CheckConstraint("coverage BETWEEN 0 AND 1", name="coverage_is_a_share"),
        CheckConstraint("stored_bytes >= 0", name="size_is_not_negative"),
    )

    folder: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    data_type: Mapped[str]
    levels: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    coverage: Mapped[float]
    ledger_sha256: Mapped[str]
    volume_key: Mapped[str]
    ledger_key: Mapped[str]
    stored_bytes: Mapped[int] = mapped_column(BigInteger)


class RawFileOfVersion(_OfVersion):
    """One raw file the version was made from."""

    __tablename__ = "raw_files"
    __table_args__ = (_belongs_to_version(), Index(None, "sha256"))

    path: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    etag: Mapped[str | None]
    modified: Mapped[str | None]
    offset: Mapped[int | None] = mapped_column(BigInteger)


class BlockOfVersion(_OfVersion):
    """One level-0 chunk of the ledger; `z, y, x` is the chunk index, the rest as in the ledger."""

    __tablename__ = "blocks"
    __table_args__ = (
        _belongs_to_version(),
        Index(
            "ix_blocks_not_data", "dataset_id", "version", "state", postgresql_where=text("state <> 'data'")
        ),
        CheckConstraint("valid_fraction BETWEEN 0 AND 1", name="valid_fraction_is_a_share"),
        CheckConstraint("crc32c BETWEEN 0 AND 4294967295", name="crc32c_is_32_bits"),
    )

    z: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    y: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    x: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    nbytes: Mapped[int] = mapped_column(BigInteger)
    crc32c: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(Enum(*BLOCK_STATES, name="block_state"))
    valid_fraction: Mapped[float]
    min: Mapped[float | None]
    max: Mapped[float | None]
    mean: Mapped[float | None]
    std: Mapped[float | None]
    p01: Mapped[float | None]
    p99: Mapped[float | None]


class CheckOfVersion(_OfVersion):
    """One check of the validation report, in the report's order."""

    __tablename__ = "validation_results"
    __table_args__ = (_belongs_to_version(),)

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    passed: Mapped[bool]
    severity: Mapped[Severity]
    message: Mapped[str]
    details: Mapped[dict[str, Any]]
