"""OpenOrganelle, the volumes of Janelia's CellMap and COSEM teams (https://openorganelle.janelia.org)."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date

from em_pipeline.domain.errors import InputRefused, SourceUnavailable
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.modality import known_modality
from em_pipeline.domain.spec import Curated, DatasetSpec
from em_pipeline.sources import array_source, openorganelle_images
from em_pipeline.sources.array_source import HeldImage
from em_pipeline.sources.array_source_container import Container, StoreContainer
from em_pipeline.sources.base import DatasetRef, HeldFile, PageReading, PortalRecord
from em_pipeline.sources.claimant import Claimant, curated_claim
from em_pipeline.sources.openorganelle_images import EmImage
from em_pipeline.sources.openorganelle_page import page_claims
from em_pipeline.sources.page import Reading, read_page
from em_pipeline.sources.region_size import LARGEST_GB, SizeLimit
from em_pipeline.sources.rendered_page import Browser, find_browser
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints

EXTRACTOR = "em_pipeline.sources.openorganelle"
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
# Neither the bucket nor the site's pages state it. The registry still calls the bucket janelia-cosem.
LICENCE = Curated(
    value="CC-BY-4.0",
    page="https://github.com/awslabs/open-data-registry/blob/00332689c21c434c7d577e9ea9c2e9651380ef2f/datasets/janelia-cosem.yaml",
    read_on="2026-11-21",
    quote="License: CC-BY-4.0",
)
# A heading with values below it: what the page has once its script has fetched the dataset.
RENDERED = "h6 ~ p > strong"
UNANSWERED = "it could not be asked for"


class OpenOrganelleSource:
    """The public bucket and the site's pages. The accession is the dataset's name, such as `jrc_mus-nacc-2`.

    `bucket` is its address; `s3` is the http(s) base of another server that answers for it, empty for AWS;
    `site` is the base of the pages. `timeout_s`, `retries` and `backoff_s` are as in `PortalClient`; text is
    accepted, as settings give it. A page shows its values only in a browser: without one, they are those
    that are curated. At most `largest_gb` of a remote array, once decoded, are taken.
    """

    slug = "openorganelle"
    institution = "janelia"
    licence_policy = "The bucket's data are released under CC BY 4.0 (AWS Registry of Open Data)."
    max_connections = 8
    requests_per_second: float | None = None
    control_accession = "jrc_mus-nacc-2"

    def __init__(
        self,
        *,
        bucket: str = "s3://janelia-cosem-datasets",
        s3: str = "",
        site: str = "https://openorganelle.janelia.org",
        largest_gb: float | str = LARGEST_GB,
        timeout_s: float | str = 12.0,
        retries: int | str = 4,
        backoff_s: float | str = 0.5,
        endpoints: ObjectEndpoints = PUBLIC,
    ) -> None:
        self._address, self._site = bucket.rstrip("/"), site.rstrip("/")
        self._endpoints = endpoints.where_given(s3=s3)
        self.size_limit = SizeLimit(self.slug, float(largest_gb))
        self._timeout_s, self._retries, self._backoff_s = float(timeout_s), int(retries), float(backoff_s)
        self._find_browser: Callable[[], Browser | None] = find_browser

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:  # noqa: ARG002
        """Every folder of the bucket that holds an image container of its own name.

        The bucket does not say when a dataset was released, so `since` leaves none out. The revision is of
        the container's name: that of the voxels is known only where they are listed.
        """
        with self._bucket() as bucket:
            names = [name.rstrip("/") for name in bucket.names("") if name.endswith("/")]
            if not names:
                raise SourceUnavailable(
                    f"List {bucket.url('')}", "it holds no folder at all", "Try again later"
                )
            with ThreadPoolExecutor(self.max_connections) as pool:
                held = list(pool.map(lambda name: openorganelle_images.containers(bucket, name), names))
        for name, containers in zip(names, held, strict=True):
            if containers and NAME.match(name):
                yield DatasetRef(name, _listed(containers), None, name)

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """What the image's documents and the dataset's page say, of the level that the spec names.

        The page only adds to the documents, so nothing about it stops an ingest: `page` says how it was read,
        and `unavailable` names it where asking again may bring what it says. Raises `InputRefused` where the
        spec does not say which of several images is meant.
        """
        with self._bucket() as bucket:
            containers = openorganelle_images.containers(bucket, _name(spec))
            chosen = openorganelle_images.chosen_image(
                openorganelle_images.em_images(bucket, _name(spec), containers), spec
            )
            labels = {
                name: openorganelle_images.label_path(bucket, chosen, name) for name in spec.label_images
            }
            images = _held(bucket, chosen.path, labels, spec)
            objects = array_source.survey(images, self.size_limit).revision
        reading = self._page(spec)
        page = reading.page
        shown = page_claims(page.url, page.html, finest=images[0].layout.level == 0) if page else []
        return PortalRecord(
            revision=f"{_listed(containers)}-{objects}",
            claims=(*_claims(images[0], chosen), *shown, *_title(images[0], spec, shown)),
            documents={"page.html": page.html} if page else {},
            facts={"image": chosen.path, "labels": labels, "objects": objects},
            page=PageReading(url=self._page_url(spec), how=reading.how),
            unavailable=reading.unavailable,
        )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """The level's metadata documents and the chunks that the bucket lists; the labels' likewise.

        Raises `RecordInvalid` where they changed since `record` was made.
        """
        with self._bucket() as bucket:
            images = _held(bucket, str(record.facts["image"]), record.facts["labels"], spec)
            objects = str(record.facts["objects"])
            return array_source.files_at(objects, images, spec.dataset_id, self.size_limit)

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:  # noqa: ARG002
        """The whole level that the spec names, in the values that are stored: int16 stays int16."""
        return array_source.open_image(files)

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        """The label images that the spec names, at the level whose voxels are as large as the image's."""
        return array_source.open_label_images(spec.label_images, files)

    @contextmanager
    def _bucket(self) -> Iterator[Container]:
        with self._client() as client:
            yield StoreContainer(self._address, client)

    def _client(self) -> PortalClient:
        return PortalClient(
            connections=self.max_connections,
            requests_per_second=self.requests_per_second,
            timeout_s=self._timeout_s,
            retries=self._retries,
            backoff_s=self._backoff_s,
            endpoints=self._endpoints,
        )

    def _page_url(self, spec: DatasetSpec) -> str:
        return f"{self._site}/datasets/{_name(spec)}"

    def _page(self, spec: DatasetSpec) -> Reading:
        """The dataset's page, as far as it can be read."""
        with self._client() as client:
            try:
                return read_page(
                    client, self._page_url(spec), content=RENDERED, find_browser=self._find_browser
                )
            except SourceUnavailable as error:
                return Reading(None, UNANSWERED, {"page": str(error)})


def _name(spec: DatasetSpec) -> str:
    if not NAME.match(spec.accession):
        raise InputRefused(
            f"Read {spec.accession!r} as a dataset of OpenOrganelle",
            "it is not a name such as jrc_mus-nacc-2",
            "Take it from the dataset's page, https://openorganelle.janelia.org/datasets/<name>",
        )
    return spec.accession


def _listed(containers: Sequence[str]) -> str:
    """The revision of a listed dataset. Its first container is the one that is read, whatever others come."""
    return short_hash(*containers[:1])


def _held(bucket: Container, image: str, labels: Mapping[str, str], spec: DatasetSpec) -> list[HeldImage]:
    """The image at its path in the bucket, and the label images at theirs."""
    held = array_source.image_at(bucket, image, spec)
    return [
        held,
        *(array_source.label_image_at(bucket, path, name, held) for name, path in labels.items()),
    ]


def _claims(image: HeldImage, chosen: EmImage) -> Iterator[Claim]:
    yield from array_source.layout_claims(image)
    claimant = Claimant(image.url, EXTRACTOR)
    yield claimant.says("provenance.download_url", image.url, "path in the bucket", image.layout.path)
    if modality := known_modality(chosen.modality or ""):
        yield claimant.says("core.modality", modality, "name of the image", chosen.name)
    yield curated_claim("rights.licence", LICENCE, EXTRACTOR)


def _title(image: HeldImage, spec: DatasetSpec, shown: Sequence[Claim]) -> Iterator[Claim]:
    """The dataset's name, where nothing says a better title."""
    titled = "core.title" in spec.curated or any(claim.field == "core.title" for claim in shown)
    if not titled:
        yield Claimant(image.url, EXTRACTOR).says(
            "core.title", spec.accession, "name of the dataset", spec.accession
        )
