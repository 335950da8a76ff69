"""Images stored as many objects, as raw files: what every source of zarr and N5 arrays shares.

The raw folder of such a dataset mirrors the parts of the containers that are held: below `image/` the keys
of the image's container, below `labels/<name>/` those of a label image's. Of each, the document of the array
itself comes first, so the files alone say which level was taken.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid
from em_pipeline.domain.evidence import Claim, Origin
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.geometry import BoundingBox, Shape, whole_ratio
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.domain.wording import figure
from em_pipeline.formats.arrays import SPATIAL, ArrayLayout, Fetch, choose_level
from em_pipeline.formats.mirror import folder_fetch, open_layout
from em_pipeline.formats.multiscale import read_multiscale
from em_pipeline.sources.array_source_container import Container, FolderContainer, Stored, as_nested
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.region_size import ELSEWHERE, SizeLimit, check_bytes, check_extent

IMAGE = "image"
# Share of a voxel by which rounded translations may miss the grid.
SLACK = 1e-3


@dataclass(frozen=True)
class HeldImage:
    """One level of an image in a container, the `box` of it that is wanted (z-y-x voxels of that level), and
    the folder `place` of the raw files that holds it."""

    container: Container
    layout: ArrayLayout
    box: BoundingBox
    place: str

    @property
    def url(self) -> str:
        return self.container.url(self.layout.path)

    @property
    def path(self) -> str:
        """Path in the container of the image that the level belongs to."""
        return self.layout.path.removesuffix(self.layout.name).rstrip("/")


@dataclass(frozen=True)
class Survey:
    """The files of some images, and the revision that they are at."""

    revision: str
    files: list[RemoteFile] = field(repr=False)


def image_at(
    container: Container, path: str, spec: DatasetSpec, at: Mapping[str, int] | None = None
) -> HeldImage:
    """The image at `path` of a container, at the spec's level, and the spec's box of that.

    `at` picks an index along axes other than z, y, x that are longer than 1.
    Raises `NotFound` where there is no such image or level, `InputRefused` for a box that leaves it,
    `UnsupportedFormat`, and like `Container.fetch`.
    """
    return image_of(container, read_multiscale(container.fetch, path, at=at), spec)


def image_of(container: Container, levels: Sequence[ArrayLayout], spec: DatasetSpec) -> HeldImage:
    """The same of an image whose levels were read."""
    layout = choose_level(levels, spec.level)
    box = spec.bounding_box or BoundingBox.of_shape(layout.shape)
    if not box.within(layout.shape):
        raise InputRefused(
            f"Take the box {tuple(box.start)}..{tuple(box.stop)} (z-y-x) of {spec.dataset_id}",
            f"level {layout.name or layout.level} has {tuple(layout.shape)} voxels",
            "Clip the box to the level, or name a finer level",
        )
    return HeldImage(container, _keyed(container, layout, box), box, IMAGE)


def label_image_at(container: Container, path: str, name: str, image: HeldImage) -> HeldImage:
    """The label image at `path`, at the level whose voxels are as large as the image's.

    Without such a level, it is the one whose voxels are the least whole multiple or fraction of them. Where
    the image is wanted in part, so is the label image: the voxels that meet its box. Raises `InputRefused`
    where no level fits or none of it lies in the box, and like `image_at`.
    """
    levels = read_multiscale(container.fetch, path)
    fitting = {n: ratios for n, level in enumerate(levels) if (ratios := _ratios(level, image.layout))}
    if not fitting:
        there = "; ".join(f"{level.name}: {_voxels_of(level)}" for level in levels)
        raise InputRefused(
            f"Take the label image {name!r} along",
            f"the image's level {image.layout.name} has {_voxels_of(image.layout)}, the labels have {there}",
            "Choose the level of the image that has the voxels of the labels",
        )
    nearest = min(fitting, key=lambda n: sum(abs(math.log(ratio)) for ratio in fitting[n]))
    layout = levels[nearest]
    box = BoundingBox.of_shape(layout.shape)
    if image.box != BoundingBox.of_shape(image.layout.shape):
        box = _same_place(name, layout, image, fitting[nearest])
    return HeldImage(container, _keyed(container, layout, box), box, f"labels/{name}")


def survey(images: Sequence[HeldImage], limit: SizeLimit) -> Survey:
    """Every file of the images: metadata documents, and the objects that there are or may be.

    The revision is of the documents' content and the objects' sizes and validators, where they are known.
    Raises `InputRefused` before anything is listed where a remote box exceeds the limit once
    decoded, or any box more chunks than can be taken, and `NotFound` where it is certain that there is not
    one object of an image (of label images, there may be none).
    """
    for image in images:
        level = f"level {image.layout.name or image.layout.level}"
        if not isinstance(image.container, FolderContainer):
            size = image.box.shape.voxels * image.layout.dtype.itemsize
            check_bytes(image.url, level, size, limit)
        check_extent(image.url, level, image.box.shape, image.layout.object_shape)
    files: list[RemoteFile] = []
    marks: list[str] = []
    for image in images:
        for key, content in _documents(image.layout):
            files.append(_remote(image, image.container.document(key, content), certain=True))
            marks.append(f"{image.place}/{key}\t{hashlib.sha256(content).hexdigest()}")
        described = len(files)
        for stored in image.container.stored(image.layout, image.box):
            files.append(_remote(image, stored, certain=image.container.certain))
            if image.container.certain:
                marks.append(f"{image.place}/{stored.key}\t{stored.size}\t{stored.etag or stored.modified}")
        if len(files) == described and image.place == IMAGE:
            start, stop = tuple(image.box.start), tuple(image.box.stop)
            raise NotFound(
                f"Find the chunks of {start}..{stop} (z-y-x) of {image.url}",
                "not one is there",
                ELSEWHERE,
            )
    return Survey(short_hash(*marks), files)


def files_at(
    revision: str, images: Sequence[HeldImage], dataset_id: str, limit: SizeLimit
) -> list[RemoteFile]:
    """The files of the images. Raises `RecordInvalid` where they are no longer at `revision`."""
    now = survey(images, limit)
    if now.revision != revision:
        raise RecordInvalid(
            f"List the files of {dataset_id} at revision {revision}",
            f"{images[0].url} has changed since; it is now at revision {now.revision}",
            "Ingest it again, so that a record is made of what it is now",
        )
    return now.files


def layout_claims(image: HeldImage) -> list[Claim]:
    """What the image's documents say, as the portal's word: each document by its address."""
    url = image.container.url
    return [claim.told_by(Origin.PORTAL, url(claim.evidence.where)) for claim in image.layout.claims]


def open_image(files: Sequence[HeldFile], at: Mapping[str, int] | None = None) -> LazyVolume:
    """The whole level of the image that `files` are of. Raises `UnsupportedFormat` and `NotFound`."""
    return _open(files, IMAGE, at)


def open_label_images(names: Iterable[str], files: Sequence[HeldFile]) -> dict[str, LazyVolume]:
    """The label images of those names. Raises like `open_image`."""
    return {name: _open(files, f"labels/{name}", None) for name in names}


def _open(files: Sequence[HeldFile], place: str, at: Mapping[str, int] | None) -> LazyVolume:
    first = next((held for held in files if held.file.path.startswith(f"{place}/")), None)
    if first is None:
        raise NotFound(
            f"Open {place}", f"none of the {len(files)} raw files lies there", "Ingest the dataset again"
        )
    key = PurePosixPath(first.file.path).relative_to(place)
    root = first.path.parents[len(key.parts) - 1]
    return open_layout(root, _layout_of(folder_fetch(root), key.parent, at))


def _layout_of(fetch: Fetch, array: PurePosixPath, at: Mapping[str, int] | None) -> ArrayLayout:
    """The array as a level of the image above it, however far above; else as an image of its own."""
    path = "" if array == PurePosixPath() else str(array)
    for above in array.parents:
        try:
            levels = read_multiscale(fetch, "" if above == PurePosixPath() else str(above), at=at)
        except NotFound:
            continue
        for layout in levels:
            if layout.path == path:
                return layout
    return read_multiscale(fetch, path, at=at)[0]


def _keyed(container: Container, layout: ArrayLayout, box: BoundingBox) -> ArrayLayout:
    """The layout with the keys that the container has, where its documents leave them open."""
    if layout.array.separator_said or not container.nested(layout, box):
        return layout
    return as_nested(layout)


def _documents(layout: ArrayLayout) -> Iterator[tuple[str, bytes]]:
    """Keys and contents of the documents, that of the array itself first."""
    yield layout.array.document, layout.documents[layout.array.document]
    for key in sorted(layout.documents):
        if key != layout.array.document:
            yield key, layout.documents[key]


def _remote(image: HeldImage, stored: Stored, *, certain: bool) -> RemoteFile:
    return RemoteFile(
        url=image.container.url(stored.key),
        path=f"{image.place}/{stored.key}",
        size=stored.size,
        etag=stored.etag,
        modified=stored.modified,
        may_be_absent=not certain,
    )


def _ratios(labels: ArrayLayout, image: ArrayLayout) -> tuple[float, ...] | None:
    """Extent of a label voxel in voxels of the image, z-y-x; None where one is no whole multiple or fraction.

    Where a size is unknown, levels of one shape are taken for one grid.
    """
    pairs = zip(labels.voxel_size_nm, image.voxel_size_nm, strict=True)
    known = [whole_ratio(theirs, own) for theirs, own in pairs if theirs is not None and own is not None]
    if len(known) < len(SPATIAL):
        return (1.0, 1.0, 1.0) if labels.shape == image.shape else None
    ratios = tuple(ratio for ratio in known if ratio is not None)
    return ratios if len(ratios) == len(SPATIAL) else None


def _same_place(name: str, labels: ArrayLayout, image: HeldImage, ratios: tuple[float, ...]) -> BoundingBox:
    """Every voxel of the labels that meets the image's box; they may cover another part of the same space."""
    spans = []
    for axis, ratio in enumerate(ratios):
        own = tuple(image.layout.voxel_size_nm)[axis]
        apart = labels.translation_nm[axis] - image.layout.translation_nm[axis]
        # Translations are of the first voxel's centre; voxel i of the labels begins at begins + i·ratio.
        begins = (apart / own if own else 0.0) - ratio / 2 + 0.5
        first = math.floor((image.box.start[axis] - begins) / ratio + SLACK)
        stop = math.ceil((image.box.stop[axis] - begins) / ratio - SLACK)
        spans.append((max(0, first), min(labels.shape[axis], stop)))
    if any(stop <= start for start, stop in spans):
        raise InputRefused(
            f"Take the label image {name!r} along",
            "no voxel of it lies in the box that is to be ingested",
            "Leave it out, or choose another box",
        )
    return BoundingBox(start=Shape(*(a for a, _ in spans)), stop=Shape(*(b for _, b in spans)))


def _voxels_of(layout: ArrayLayout) -> str:
    sizes = "×".join("?" if size is None else figure(size) for size in layout.voxel_size_nm)
    return f"{'×'.join(map(str, layout.shape))} voxels of {sizes} nm"
