"""FlyEM's hemibrain (https://www.janelia.org/project-team/flyem/hemibrain), by region or coarser level.

The portal is a link to neuroglancer; what it shows are precomputed volumes in a public bucket. The same grey
values can be had from DVID, which sends raw voxels instead of JPEG.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date

from em_pipeline.domain.errors import NotFound, RecordInvalid
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.precomputed_info import Info
from em_pipeline.sources import flyem_dvid, precomputed_store
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.flyem_dvid import DvidImage
from em_pipeline.sources.flyem_services import EXTRACTOR, RETRIES, ask_services
from em_pipeline.sources.neuroglancer import State, fetch_state, told_address
from em_pipeline.sources.precomputed_store import Wanted, plain_address, revision_of
from em_pipeline.sources.region_size import LARGEST_GB, SizeLimit
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints

HEMIBRAIN = "hemibrain"
BUCKET = "gs://neuroglancer-janelia-flyem-hemibrain"
# The link shows the contrast-corrected grey values; `raw` are those before, `dvid` the same from DVID.
IMAGE_SETS = {name: f"{BUCKET}/emdata/{name}/jpeg" for name in ("clahe_yz", "raw")}
LABELS = {"segmentation": f"{BUCKET}/v1.2/segmentation"}
DVID = "dvid"
Image = Wanted | DvidImage
# The node and instance whose `raw` is known to answer.
GRAYSCALE = "a89eb3af216a46cdba81204d8f954786/grayscale"


class FlyemSource:
    """The accession `hemibrain`. 57 TB: `spec.bounding_box` or a coarse `spec.level` says what to take.

    `spec.level` is the number or key of a scale; the box is in voxels of it, z-y-x, which for hemibrain are
    also neuroglancer's (there in x, y, z). `spec.image_set` is `clahe_yz`, `raw` or `dvid`, by default what
    the link shows; `spec.label_images` are `segmentation` (v1.2) or `name=address`. Settings: `link`, the
    bases of the other servers; the others are as in `PortalClient`. At most `largest_gb` of a remote array,
    once decoded, are taken.
    """

    slug = "flyem"
    institution = "janelia"
    licence_policy = "No page with a licence was found, so that none is recorded; cite the paper."
    max_connections = 8
    requests_per_second: float | None = None

    def __init__(
        self,
        *,
        link: str = "https://tinyurl.com/hemibrain-ng",
        gs: str = "",
        dvid: str = "https://hemibrain-dvid.janelia.org",
        neuprint: str = "https://neuprint.janelia.org",
        grayscale: str = GRAYSCALE,
        largest_gb: float | str = LARGEST_GB,
        timeout_s: float | str = 12.0,
        retries: int | str = 4,
        backoff_s: float | str = 0.5,
        endpoints: ObjectEndpoints = PUBLIC,
    ) -> None:
        self._link, self._dvid, self._neuprint = link, dvid.rstrip("/"), neuprint.rstrip("/")
        self._grayscale = f"{self._dvid}/api/node/{grayscale.strip('/')}"
        self._endpoints = endpoints.where_given(gs=gs)
        self.size_limit = SizeLimit(self.slug, float(largest_gb))
        self._timeout_s, self._retries, self._backoff_s = float(timeout_s), int(retries), float(backoff_s)

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:  # noqa: ARG002
        """Nothing: FlyEM has no list of its volumes, only links."""
        return ()

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """What the link, `info`, DVID and neuPrint say of the level that the spec names.

        Its shape is that of the whole level. The link and the `info` documents are needed; DVID and neuPrint
        are asked less patiently, and `unavailable` tells which of them did not answer.
        """
        _check_accession(spec)
        with self._client(self._retries) as client:
            state = fetch_state(client, self._link)
            wanted = self._wanted(client, spec, state)
        image = wanted[0]
        with self._client(min(RETRIES, self._retries)) as client:
            said = ask_services(
                client, self._dvid, self._grayscale, self._neuprint, HEMIBRAIN, finest=image.finest
            )
        return PortalRecord(
            revision=revision_of(wanted),
            claims=(*_claims(image, state), *said.claims),
            documents={"link.json": state.text, "info.json": image.text, **said.documents},
            facts=said.facts,
            unavailable=said.unavailable,
        )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """The documents and chunks that meet the box, of the image and of its label images.

        Raises `InputRefused` for more than may be taken without a box, `NotFound` where nothing is held in
        the box, and `RecordInvalid` where a volume changed since `record` was made.
        """
        with self._client(self._retries) as client:
            state = fetch_state(client, self._link)
            wanted = self._wanted(client, spec, state)
            precomputed_store.check_unchanged(spec, record, revision_of(wanted))
            precomputed_store.check_size(wanted[0], spec, self.size_limit)
            return [file for one in wanted for file in one.files()]

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        """The whole level that the spec names."""
        root = flyem_dvid.root_of(files)
        return flyem_dvid.open_image(spec, root) if root else precomputed_store.open_image(spec, files)

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        """The label images that the spec names, at the level whose voxels are as large as the image's."""
        root = flyem_dvid.root_of(files)
        held = flyem_dvid.held_region(spec, root) if root else precomputed_store.held_region(spec, files)
        return precomputed_store.open_label_images(spec.label_names, held, files)

    @contextmanager
    def _client(self, retries: int) -> Iterator[PortalClient]:
        with PortalClient(
            connections=self.max_connections,
            requests_per_second=self.requests_per_second,
            timeout_s=self._timeout_s,
            retries=retries,
            backoff_s=self._backoff_s,
            endpoints=self._endpoints,
        ) as client:
            yield client

    def _wanted(self, client: PortalClient, spec: DatasetSpec, state: State) -> list[Image]:
        """The image, and the label images."""
        image = self._image(client, spec, state)
        addresses = precomputed_store.label_addresses(spec, LABELS)
        return [
            image,
            *(
                precomputed_store.labels_at(precomputed_store.store_at(address, client), name, image.region)
                for name, address in addresses.items()
            ),
        ]

    def _image(self, client: PortalClient, spec: DatasetSpec, state: State) -> Image:
        if spec.image_set == DVID:
            return flyem_dvid.image_at(self._grayscale, client, spec)
        address = _address(spec, state)
        image = precomputed_store.image_at(precomputed_store.store_at(address, client), spec)
        _check_image(image.info, image.url)
        return image


def _check_accession(spec: DatasetSpec) -> None:
    if spec.accession.lower() != HEMIBRAIN:
        raise NotFound(
            f"Find {spec.accession!r} at FlyEM",
            f"the only volume known here is {HEMIBRAIN}",
            "Other precomputed volumes need no code: em ingest gs://…, or a spec of the source `precomputed`",
        )


def _address(spec: DatasetSpec, state: State) -> str:
    """Where the image set lies; by default, the source of the link's first image layer."""
    if spec.image_set is not None:
        if spec.image_set not in IMAGE_SETS:
            raise NotFound(
                f"Choose the image set {spec.image_set!r} of {spec.dataset_id}",
                f"there are {', '.join((*IMAGE_SETS, DVID))}",
                "Name one of them, or none for what the portal's link shows",
            )
        return IMAGE_SETS[str(spec.image_set)]
    for layer in state.layers():
        volumes = [plain for url in layer.sources if (plain := plain_address(url)) != url]
        if layer.kind == "image" and volumes:
            return told_address(volumes[0], state.url)
    kinds = ", ".join(f"{layer.name} ({layer.kind})" for layer in state.layers())
    raise RecordInvalid(
        f"Find the image that {state.url} shows",
        f"its layers are {kinds or 'none'}",
        "Name one with --image-set (`image_set` in the spec)",
    )


def _check_image(info: Info, url: str) -> None:
    """A segmentation is also voxels, and has been taken for the micrographs before."""
    if info.kind == "segmentation" or info.data_type != "uint8":
        raise RecordInvalid(
            f"Read {url}/info",
            f"it is a volume of the type {info.kind!r} and of {info.data_type}, not an image of uint8",
            "Correct the image set",
        )


def _claims(image: Image, state: State) -> Iterator[Claim]:
    yield from image.claims()
    document = Claimant(f"{image.url}/info", EXTRACTOR)
    yield document.says("provenance.download_url", image.url, "address", image.url)
    if image.finest:  # the view's voxels are those of the finest level
        link = Claimant(state.url, EXTRACTOR)
        for axis in "zyx":
            if (size := state.voxel_nm(axis)) is not None:
                raw = state.value["dimensions"][axis]
                yield link.says(f"core.voxel_size_nm.{axis}", size, f"dimensions.{axis}", raw)
