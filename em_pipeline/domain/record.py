"""The normalised record of a dataset: plain typed values, each resting on a claim with evidence."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from em_pipeline.domain.errors import RecordInvalid
from em_pipeline.domain.evidence import RANK, Claim, Conflict
from em_pipeline.domain.geometry import RELATIVE_TOLERANCE
from em_pipeline.domain.modality import modality


class Status(StrEnum):
    """Where the newest ingest of a dataset stands."""

    PENDING = "pending"  # its damaged volume was discarded, and waits to be written again
    PROCESSING = "processing"
    SAVING_DATA = "saving-data"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShapeFields(_Section):
    """Voxels along z, y, x."""

    z: int | None = None
    y: int | None = None
    x: int | None = None


class LengthFields(_Section):
    """Nanometres along z, y, x."""

    z: float | None = None
    y: float | None = None
    x: float | None = None


class StatisticsFields(_Section):
    """Of all voxels of level 0, in stored values."""

    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    p01: float | None = None
    p99: float | None = None


class Core(_Section):
    """What the volume is.

    `offset` is where it begins in the source's level, in voxels. `axes` are those of the source, slowest
    first; `unit` is that of its voxel size, as written there. `modality` is a name of the vocabulary in
    `domain.modality`, or what was found where that knows no name for it.
    """

    title: str | None = None
    description: str | None = None
    volume_shape: ShapeFields = ShapeFields()
    offset: ShapeFields = ShapeFields()
    voxel_size_nm: LengthFields = LengthFields()
    unit: str | None = None
    axes: str | None = None
    channels: int | None = None
    data_type: str | None = None
    modality: str | None = None
    imaging_start_date: date | None = None


class Technical(_Section):
    """How the raw bytes are laid out. `sha256` is the manifest's digest over all raw files."""

    file_format: str | None = None
    file_count: int | None = None
    file_size_bytes: int | None = None
    sha256: str | None = None
    compression: str | None = None
    chunk_size: ShapeFields = ShapeFields()
    statistics: StatisticsFields = StatisticsFields()


class Acquisition(_Section):
    """How the microscope was set."""

    microscope: str | None = None
    accelerating_voltage_kv: float | None = None
    beam_current_pa: float | None = None
    dwell_time_us: float | None = None
    scan_rate_mhz: float | None = None
    magnification: float | None = None
    bias_v: float | None = None
    duration_days: float | None = None


class Sample(_Section):
    """What was imaged."""

    organism: str | None = None
    tissue: str | None = None
    cell_type: str | None = None


class Provenance(_Section):
    """Where the bytes came from and what made the volume."""

    download_url: str | None = None
    internal_path: str | None = None
    pipeline: str | None = None
    pipeline_version: str | None = None


class Rights(_Section):
    """`licence` is an SPDX identifier where one exists."""

    licence: str | None = None
    doi: str | None = None
    citation: str | None = None


class Fields(_Section):
    """All normalised values of a dataset."""

    core: Core = Core()
    technical: Technical = Technical()
    acquisition: Acquisition = Acquisition()
    sample: Sample = Sample()
    provenance: Provenance = Provenance()
    rights: Rights = Rights()


class DatasetRecord(_Section):
    """Resolved fields of a dataset, the claims behind them and the conflicts between those.

    `claims` holds every claim made, kept or not. Build with `resolve`.
    """

    dataset_id: str
    revision: str
    fields: Fields
    claims: tuple[Claim, ...]
    conflicts: tuple[Conflict, ...]

    @classmethod
    def resolve(cls, dataset_id: str, revision: str, claims: Iterable[Claim]) -> Self:
        """Keep, for each field, the claim of the highest rank (the earliest among equals).

        A modality is claimed by its name in `domain.modality`; what was found stays in the evidence.
        Raises `RecordInvalid` for a claim on a field that does not exist or of the wrong type.
        """
        made = tuple(_in_one_vocabulary(claim) for claim in claims)
        by_field: dict[str, list[Claim]] = {}
        for claim in made:
            if claim.value is not None:
                by_field.setdefault(claim.field, []).append(claim)
        kept: dict[str, Claim] = {}
        conflicts: list[Conflict] = []
        for field, rivals in by_field.items():
            winner, *others = sorted(rivals, key=lambda claim: RANK[claim.evidence.origin])
            kept[field] = winner
            for other in others:
                conflict = Conflict(field=field, kept=winner, rejected=other)
                if not agree(winner.value, other.value) and conflict not in conflicts:
                    conflicts.append(conflict)
        return cls(
            dataset_id=dataset_id,
            revision=revision,
            fields=_fields(dataset_id, kept),
            claims=made,
            conflicts=tuple(conflicts),
        )

    def kept(self, field: str) -> Claim | None:
        """The claim that the value of `field` rests on."""
        rivals = [c for c in self.claims if c.field == field and c.value is not None]
        return min(rivals, key=lambda claim: RANK[claim.evidence.origin], default=None)

    def values(self) -> dict[str, Any]:
        """Dotted field name → value, of every field that has one."""
        return {name: value for name, value in leaves(self.fields) if value is not None}

    @property
    def completeness(self) -> float:
        """Share of the record's fields that have a value, 0–1."""
        values = [value for _, value in leaves(self.fields)]
        return sum(value is not None for value in values) / len(values)


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf field, in declaration order."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def agree(a: object, b: object) -> bool:
    """Whether two claimed values say the same: numbers within rounding, text but for case and spaces."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        exact = isinstance(a, int) and isinstance(b, int)
        return a == b if exact else math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE)
    if isinstance(a, str) and isinstance(b, str):
        return " ".join(a.split()).casefold() == " ".join(b.split()).casefold()
    return str(a) == str(b)


FIELD_NAMES = frozenset(name for name, _ in leaves(Fields()))


def _in_one_vocabulary(claim: Claim) -> Claim:
    if claim.field != "core.modality" or not isinstance(claim.value, str):
        return claim
    name = modality(claim.value)
    if name == claim.value:
        return claim
    raw = claim.value if claim.evidence.raw is None else claim.evidence.raw
    return replace(claim, value=name, evidence=replace(claim.evidence, raw=raw))


def _fields(dataset_id: str, kept: dict[str, Claim]) -> Fields:
    tree: dict[str, Any] = {}
    for field, claim in kept.items():
        if field not in FIELD_NAMES:
            raise RecordInvalid(
                f"Build the record of {dataset_id}",
                f"{claim.evidence.extractor} claims the field {field!r}, which records do not have",
                "See em_pipeline/domain/record.py for the fields",
            )
        *path, leaf = field.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = claim.value
    try:
        return Fields.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RecordInvalid(
            f"Build the record of {dataset_id}",
            f"{field} = {first['input']!r} ({first['msg']}), read by {kept[field].evidence.extractor} "
            f"from {kept[field].evidence.where}"
            if field in kept
            else str(error),
            "Correct it with an override in the dataset's spec",
        ) from error
