"""The JSON the sidecar answers with. Its own models: the wire stays as it is when the catalogue changes."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from em_pipeline.catalog.entries import (
    DatasetDetail,
    DatasetSummary,
    LabelImage,
    LevelRow,
    PublishedVersion,
)
from em_pipeline.domain.evidence import Claim, Conflict, Evidence
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.report import CheckResult

Ints = tuple[int, int, int]
Floats = tuple[float, float, float]


class DatasetEntry(BaseModel):
    """One published dataset. `shape` (voxels, z-y-x), `dtype` and `voxel_size_nm` are those of level 0."""

    dataset_id: str = Field(examples=["empiar-11759"])
    source: str = Field(examples=["empiar"])
    version: str
    title: str | None
    shape: Ints = Field(examples=[(500, 2048, 2048)])
    dtype: str = Field(examples=["uint8"])
    voxel_size_nm: Floats = Field(examples=[(8.0, 8.0, 8.0)])
    organism: str | None
    tissue: str | None
    modality: str | None
    licence: str | None = Field(description="SPDX identifier where one exists", examples=["CC0-1.0"])
    doi: str | None
    published_at: datetime

    @classmethod
    def of(cls, summary: DatasetSummary) -> Self:
        """The line of a dataset that has a published version: all of these are then known."""
        return cls.model_validate(
            {
                "dataset_id": summary.dataset_id,
                "source": summary.source,
                "version": summary.version,
                "title": summary.title,
                "shape": summary.shape,
                "dtype": summary.data_type,
                "voxel_size_nm": summary.voxel_size_nm and tuple(summary.voxel_size_nm),
                "organism": summary.organism,
                "tissue": summary.tissue,
                "modality": summary.modality,
                "licence": summary.licence,
                "doi": summary.doi,
                "published_at": summary.published_at,
            }
        )


class DatasetPage(BaseModel):
    """Part of the listing; `next` is the `after` of the following page, null on the last."""

    datasets: list[DatasetEntry]
    next: str | None


class LevelAnswer(BaseModel):
    """One step of the pyramid, 0 = full. `translation_nm` is the centre of its first voxel."""

    level: int
    shape: Ints
    chunk_shape: Ints
    dtype: str
    voxel_size_nm: Floats
    translation_nm: Floats

    @classmethod
    def of(cls, row: LevelRow, dtype: str) -> Self:
        return cls(
            level=row.level,
            shape=row.shape,
            chunk_shape=row.chunk_shape,
            dtype=dtype,
            voxel_size_nm=row.voxel_size_nm,
            translation_nm=row.translation_nm,
        )


class FieldAnswer(BaseModel):
    """A value of the record and the evidence it rests on."""

    value: Any
    evidence: Evidence | None


class ConflictAnswer(BaseModel):
    """Two claims that disagree, and which was kept. `summary` says it in a sentence."""

    field: str
    summary: str
    kept: Claim
    rejected: Claim

    @classmethod
    def of(cls, conflict: Conflict) -> Self:
        return cls(
            field=conflict.field, summary=str(conflict), kept=conflict.kept, rejected=conflict.rejected
        )


class LabelAnswer(BaseModel):
    """One label image: `label=` of a block asks for it, by `name` or `folder`."""

    name: str = Field(description="As the portal calls it", examples=["cell_seg"])
    folder: str = Field(description="Below labels/ of the OME-Zarr")
    dtype: str
    coverage: float
    ledger_sha256: str
    levels: list[LevelAnswer]

    @classmethod
    def of(cls, label: LabelImage) -> Self:
        return cls(
            name=label.name,
            folder=label.folder,
            dtype=label.data_type,
            coverage=label.coverage,
            ledger_sha256=label.ledger_sha256,
            levels=[LevelAnswer.of(row, label.data_type) for row in label.levels],
        )


class MetadataAnswer(BaseModel):
    """All about the published version of a dataset."""

    dataset_id: str
    source: str
    version: str
    revision: str = Field(description="The portal's marker of the data this version was made from")
    ledger_sha256: str = Field(description="Seal of the ledger, which seals every stored chunk")
    published_at: datetime
    shape: Ints
    dtype: str
    voxel_size_nm: Floats
    completeness: float = Field(description="Share of the record's fields that have a value, 0–1")
    coverage: float = Field(description="Share of the voxels that the source holds, 0–1")
    levels: list[LevelAnswer]
    labels: list[LabelAnswer]
    statistics: dict[str, Any] = Field(description="Of all voxels of level 0, in stored values")
    fields: dict[str, FieldAnswer] = Field(description="Dotted field name → value and evidence")
    conflicts: list[ConflictAnswer]
    checks: list[CheckResult] = Field(description="The validation report this version passed")

    @classmethod
    def of(cls, detail: DatasetDetail, published: PublishedVersion, record: DatasetRecord) -> Self:
        full = LevelAnswer.of(published.levels[0], detail.summary.data_type or "")
        return cls(
            dataset_id=published.dataset_id,
            source=detail.summary.source,
            version=published.version,
            revision=published.revision,
            ledger_sha256=published.ledger_sha256,
            published_at=published.published_at,
            shape=full.shape,
            dtype=full.dtype,
            voxel_size_nm=full.voxel_size_nm,
            completeness=record.completeness,
            coverage=published.coverage,
            levels=[LevelAnswer.of(row, full.dtype) for row in published.levels],
            labels=[LabelAnswer.of(label) for label in published.labels],
            statistics=published.statistics,
            fields={name: _field(record, name, value) for name, value in record.values().items()},
            conflicts=[ConflictAnswer.of(conflict) for conflict in detail.conflicts],
            checks=list(detail.checks),
        )


def _field(record: DatasetRecord, name: str, value: Any) -> FieldAnswer:
    claim = record.kept(name)
    return FieldAnswer(value=value, evidence=claim.evidence if claim else None)
