"""What goes into the catalogue and what comes out of it. Plain frozen values, never database objects.

Axis order is z, y, x; lengths are nanometres, indices are voxels or chunks, sizes are bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self

from em_pipeline.domain.errors import NotFound
from em_pipeline.domain.evidence import Conflict
from em_pipeline.domain.files import Manifest, RawFile
from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.domain.record import DatasetRecord, Status
from em_pipeline.domain.report import CheckResult, ValidationReport
from em_pipeline.domain.spec import DatasetSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from em_pipeline.volumes.metadata import LevelInfo

SpecOrigin = Literal["curated", "run-time"]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class LevelRow:
    """One pyramid level as stored; `level` 0 is full size. `translation_nm` is its first voxel's centre."""

    level: int
    shape: Triple
    chunk_shape: Triple
    shard_shape: Triple
    voxel_size_nm: tuple[float, float, float]
    translation_nm: tuple[float, float, float]

    @classmethod
    def of(cls, level: "LevelInfo") -> Self:
        """The row of a stored level."""
        return cls(
            level=level.index,
            shape=level.shape,
            chunk_shape=level.chunk_shape,
            shard_shape=level.shard_shape,
            voxel_size_nm=(level.voxel_size.z, level.voxel_size.y, level.voxel_size.x),
            translation_nm=level.translation_nm,
        )


@dataclass(frozen=True)
class LabelImage:
    """One segmentation of a version, with a ledger of its own.

    `folder` is its name below `labels/` of the volume, `name` what the portal calls it. `coverage` is the
    share of its voxels that the source holds. `volume_key` and `ledger_key` are keys of the store.
    """

    folder: str
    name: str
    data_type: str
    levels: tuple[LevelRow, ...]
    coverage: float
    ledger_sha256: str
    volume_key: str
    ledger_key: str
    stored_bytes: int


@dataclass(frozen=True)
class VersionToPublish:
    """Everything known of one finished version; `Catalog.publish` makes it visible.

    `ledger` has the ledger's columns for all levels, one row per chunk. `statistics` are those of
    level 0, JSON-ready. `volume_key` and `ledger_key` are keys of the store (`storage.keys`).
    `coverage` is the share of the voxels that the source holds. `stored_bytes` counts `labels` too.
    """

    dataset_id: str
    version: str
    revision: str
    spec: DatasetSpec
    record: DatasetRecord
    manifest: Manifest
    report: ValidationReport
    levels: Sequence[LevelRow]
    ledger: "pa.Table"
    statistics: Mapping[str, Any]
    ledger_sha256: str
    volume_key: str
    ledger_key: str
    stored_bytes: int
    writer_version: str
    coverage: float = 1.0
    labels: Sequence[LabelImage] = ()


@dataclass(frozen=True)
class PublishOutcome:
    """What `publish` did. `changed` is False where this version was already the published one.

    `previous` is the version that was published before, None where there was none.
    `blocks` counts the level-0 ledger rows of the version. `written_again` is True where the version was the
    published one, but its volume had been deleted and is now in its place again.
    """

    dataset_id: str
    version: str
    changed: bool
    previous: str | None
    blocks: int
    message: str
    written_again: bool = False


@dataclass(frozen=True)
class DatasetSummary:
    """One line of a listing. What depends on a published version is None where there is none.

    `completeness` is the share of the record's fields that have a value, `coverage` the share of the
    voxels that the source holds. `status`, `progress` (0–1) and `message` tell of the newest ingest, which
    may be of a later version.
    """

    dataset_id: str
    source: str
    status: Status
    progress: float
    message: str
    revision: str | None
    created_at: datetime
    updated_at: datetime
    version: str | None = None
    published_at: datetime | None = None
    title: str | None = None
    shape: Shape | None = None
    voxel_size_nm: VoxelSize | None = None
    data_type: str | None = None
    organism: str | None = None
    tissue: str | None = None
    modality: str | None = None
    licence: str | None = None
    doi: str | None = None
    completeness: float | None = None
    coverage: float | None = None
    conflicts: int = 0
    raw_bytes: int | None = None
    stored_bytes: int | None = None


@dataclass(frozen=True)
class VersionSummary:
    """One published version of a dataset, current or superseded."""

    version: str
    revision: str
    writer_version: str
    ledger_sha256: str
    volume_key: str
    raw_bytes: int
    stored_bytes: int
    published_at: datetime
    current: bool


@dataclass(frozen=True)
class PublishedVersion:
    """What serving a volume needs: where it and its ledger lie, their seal, the levels, the label images."""

    dataset_id: str
    version: str
    revision: str
    volume_key: str
    ledger_key: str
    ledger_sha256: str
    levels: tuple[LevelRow, ...]
    statistics: dict[str, Any]
    published_at: datetime
    coverage: float = 1.0
    labels: tuple[LabelImage, ...] = ()

    def label(self, name: str) -> Self:
        """The label image of that name or folder, to be served in place of the image.

        It has no `statistics`: there is no contrast between ids. Raises `NotFound` naming those there are.
        """
        for label in self.labels:
            if name in (label.name, label.folder):
                return replace(
                    self,
                    volume_key=label.volume_key,
                    ledger_key=label.ledger_key,
                    ledger_sha256=label.ledger_sha256,
                    levels=label.levels,
                    coverage=label.coverage,
                    statistics={},
                    labels=(),
                )
        known = ", ".join(label.name for label in self.labels)
        raise NotFound(
            f"Find the label image {name!r} of {self.dataset_id}",
            f"it has {known or 'none'}",
            "" if known else "A spec's label_images say which to take along",
        )


@dataclass(frozen=True)
class DatasetDetail:
    """All that is known of a dataset. Without a published version `record`, `spec` and `published` are
    None and the sequences are empty. `versions` are newest first."""

    summary: DatasetSummary
    spec: DatasetSpec | None
    record: DatasetRecord | None
    conflicts: tuple[Conflict, ...]
    published: PublishedVersion | None
    raw_files: tuple[RawFile, ...]
    checks: tuple[CheckResult, ...]
    versions: tuple[VersionSummary, ...]
