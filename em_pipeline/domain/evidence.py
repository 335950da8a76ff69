"""Claims: a value for one field of a record, with the evidence it rests on."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class Origin(StrEnum):
    """Who speaks. The order of `RANK` decides whose value is kept."""

    OVERRIDE = "override"  # a person, with a reason
    FILE = "file"  # the header or voxels of a raw file
    COMPUTED = "computed"  # measured by us from the voxels
    PORTAL = "portal"  # the portal's API, page or header document
    CURATED = "curated"  # our own list, each entry naming the page it was read on


RANK = {origin: rank for rank, origin in enumerate(Origin)}


class Evidence(BaseModel):
    """Where a value was read: URL or file, field path inside it, the extractor, the raw value found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin
    where: str
    field: str
    extractor: str
    raw: Any = None
    reason: str = ""


class Claim(BaseModel):
    """`value` for the record field `field` (dotted, such as `core.voxel_size_nm.z`), and its evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    value: Any
    evidence: Evidence


class Conflict(BaseModel):
    """Two claims for one field that disagree, and which of them the record kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    kept: Claim
    rejected: Claim

    def __str__(self) -> str:
        kept, lost = self.kept.evidence, self.rejected.evidence
        return (
            f"{self.field}: kept {self.kept.value!r} ({kept.origin}, {kept.where}, {kept.field}); "
            f"rejected {self.rejected.value!r} ({lost.origin}, {lost.where}, {lost.field})"
        )
