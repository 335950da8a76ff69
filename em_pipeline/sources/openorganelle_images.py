"""Which images a dataset of OpenOrganelle has, by the conventions of its bucket.

https://github.com/janelia-cellmap/cellmap-schemas/blob/main/docs/cellmap-conventions/s3-overview.md:
`<dataset>/<dataset>.zarr/recon-<n>/em/<modality>-<data type>`, and in older datasets
`<dataset>/<dataset>.n5/em/…`; label images below `labels/` beside `em/`. Reconstructions are different
alignments of one specimen; which of them hold EM differs from dataset to dataset.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.array_source_container import Container

RECONSTRUCTION = re.compile(r"^recon-(\d+)/$")
STANDARD_NAME = re.compile(r"^(?P<modality>[a-z]+)-(?P<data_type>u?int(?:8|16))$")
# Of one micrograph in several data types, those of 8 bits are rescaled copies.
DATA_TYPES = ("int16", "uint16", "int8", "uint8")
# Where label images lie below a reconstruction, most deliberate first; older datasets have them in `labels/`.
LABELS = ("labels/groundtruth", "labels/inference/segmentations", "labels")


@dataclass(frozen=True)
class EmImage:
    """An EM image: its path in the bucket, such as
    `jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2/em/fibsem-int16`."""

    path: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def root(self) -> str:
        """The reconstruction, or the container where there are none."""
        return str(PurePosixPath(self.path).parents[1])

    @property
    def modality(self) -> str | None:
        """`fibsem` of `fibsem-int16`; None for a name of another form."""
        match = STANDARD_NAME.match(self.name)
        return match["modality"] if match else None

    @property
    def rank(self) -> int:
        """Place of the data type among those of one micrograph, the most original first."""
        match = STANDARD_NAME.match(self.name)
        return DATA_TYPES.index(match["data_type"]) if match else len(DATA_TYPES)

    @property
    def below_dataset(self) -> str:
        return self.path.partition("/")[2]

    def is_called(self, name: str) -> bool:
        """Whether `name` is part of the path, in whole steps: `recon-2`, `fibsem-int16`, `recon-2/em/…`."""
        return f"/{name.strip('/')}/" in f"/{self.path}/"


def containers(bucket: Container, dataset: str) -> list[str]:
    """Paths of the dataset's image containers, zarr before N5. Empty where there are none."""
    there = bucket.names(f"{dataset}/")
    return [f"{dataset}/{dataset}{kind}" for kind in (".zarr", ".n5") if f"{dataset}{kind}/" in there]


def em_images(bucket: Container, dataset: str, held: Sequence[str]) -> list[EmImage]:
    """The EM images of the first of the dataset's containers `held` that has any, by reconstruction.

    Raises `NotFound` where the bucket has no such dataset, or no EM image of it.
    """
    if not held:
        raise NotFound(
            f"Find the dataset {dataset!r} in {bucket.url('')}",
            f"there is neither {dataset}/{dataset}.zarr nor {dataset}/{dataset}.n5",
            "Its name is the last part of its page's address, https://openorganelle.janelia.org/datasets/<name>",
        )
    for container in held:
        if images := list(_images_of(bucket, container)):
            return images
    raise NotFound(
        f"Find EM images of {dataset!r}",
        f"{' and '.join(held)} and their reconstructions have nothing below em/",
        "The dataset may hold only other modalities",
    )


def chosen_image(images: list[EmImage], spec: DatasetSpec) -> EmImage:
    """The image that `spec.image_set` names by any part of its path, or by its number in the list.

    Without a choice, of one modality in several data types the one that is not rescaled, of several
    reconstructions the first. Raises `InputRefused`, naming the images, where that does not leave one.
    """
    left = images
    if isinstance(spec.image_set, int):
        left = images[spec.image_set : spec.image_set + 1] if spec.image_set >= 0 else []
    elif spec.image_set is not None:
        left = [image for image in images if image.is_called(spec.image_set)]
    roots = [image.root for image in left]
    left = sorted((image for image in left if image.root == roots[0]), key=lambda image: image.rank)
    if left and (len(left) == 1 or len({image.modality for image in left} - {None}) == 1):
        return left[0]
    offered = ", ".join(f"{n}: {image.below_dataset}" for n, image in enumerate(images))
    raise InputRefused(
        f"Choose an EM image of {spec.dataset_id}",
        f"{'none is named' if spec.image_set is None else f'{spec.image_set!r} is not one'} of {offered}",
        "Set `image_set` in the spec (--image-set) to the number, or to a part of the path",
    )


def label_path(bucket: Container, image: EmImage, name: str) -> str:
    """Path in the bucket of the label image that people call `name`, by its last part or below `labels/`.

    Raises `NotFound`, naming those there are.
    """
    direct = f"{image.root}/labels/{name.strip('/')}"
    if "/" in name and bucket.names(f"{direct}/"):
        return direct
    there = list(_label_paths(bucket, image))
    for path in there:
        if PurePosixPath(path).name == name:
            return path
    shown = ", ".join(path.removeprefix(f"{image.root}/labels/") for path in there) or "none"
    raise NotFound(
        f"Find the label image {name!r} beside {image.below_dataset}",
        f"there are: {shown}",
        "Name one of them",
    )


def _images_of(bucket: Container, container: str) -> Iterator[EmImage]:
    names = bucket.names(f"{container}/")
    numbers = sorted(int(match[1]) for name in names if (match := RECONSTRUCTION.match(name)))
    for root in (container, *(f"{container}/recon-{number}" for number in numbers)):
        if root != container or "em/" in names:
            for name in bucket.names(f"{root}/em/"):
                if name.endswith("/"):
                    yield EmImage(f"{root}/em/{name.rstrip('/')}")


def _label_paths(bucket: Container, image: EmImage) -> Iterator[str]:
    for folder in LABELS:
        for name in bucket.names(f"{image.root}/{folder}/"):
            if name.endswith("/") and name not in ("groundtruth/", "inference/"):
                yield f"{image.root}/{folder}/{name.rstrip('/')}"
