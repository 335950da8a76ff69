"""Any OME-Zarr image, at any address: a dataset of it costs a spec and no code."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import PurePosixPath
from urllib.parse import unquote

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources import array_source
from em_pipeline.sources.array_source import HeldImage
from em_pipeline.sources.array_source_address import (
    channel_of,
    container_at,
    image_by_address,
    label_image_by_name,
)
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.region_size import LARGEST_GB, SizeLimit
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints

EXTRACTOR = "em_pipeline.sources.omezarr"


class OmeZarrSource:
    """The image at `spec.location`: s3://, gs://, http(s):// or a folder; OME-Zarr 0.1 to 0.5, and N5.

    `spec.level` is one of its levels, `spec.label_images` are names that it lists or `name=address`.
    A text as `spec.image_set` is the image's path below the location, a number the channel to take of it.
    What the image does not say of itself (licence, citation, organism) belongs into the spec, as `curated`.
    The setting `s3` is the http(s) base of another server that answers for s3:// addresses.
    At most `largest_gb` of a remote array, once decoded, are taken.
    """

    slug = "omezarr"
    institution = "any"
    licence_policy = "Each image's own; the spec states it with the page it was read on."
    max_connections = 8
    requests_per_second: float | None = None

    def __init__(
        self,
        *,
        s3: str = "",
        largest_gb: float | str = LARGEST_GB,
        timeout_s: float | str = 12.0,
        retries: int | str = 4,
        backoff_s: float | str = 0.5,
        endpoints: ObjectEndpoints = PUBLIC,
    ) -> None:
        self._endpoints = endpoints.where_given(s3=s3)
        self.size_limit = SizeLimit(self.slug, float(largest_gb))
        self._timeout_s, self._retries, self._backoff_s = float(timeout_s), int(retries), float(backoff_s)

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:  # noqa: ARG002
        """Nothing: addresses are given, not found."""
        return ()

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """What the image's documents say of the level that the spec names."""
        with self._images(spec) as images:
            return PortalRecord(
                revision=array_source.survey(images, self.size_limit).revision,
                claims=tuple(_claims(images[0], spec)),
            )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """The level's metadata documents, and its chunks: those there are where the address can be listed.

        Elsewhere (a plain web server) all there may be. Raises `RecordInvalid` where they changed since
        `record` was made.
        """
        with self._images(spec) as images:
            return array_source.files_at(record.revision, images, spec.dataset_id, self.size_limit)

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        """The whole level that the spec names."""
        return array_source.open_image(files, channel_of(spec))

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        """The label images that the spec names, at the level whose voxels are as large as the image's."""
        return array_source.open_label_images(spec.label_names, files)

    @contextmanager
    def _images(self, spec: DatasetSpec) -> Iterator[list[HeldImage]]:
        if not spec.location:
            raise InputRefused(
                f"Find the image {spec.dataset_id}",
                "its spec has no location",
                "Set `location` to the image's s3://, gs:// or https:// address, or its folder",
            )
        with PortalClient(
            connections=self.max_connections,
            timeout_s=self._timeout_s,
            retries=self._retries,
            backoff_s=self._backoff_s,
            endpoints=self._endpoints,
        ) as client:
            containers = partial(container_at, client=client)
            image = image_by_address(spec.location, spec, containers)
            yield [
                image,
                *(label_image_by_name(entry, image, containers) for entry in spec.label_images),
            ]


def image_claims(image: HeldImage, location: str, extractor: str) -> Iterator[Claim]:
    """What an image's documents say, and where it was found."""
    yield from array_source.layout_claims(image)
    name = PurePosixPath(unquote(location).rstrip("/")).name
    claimant = Claimant(image.url, extractor)
    yield claimant.says("core.title", name, "name", name, "the last part of its address")
    yield claimant.says("provenance.download_url", image.url, "address", location)


def _claims(image: HeldImage, spec: DatasetSpec) -> Iterator[Claim]:
    claims = image_claims(image, spec.location or "", EXTRACTOR)
    return (claim for claim in claims if claim.field != "core.title" or "core.title" not in spec.curated)
