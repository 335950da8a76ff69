"""Any neuroglancer precomputed volume, at any address: a dataset of it costs a spec and no code."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from urllib.parse import unquote

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources import precomputed_store
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.precomputed_store import RemoteStore, Wanted, revision_of
from em_pipeline.sources.region_size import LARGEST_GB, SizeLimit
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints

EXTRACTOR = "em_pipeline.sources.precomputed"


class PrecomputedSource:
    """The volume at `spec.location`: gs://, s3://, http(s):// or a folder, `precomputed://` before it or not.

    `spec.level` is the number or key of a scale, `spec.bounding_box` counts from that scale's first voxel:
    a position that neuroglancer shows, less the scale's `voxel_offset`. `spec.label_images` are segmentations
    as `name=address`. What `info` does not say (licence, citation, organism) belongs into the spec, as
    `curated`. Settings: `gs` and `s3` are http(s) bases of other servers that answer for such addresses; the
    others are as in `PortalClient`. At most `largest_gb` of a remote array, once decoded, are taken.
    """

    slug = "precomputed"
    institution = "any"
    licence_policy = "Each volume's own; the spec states it with the page it was read on."
    max_connections = 8
    requests_per_second: float | None = None

    def __init__(
        self,
        *,
        gs: str = "",
        s3: str = "",
        largest_gb: float | str = LARGEST_GB,
        timeout_s: float | str = 12.0,
        retries: int | str = 4,
        backoff_s: float | str = 0.5,
        endpoints: ObjectEndpoints = PUBLIC,
    ) -> None:
        self._endpoints = endpoints.where_given(gs=gs, s3=s3)
        self.size_limit = SizeLimit(self.slug, float(largest_gb))
        self._timeout_s, self._retries, self._backoff_s = float(timeout_s), int(retries), float(backoff_s)

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:  # noqa: ARG002
        """Nothing: addresses are given, not found."""
        return ()

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """What `info` says of the scale that the spec names; its revision is of the `info` documents.

        Raises `InputRefused` for a spec without location and a box outside the scale.
        """
        with self._wanted(spec) as wanted:
            return PortalRecord(
                revision=revision_of(wanted),
                claims=tuple(_claims(wanted[0], spec)),
                documents={"info.json": wanted[0].text},
            )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """`info` and the chunks that meet the box, of the image and of its label images.

        Raises `InputRefused` for a volume too large to be taken whole, `NotFound` where it holds nothing in
        the box, and `RecordInvalid` where an `info` changed since `record` was made.
        """
        with self._wanted(spec) as wanted:
            precomputed_store.check_unchanged(spec, record, revision_of(wanted))
            if isinstance(wanted[0].store, RemoteStore):
                precomputed_store.check_size(wanted[0], spec, self.size_limit)
            return [file for one in wanted for file in one.files()]

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        """The whole level that the spec names."""
        return precomputed_store.open_image(spec, files)

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        """The label images that the spec names, at the level whose voxels are as large as the image's."""
        region = precomputed_store.held_region(spec, files)
        return precomputed_store.open_label_images(spec.label_names, region, files)

    @contextmanager
    def _wanted(self, spec: DatasetSpec) -> Iterator[list[Wanted]]:
        """The image, and the label images."""
        if not spec.location:
            raise InputRefused(
                f"Find the volume {spec.dataset_id}",
                "its spec has no location",
                "Set `location` to the gs://, s3:// or https:// address, or the folder, that holds `info`",
            )
        with PortalClient(
            connections=self.max_connections,
            requests_per_second=self.requests_per_second,
            timeout_s=self._timeout_s,
            retries=self._retries,
            backoff_s=self._backoff_s,
            endpoints=self._endpoints,
        ) as client:
            image = precomputed_store.image_at(precomputed_store.store_at(spec.location, client), spec)
            yield [
                image,
                *(
                    precomputed_store.labels_at(
                        precomputed_store.store_at(address, client), name, image.region
                    )
                    for name, address in precomputed_store.label_addresses(spec, {}).items()
                ),
            ]


def _claims(image: Wanted, spec: DatasetSpec) -> Iterator[Claim]:
    yield from image.claims()
    claimant = Claimant(f"{image.url}/info", EXTRACTOR)
    name = unquote(image.url).rstrip("/").rpartition("/")[2]
    if "core.title" not in spec.curated and "core.title" not in spec.overrides:
        yield claimant.says("core.title", name, "address", spec.location, "the last part of its address")
    yield claimant.says("provenance.download_url", image.url, "address", spec.location)
