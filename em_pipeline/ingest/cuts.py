"""Which part of the source's volumes becomes an image: the spec's box, and the same of its label images.

Label images come on grids of their own. One whose voxels are a whole multiple or a whole fraction of the
image's is cut to every voxel that meets the image's box, and keeps its own voxel size and translation; one
of any other size is refused, since no voxel of it would belong to one of the image's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

from em_pipeline.domain.errors import InputRefused, RecordInvalid
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize, whole_ratio
from em_pipeline.domain.lazy_volume import LOST_SECTIONS, LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.domain.wording import figure
from em_pipeline.ingest.kinds import AN_IMAGE, Chosen, kind_of
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.region_size import ELSEWHERE, check_extent
from em_pipeline.storage import keys
from em_pipeline.volumes.memory import budget_of
from em_pipeline.volumes.missing import Missing

# Share of a voxel by which rounded translations may miss the grid.
SLACK = 1e-3


@dataclass(frozen=True)
class Cut:
    """`box` of `volume` (its voxels, z-y-x), and where it lies: `translation_nm` is its first voxel's centre.

    `label` is the folder of a label image, None for the image; `whole` is False where a label image ends
    within the image. `chosen` is what it is kept as.
    """

    name: str
    volume: LazyVolume
    box: BoundingBox
    voxel_size: VoxelSize
    translation_nm: tuple[float, float, float]
    label: str | None = None
    whole: bool = True
    chosen: Chosen = AN_IMAGE

    @cached_property
    def missing(self) -> Missing | None:
        """The voxels of the box that the source does not hold."""
        return Missing.of(self.volume.missing, self.box)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of the source says is unusual in it."""
        return tuple(self.volume.metadata.get("notes", ()))

    @property
    def lost_sections(self) -> str | None:
        """Why sections seem to be lost between those of the source (`lazy_volume.LOST_SECTIONS`)."""
        return self.volume.metadata.get(LOST_SECTIONS)

    def is_decodable(self, memory_budget: int) -> bool:
        """Whether decoding one strip, tile or chunk takes at most half of `memory_budget` bytes.

        The other half is for the voxels that are worked on.
        """
        return self.volume.scratch_bytes <= memory_budget // 2

    def not_decodable(self, memory_budget: int, enough: int) -> InputRefused:
        """Why the cut cannot be read within `memory_budget` bytes, where `enough` MiB would be."""
        stored = "×".join(map(str, self.volume.chunk_shape))
        return InputRefused(
            f"Read {self.name} within {memory_budget / 2**20:,.0f} MiB",
            f"it is stored in pieces of {stored} voxels (z, y, x), each decoded whole: that takes "
            f"{self.volume.scratch_bytes / 2**20:,.0f} MiB, and half the memory is for other work",
            f"{budget_of(enough << 20)}, or store it in smaller pieces (TIFF: "
            "`tiffcp -t -w 512 -l 512 OLD NEW`)",
        )

    def __str__(self) -> str:
        return "the image" if self.label is None else f"labels/{self.label}"


def box_of(spec: DatasetSpec, volume: LazyVolume) -> BoundingBox:
    """The part of the volume that the spec asks for.

    Raises `InputRefused` where it leaves the volume, and where it is too large to be written.
    """
    box = spec.bounding_box or BoundingBox.of_shape(volume.shape)
    if not box.within(volume.shape):
        raise InputRefused(
            f"Cut {tuple(box.start)}..{tuple(box.stop)} (z-y-x voxels) out of {spec.dataset_id}",
            f"the volume is {tuple(volume.shape)}",
            "Give a box inside it",
        )
    check_extent(spec.dataset_id, "the volume", box.shape)
    return box


def image_cut(spec: DatasetSpec, volume: LazyVolume, voxel_size: VoxelSize, name: str) -> Cut:
    """The spec's part of `volume`.

    Raises `InputRefused` like `box_of` and `kind_of`, and where the source holds no voxel of it.
    """
    box = box_of(spec, volume)
    z, y, x = (
        origin + start * size
        for origin, start, size in zip(volume.translation_nm, box.start, voxel_size, strict=True)
    )
    chosen = kind_of(spec, volume.dtype, volume.metadata)
    cut = Cut(name, volume, box, voxel_size, (z, y, x), chosen=chosen)
    missing = cut.missing
    if missing is not None and missing.voxels == box.shape.voxels:
        raise InputRefused(
            f"Cut {tuple(box.start)}..{tuple(box.stop)} (z-y-x voxels) out of {spec.dataset_id}",
            "the source holds no voxel of it",
            ELSEWHERE,
        )
    return cut


@contextmanager
def opened_labels(
    workspace: Workspace, spec: DatasetSpec, files: Sequence[HeldFile], image: Cut
) -> Iterator[tuple[Cut, ...]]:
    """The label images that the spec names, cut to the physical box of `image`, by folder.

    Raises `InputRefused` for one that cannot be a label image of `image`, `RecordInvalid` where the source
    gives others than the spec names, and what opening raises.
    """
    if not spec.label_images:
        yield ()
        return
    folders = keys.label_folders(spec.label_names)
    with ExitStack() as opened:
        found = workspace.source(spec.source).open_label_images(spec, files)
        for volume in found.values():
            opened.enter_context(volume)
        _check_names(spec, found)
        yield tuple(
            label_cut(image, name, folder, found[name])
            for name, folder in sorted(folders.items(), key=lambda item: item[1])
        )


def label_cut(image: Cut, name: str, folder: str, volume: LazyVolume) -> Cut:
    """Every voxel of a label image that meets the image's box.

    Raises `InputRefused` where its voxels are not integers, are of a size that does not fit the image's or
    of none that is known, and where it lies elsewhere.
    """
    tried = f"Take the label image {name!r} along"
    if volume.dtype.kind not in "iu":
        raise InputRefused(
            tried, f"its voxels are {volume.dtype.name}, not integer ids", "Ingest it as a dataset of its own"
        )
    start, stop, size, first = [], [], [], []
    whole = True
    for axis in range(3):
        ratio, offset = _relation(tried, image.volume, volume, image.voxel_size, axis)
        # Voxel i of the label image covers [offset + i·ratio, offset + (i+1)·ratio) of the image's voxels.
        begin = math.floor((image.box.start[axis] - offset) / ratio + SLACK)
        end = math.ceil((image.box.stop[axis] - offset) / ratio - SLACK)
        extent = volume.shape[axis]
        whole = whole and begin >= 0 and end <= extent
        start.append(max(begin, 0))
        stop.append(min(end, extent))
        voxel = tuple(image.voxel_size)[axis]
        centre = offset + (start[-1] + 0.5) * ratio - 0.5 - image.box.start[axis]
        size.append(ratio * voxel)
        first.append(image.translation_nm[axis] + centre * voxel)
    if any(a >= b for a, b in zip(start, stop, strict=True)):
        raise InputRefused(
            tried,
            f"none of its {tuple(volume.shape)} voxels (z, y, x) meets the box of the image",
            "Leave it out of the spec's label_images, or choose a box that it covers",
        )
    return Cut(
        name=name,
        volume=volume,
        box=BoundingBox(start=Shape(*start), stop=Shape(*stop)),
        voxel_size=VoxelSize(z=size[0], y=size[1], x=size[2]),
        translation_nm=(first[0], first[1], first[2]),
        label=folder,
        whole=whole,
        chosen=Chosen("labels", "it is a label image"),
    )


def _relation(
    tried: str, image: LazyVolume, label: LazyVolume, known: VoxelSize, axis: int
) -> tuple[float, float]:
    """A label voxel's extent, and where the first one begins, in voxels of the image along an axis.

    Sizes are compared as the files of both say them, so that a correction of the image's holds for both;
    `known` stands in where the image's files are silent.
    """
    theirs = tuple(label.voxel_size_nm)[axis]
    own = tuple(image.voxel_size_nm)[axis] or tuple(known)[axis]
    if theirs is None:
        if label.shape[axis] != image.shape[axis]:
            raise InputRefused(
                tried,
                f"nothing says its voxel size along {'zyx'[axis]}, and it has {label.shape[axis]} voxels "
                f"there, the image {image.shape[axis]}",
                "Leave it out of the spec's label_images",
            )
        return 1.0, 0.0
    ratio = whole_ratio(theirs, own)
    if ratio is None:
        raise InputRefused(
            tried,
            f"its voxels are {figure(theirs)} nm along {'zyx'[axis]}, the image's {figure(own)} nm: "
            "neither is a whole multiple of the other",
            "Choose a level of the image that fits it, or ingest it as a dataset of its own",
        )
    begins = (label.translation_nm[axis] - image.translation_nm[axis]) / own - ratio / 2 + 0.5
    nearest = round(begins)
    return ratio, float(nearest) if abs(begins - nearest) < SLACK else begins


def _check_names(spec: DatasetSpec, found: Mapping[str, LazyVolume]) -> None:
    if set(found) != set(spec.label_names):
        raise RecordInvalid(
            f"Open the label images of {spec.dataset_id}",
            f"the source {spec.source} gives {sorted(found)}, the spec names {sorted(spec.label_names)}",
            "Name those that the portal has with --label (`label_images` in the spec)",
        )
