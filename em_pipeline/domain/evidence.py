"""Claims: a value for one field of a record, with the evidence it rests on.

Dataclasses of the standard library, for whoever reads files without records (see `domain.geometry`).
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar


class Origin(StrEnum):
    """Who speaks. The order of `RANK` decides whose value is kept."""

    OVERRIDE = "override"  # a person, with a reason
    FILE = "file"  # the header or voxels of a raw file
    COMPUTED = "computed"  # measured by us from the voxels
    PORTAL = "portal"  # the portal's API, page or header document
    CURATED = "curated"  # our own list, each entry naming the page it was read on


RANK = {origin: rank for rank, origin in enumerate(Origin)}


def _config(docstring: str | None) -> dict[str, Any]:
    """What pydantic makes of a class in a model: no other keys, and described by its first paragraph."""
    description, _, _ = (docstring or "").partition("\n\n")
    return {"extra": "forbid", "json_schema_extra": {"description": description}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Where a value was read: URL or file, field path inside it, the extractor, the raw value found.

    Raises `ValueError` for an origin that is none, and where anything but `raw` is no text.
    """

    __pydantic_config__: ClassVar = _config(__doc__)

    origin: Origin
    where: str
    field: str
    extractor: str
    raw: Any = None
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", Origin(self.origin))
        if not all(isinstance(said, str) for said in (self.where, self.field, self.extractor, self.reason)):
            raise ValueError(f"{self} says something that is no text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`value` for the record field `field` (dotted, such as `core.voxel_size_nm.z`), and its evidence.

    Raises `ValueError` where `field` is no text.
    """

    __pydantic_config__: ClassVar = _config(__doc__)

    field: str
    value: Any
    evidence: Evidence

    def __post_init__(self) -> None:
        if not isinstance(self.field, str):
            raise ValueError(f"a claim for {self.field!r}, which is no name")  # noqa: TRY004

    def told_by(self, origin: Origin, where: str) -> "Claim":
        """The same, as `origin` says it at `where`."""
        return replace(self, evidence=replace(self.evidence, origin=origin, where=where))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Two claims for one field that disagree, and which of them the record kept."""

    __pydantic_config__: ClassVar = _config(__doc__)

    field: str
    kept: Claim
    rejected: Claim

    def __str__(self) -> str:
        kept, lost = self.kept.evidence, self.rejected.evidence
        return (
            f"{self.field}: kept {self.kept.value!r} ({kept.origin}, {kept.where}, {kept.field}); "
            f"rejected {self.rejected.value!r} ({lost.origin}, {lost.where}, {lost.field})"
        )
