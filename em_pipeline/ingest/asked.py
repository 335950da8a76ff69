"""From what a person names and says to the spec of one dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize
from em_pipeline.domain.identity import dataset_id
from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.domain.raw_layout import RawLayout
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.regions import AUTO, RandomCrop, part_name, portal_shape, written
from em_pipeline.ingest.specs import spec_from_id, unknown
from em_pipeline.sources.base import Source
from em_pipeline.sources.files import FilesSource, spec_for
from em_pipeline.storage.ranged import is_url

# What holds for one pyramid level only: a person's word on level 0 is wrong of level 4.
OF_ONE_LEVEL = ("core.volume_shape.", "core.voxel_size_nm.", "technical.")


@dataclass(frozen=True)
class Asked:
    """What a person says of a dataset besides its name. None and () say nothing; `box` excludes `crop`.

    `name` is that of a dataset made from a path or URL, or of a part of a portal's dataset. An empty
    `voxel_size` takes back an earlier one, so does `codec` of `auto`.
    """

    name: str | None = None
    level: int | str | None = None
    box: BoundingBox | None = None
    crop: RandomCrop | None = None
    image_set: int | str | None = None
    include: tuple[str, ...] = ()
    label_images: tuple[str, ...] = ()
    voxel_size: PartialVoxelSize | None = None
    raw_layout: RawLayout | None = None
    codec: str | None = None
    kind: Kind | None = None

    @property
    def names_a_part(self) -> bool:
        """Whether less is meant than the whole of the finest level."""
        return self.level is not None or self.box is not None or self.crop is not None


def spec_of(
    target: str, asked: Asked, known: Mapping[str, DatasetSpec], sources: Mapping[str, Source]
) -> DatasetSpec:
    """The spec of a dataset id, `<source>-<accession>`, path or URL, with what is asked of it.

    A level or box of a portal's dataset is a dataset of its own, `<id>-<name>`; without a name it is called
    after the image set, level and box (`part_name`). With a name, so is an image set. Of files, a level or
    box replaces what was ingested before. What was once said of a dataset holds until something else is said;
    a known part stays the part it is.
    Raises `NotFound` with the nearest known ids, `InputRefused` for what contradicts itself or makes a known
    part another, and whatever the source raises where a random crop needs the volume's shape.
    """
    if not target:
        raise InputRefused("Ingest ''", "it names nothing", "Give a dataset id, a path or a URL")
    spec = known.get(target.lower()) or spec_from_id(target, sources)
    if spec is not None and Path(target).exists():
        raise InputRefused(
            f"Ingest {target}", "it is both a dataset id and a path here", f"Write ./{target} for the path"
        )
    if spec is None and not is_url(target) and not Path(target).exists():
        raise unknown(target, known, sources)
    if spec is None:
        fresh = spec_for(target, name=asked.name)
        spec = known.get(fresh.dataset_id, fresh).model_copy(update={"location": fresh.location})
    elif asked.name is not None or (asked.names_a_part and spec.source != FilesSource.slug):
        part = _part(spec, asked, known)
        said = _with_crop(part.model_copy(update=_changes(asked)), asked.crop, sources)
        return _same_part(said, known.get(said.dataset_id))
    return _with_crop(spec.model_copy(update=_changes(asked)), asked.crop, sources)


def _part(whole: DatasetSpec, asked: Asked, known: Mapping[str, DatasetSpec]) -> DatasetSpec:
    """The dataset that is a part of `whole`: as it is known, or begun from what is said of the whole."""
    tried = f"Take a part of {whole.dataset_id}"
    boxed = asked.box is not None or asked.crop is not None
    if whole.source == FilesSource.slug or not (asked.names_a_part or asked.image_set is not None):
        raise InputRefused(
            f"Name {whole.dataset_id} {asked.name!r}",
            "it has a name: a path or URL is named when it is first given, a portal's dataset by the portal",
            "Leave --name out, or say with --level, --roi or --random-crop which part of a portal's it names",
        )
    named_after_whole = dataset_id(whole.source, whole.accession)
    again = (asked.level is not None and whole.level is not None) or (
        boxed and whole.bounding_box is not None
    )
    if again and whole.dataset_id != named_after_whole:
        raise InputRefused(
            tried,
            "it is itself a part, with a level or box of its own",
            f"Give the id of the whole, {named_after_whole}",
        )
    name = asked.name
    if name is None:
        name = part_name(asked.level, asked.box, asked.crop, asked.image_set)
    part_id = dataset_id(whole.source, f"{whole.dataset_id}-{name}")
    if part_id == whole.dataset_id:
        raise InputRefused(tried, f"{asked.name!r} leaves nothing for an id", "Give a --name with letters")
    if part_id in known:
        return known[part_id]
    part = whole.model_copy(update={"dataset_id": part_id})
    return part if asked.level is None else part.model_copy(update=_of_another_level(whole))


def _same_part(said: DatasetSpec, known: DatasetSpec | None) -> DatasetSpec:
    """`said`, unless a part of its id is known that is another: its versions would not be of one thing."""
    if known is None or _extent(said) == _extent(known):
        return said
    raise InputRefused(
        f"Name a part {said.dataset_id}: {_extent(said)}",
        f"that is already the id of another: {_extent(known)}",
        f"Give another --name, or remove the known one with `em rm {known.dataset_id}`",
    )


def _extent(spec: DatasetSpec) -> str:
    """What part of its entry a spec is, in words."""
    box = spec.bounding_box
    where = f"box {written(box.start)} to {written(box.stop)} (z,y,x)" if box else "no box"
    return f"level {spec.level!r}, image set {spec.image_set!r}, {where}"


def _of_another_level(whole: DatasetSpec) -> dict[str, Any]:
    """What of the whole's spec changes for a dataset of another level, where its box lies elsewhere."""
    return {
        "bounding_box": None,
        "bounding_box_reason": "",
        "voxel_size_nm": None,
        "voxel_size_reason": "",
        "overrides": {k: v for k, v in whole.overrides.items() if not k.startswith(OF_ONE_LEVEL)},
        "curated": {k: v for k, v in whole.curated.items() if not k.startswith(OF_ONE_LEVEL)},
    }


def _changes(asked: Asked) -> dict[str, Any]:
    plain = ("level", "image_set", "include", "label_images", "raw_layout", "kind")
    changes: dict[str, Any] = {
        name: said for name in plain if (said := getattr(asked, name)) not in (None, ())
    }
    if asked.voxel_size is not None:
        given = any(asked.voxel_size)
        changes["voxel_size_nm"] = asked.voxel_size if given else None
        changes["voxel_size_reason"] = "given with --voxel-size" if given else ""
    if asked.codec is not None:
        changes["codec"] = None if asked.codec == AUTO else asked.codec
    if asked.box is not None:
        changes |= {"bounding_box": asked.box, "bounding_box_reason": "given with --roi"}
    return changes


def _with_crop(spec: DatasetSpec, crop: RandomCrop | None, sources: Mapping[str, Source]) -> DatasetSpec:
    if crop is None:
        return spec
    # The shape is that of the level, whatever box an earlier word cut out of it.
    whole = spec.model_copy(update={"bounding_box": None, "bounding_box_reason": ""})
    shape = portal_shape(sources[spec.source], whole)
    return spec.model_copy(
        update={"bounding_box": crop.box_in(shape), "bounding_box_reason": crop.reason(shape)}
    )
