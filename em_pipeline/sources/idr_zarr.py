"""OME-Zarr copies of IDR's images, on EBI's object store: of the studies that were converted so far.

An image is `<study>/<image>.zarr`, its study named by accession and the experiment's letter (`idr0062A`), the
newest by the accession alone (`idr0157`).
"""

from functools import partial

from em_pipeline.domain.errors import NotFound
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources import array_source
from em_pipeline.sources.array_source import HeldImage
from em_pipeline.sources.array_source_address import (
    container_at,
    image_by_address,
    label_image_by_name,
)
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.idr_claims import EXTRACTOR
from em_pipeline.sources.idr_files import Experiment, Place
from em_pipeline.sources.region_size import SizeLimit
from em_pipeline.storage.http import PortalClient


def find(client: PortalClient, base: str, experiment: Experiment, number: int) -> str | None:
    """The address of an image's OME-Zarr below `base`, None where there is none."""
    for study in dict.fromkeys((f"{experiment.accession}{experiment.letter}", experiment.accession)):
        root = f"{base}/{study}/{number}.zarr"
        try:
            client.head(f"{root}/.zattrs")
        except NotFound:
            continue
        return root
    return None


def images_at(client: PortalClient, root: str, spec: DatasetSpec) -> list[HeldImage]:
    """The image at the spec's level, and the label images that the spec names."""
    containers = partial(container_at, client=client)
    image = image_by_address(root, spec, containers)
    return [image, *(label_image_by_name(name, image, containers) for name in spec.label_images)]


def place_of(client: PortalClient, root: str, spec: DatasetSpec, limit: SizeLimit) -> Place:
    """Where the voxels lie, and what the image's documents say of them. Raises like `array_source.survey`."""
    images = images_at(client, root, spec)
    revision = array_source.survey(images, limit).revision
    claims: list[Claim] = array_source.layout_claims(images[0])
    url = images[0].url
    claims.append(Claimant(url, EXTRACTOR).says("provenance.download_url", url, "address", root))
    return Place({"zarr": root, "objects": revision}, tuple(claims), revision)
