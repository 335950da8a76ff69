"""The hippocampus volumes of EPFL's Computer Vision Laboratory (https://www.epfl.ch/labs/cvlab/data/data-em/).

Three volumes and their ground truth are plain files on a server that lists nothing, so their names are kept
here. The page that describes them is read for what it says and for how far it has moved away from that list.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from urllib.parse import quote

from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.identity import check_revision, short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import open_volume
from em_pipeline.sources import epfl_page
from em_pipeline.sources.base import DatasetRef, HeldFile, PageReading, PortalRecord
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.levels import refuse_levels
from em_pipeline.sources.page import Reading, read_page
from em_pipeline.storage.http import HeadResult, PortalClient

EXTRACTOR = "em_pipeline.sources.epfl"
# The folder's name begins with a space.
FOLDER = "/groups/c/cv/cvlab-unit/www/data/ ElectronMicroscopy_Hippocampus/"
PAGE = "/labs/cvlab/data/data-em/"
# Of volumedata.tif, 3,353,674,357 bytes. EPFL publishes no checksum; a project that downloaded it kept one.
VOLUMEDATA_MD5 = "14fc2fb6a5061ea4ea9b69a090c327c9"
MD5_RECORDED_AT = "https://github.com/helensilva14/3d-electron-data-project: data/raw/epfl_volumedata.tif.dvc"
# The same files, for when the server asks for a password, as it has done.
TORRENT = "https://academictorrents.com/details/3ada3ae6ec71097e63d897cf878051bba3eaba25"


@dataclass(frozen=True)
class Volume:
    """A volume's file, and the files of its label images by name."""

    file: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        return self.file, *self.labels.values()


VOLUMES = {
    "volumedata": Volume("volumedata.tif"),
    "training": Volume("training.tif", {"mitochondria": "training_groundtruth.tif"}),
    "testing": Volume("testing.tif", {"mitochondria": "testing_groundtruth.tif"}),
}
# Linked from the page as well: one method's segmentation of `testing`, not ground truth.
NOT_INGESTED = ("results_test.tif",)


class EpflSource:
    """The volumes over HTTPS. `documents` is the base of the file server, `pages` of the web site.

    `volumedata_md5` is what volumedata.tif must hash to; empty for not known. `timeout_s`, `retries` and
    `backoff_s` are as in `PortalClient`.
    """

    slug = "epfl"
    institution = "epfl"
    licence_policy = "No licence is stated; the laboratory asks to cite Lucchi et al. 2013."
    max_connections = 8
    requests_per_second: float | None = None
    control_accession = "volumedata"

    def __init__(
        self,
        *,
        documents: str = "https://documents.epfl.ch",
        pages: str = "https://www.epfl.ch",
        volumedata_md5: str = VOLUMEDATA_MD5,
        timeout_s: float | str = 12.0,
        retries: int | str = 4,
        backoff_s: float | str = 0.5,
    ) -> None:
        self._documents, self._page = documents.rstrip("/"), f"{pages.rstrip('/')}{PAGE}"
        self._checksums = {"volumedata.tif": f"md5:{volumedata_md5}"} if volumedata_md5 else {}
        self._timeout_s, self._retries, self._backoff_s = float(timeout_s), int(retries), float(backoff_s)

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:  # noqa: ARG002
        """The three volumes. When they were released is not known, so all of them are always listed."""
        with self._client() as client:
            self._read_page(client)
            for accession, volume in VOLUMES.items():
                revision = _revision({name: self._head(client, name) for name in volume.files})
                yield DatasetRef(accession, revision, None, f"CA1 hippocampus, {accession}")

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """What the page says, how its links differ from the list here, and which files the server has.

        Where the page has moved, changed, is forbidden or needs a browser, the spec's curated values speak
        and `page` says so; that never stops an ingest. An outage of it is one (`SourceUnavailable`). Raises
        `InputRefused` where the file server asks for a password, and for a level.
        """
        volume = _volume(spec)
        refuse_levels(spec, "it is one TIFF file")
        with self._client() as client:
            heads = {name: self._head(client, name) for name in volume.files}
            reading = self._read_page(client)
        read = PageReading(url=self._page, how=reading.how)
        claims = [self._served(volume.file, heads[volume.file])]
        documents = {}
        if reading.page is not None:
            page = epfl_page.read_data_page(reading.page)
            claims += epfl_page.claims_of(page, spec.accession, EXTRACTOR)
            claims += epfl_page.link_claims(page, volume.file, EXTRACTOR)
            read = epfl_page.compared(page, reading.how, self._known())
            documents["page.txt"] = page.text
        return PortalRecord(
            revision=_revision(heads),
            claims=tuple(claims),
            documents=documents,
            facts={"checksums": self._expected(volume)},
            page=read,
            unavailable=reading.unavailable,
        )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """The volume's file and those of the spec's label images.

        Raises `RecordInvalid` where a file changed since `record` was made: its evidence is of another one.
        """
        volume, labels = _volume(spec), _labels(spec)
        with self._client() as client:
            heads = {name: self._head(client, name) for name in volume.files}
        if (revision := _revision(heads)) != record.revision:
            raise RecordInvalid(
                f"List the files of {spec.dataset_id} at revision {record.revision}",
                f"the server describes them otherwise now; they are at revision {revision}",
                "Ingest it again, so that a record is made of what they are now",
            )
        return [self._file(name, heads[name]) for name in (volume.file, *labels.values())]

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        """The volume. Its TIFF says nothing of the voxel size; the page does."""
        return _opened(_volume(spec).file, files)

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        """`mitochondria`, of training and testing: 255 inside them, 0 elsewhere."""
        return {label: _opened(name, files) for label, name in _labels(spec).items()}

    def _client(self) -> PortalClient:
        return PortalClient(
            connections=self.max_connections,
            requests_per_second=self.requests_per_second,
            timeout_s=self._timeout_s,
            retries=self._retries,
            backoff_s=self._backoff_s,
        )

    def _url(self, name: str) -> str:
        return f"{self._documents}{quote(f'{FOLDER}{name}')}"

    def _known(self) -> list[str]:
        """Every file that the page linked to when it was last compared."""
        files = [name for volume in VOLUMES.values() for name in volume.files]
        return [self._url(name) for name in (*files, *NOT_INGESTED)]

    def _expected(self, volume: Volume) -> dict[str, dict[str, str]]:
        """The checksums that the volume's files must have, and where each was recorded."""
        known = f"md5:{VOLUMEDATA_MD5}" in self._checksums.values()
        recorded_at = MD5_RECORDED_AT if known else "the setting volumedata_md5"
        return {
            name: {"checksum": checksum, "recorded_at": recorded_at}
            for name, checksum in self._checksums.items()
            if name in volume.files
        }

    def _head(self, client: PortalClient, name: str) -> HeadResult:
        try:
            return client.head(self._url(name))
        except InputRefused as error:
            raise InputRefused(
                error.tried, error.found, f"EPFL keeps its files closed just now; they are also at {TORRENT}"
            ) from error

    def _file(self, name: str, head: HeadResult) -> RemoteFile:
        return RemoteFile(
            url=self._url(name),
            path=name,
            size=head.size,
            etag=head.etag,
            modified=head.modified,
            checksum=self._checksums.get(name),
        )

    def _read_page(self, client: PortalClient) -> Reading:
        return read_page(client, self._page, content=epfl_page.CONTENT)

    def _served(self, name: str, head: HeadResult) -> Claim:
        raw = {"Content-Length": head.size, "Last-Modified": head.modified}
        return Claimant(self._url(name), EXTRACTOR).says(
            "provenance.download_url", self._url(name), "HEAD", raw, "the server has the file at this address"
        )


def _volume(spec: DatasetSpec) -> Volume:
    if spec.accession not in VOLUMES:
        raise NotFound(
            f"Find the EPFL dataset {spec.accession!r}",
            f"there are only {', '.join(VOLUMES)}",
            "Name one of them",
        )
    return VOLUMES[spec.accession]


def _labels(spec: DatasetSpec) -> dict[str, str]:
    """Files of the label images that the spec names."""
    offered = _volume(spec).labels
    for label in spec.label_images:
        if label not in offered:
            raise InputRefused(
                f"Take the label image {label!r} of {spec.dataset_id}",
                f"it has {', '.join(offered) or 'none'}",
                "Name one of them with --label (`label_images` in the spec)"
                if offered
                else "Leave --label (`label_images` in the spec) out",
            )
    return {label: offered[label] for label in spec.label_images}


def _opened(name: str, files: Sequence[HeldFile]) -> LazyVolume:
    return open_volume([held.path for held in files if held.file.path == name], name=name)


def _revision(heads: Mapping[str, HeadResult]) -> str:
    """Changes with the files as the server describes them; the page's wording is no part of it."""
    described = [f"{name} {head.size} {head.etag} {head.modified}" for name, head in sorted(heads.items())]
    return check_revision(f"files-{short_hash(*described)}")
