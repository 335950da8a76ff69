"""What to ingest: one spec is one dataset, and one Dagster partition."""

from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize
from em_pipeline.domain.identity import check_dataset_id, dataset_id
from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.domain.raw_layout import RawLayout
from em_pipeline.domain.record import FIELD_NAMES

UNCOMPRESSED: Final = "none"
CODECS: Final = (UNCOMPRESSED, "zstd-1", "zstd-3", "blosc-lz4", "blosc-zstd")
"""Names of the codecs that chunks may be written with (`volumes.codec.RECIPES`)."""


class Override(BaseModel):
    """A person's value for a record field, which beats every other, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Any
    reason: str = Field(min_length=3)


class Curated(BaseModel):
    """A value for a record field that no API gives, the page it was read on and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Any
    page: str
    read_on: str
    quote: str = ""


class DatasetSpec(BaseModel):
    """Source, accession and what part of it to ingest, how.

    `location` is a path or URL (sources `files`, `omezarr`, `precomputed`). `level` is one of the portal's
    pyramid levels, by number or name; None is the finest. `bounding_box` is in voxels of that level, z-y-x,
    counted from its first voxel, for `bounding_box_reason`. `label_images` names the segmentations to take
    along, as the portal calls them.
    `include` are globs over file names, matched at the image set's top level. `image_set` picks one of
    several the portal offers, or one image of a container by its path inside. `voxel_size_nm` fills in or
    overrides what the files say. `raw_layout` describes a file without a header. `kind` says whether the
    voxels are grey values (`image`) or ids (`labels`), whatever the source says of that. `codec` is the name
    of the codec of the image's chunks, without one that which suits its type; `none` is that of label images
    too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    accession: str
    dataset_id: str = ""
    location: str | None = None
    image_set: int | str | None = None
    level: int | str | None = None
    bounding_box: BoundingBox | None = None
    bounding_box_reason: str = ""
    include: tuple[str, ...] = ()
    label_images: tuple[str, ...] = ()
    voxel_size_nm: PartialVoxelSize | None = None
    voxel_size_reason: str = ""
    raw_layout: RawLayout | None = None
    kind: Kind | None = None
    codec: str | None = None
    overrides: dict[str, Override] = {}
    curated: dict[str, Curated] = {}

    @model_validator(mode="before")
    @classmethod
    def _id_from_accession(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("dataset_id") and "source" in data and "accession" in data:
            data = {**data, "dataset_id": dataset_id(str(data["source"]), str(data["accession"]))}
        return data

    @model_validator(mode="after")
    def _id_of_its_source(self) -> Self:
        check_dataset_id(self.dataset_id)
        if not self.dataset_id.startswith(f"{self.source}-"):
            raise ValueError(f"dataset id {self.dataset_id!r} does not begin with its source {self.source!r}")
        return self

    @field_validator("codec")
    @classmethod
    def _known_codec(cls, name: str | None) -> str | None:
        if name is not None and name not in CODECS:
            raise ValueError(f"{name!r} is not a codec: {', '.join(CODECS)}")
        return name

    @field_validator("overrides", "curated")
    @classmethod
    def _known_fields(cls, entries: dict[str, Any]) -> dict[str, Any]:
        for name in entries:
            if name not in FIELD_NAMES:
                raise ValueError(f"{name!r} is not a field of a record")
        return entries

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the label images, without the address that an entry `NAME=ADDRESS` gives."""
        return tuple(entry.partition("=")[0] for entry in self.label_images)

    @property
    def without_codec(self) -> Self:
        """The same, with the codec that suits the voxels."""
        return self.model_copy(update={"codec": None})

    def canonical_json(self) -> str:
        """The same text for the same spec: what versions are hashed from."""
        return self.model_dump_json(exclude_defaults=True)
