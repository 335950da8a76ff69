"""EMPIAR, the Electron Microscopy Public Image Archive (https://www.ebi.ac.uk/empiar/)."""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from urllib.parse import quote

from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.identity import check_revision, short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import open_volume
from em_pipeline.formats.stack import natural_key
from em_pipeline.sources import autoindex, empiar_files, empiar_listing
from em_pipeline.sources.base import DatasetRef, EntryDetails, HeldFile, PortalRecord
from em_pipeline.sources.claimant import Claimant, curated_claim
from em_pipeline.sources.documents import XmlDocument, fetch_json, fetch_xml
from em_pipeline.sources.empiar_claims import LICENCE, claims_of
from em_pipeline.sources.empiar_entry import Entry, from_rest, from_xml
from em_pipeline.sources.empiar_listing import ACCESSION, RELEASED
from em_pipeline.sources.levels import refuse_levels
from em_pipeline.storage.http import PortalClient

EXTRACTOR = "em_pipeline.sources.empiar"


class EmpiarSource:
    """EMPIAR over HTTPS. `api`, `ftp` and `biostudies` are the bases of its three servers; EBI Search, its
    second listing, is on the third.

    `timeout_s`, `retries` and `backoff_s` are as in `PortalClient`; text is accepted, as settings give it.
    """

    slug = "empiar"
    institution = "ebi"
    licence_policy = "All data in EMPIAR are released under CC0 1.0 (EMPIAR FAQ)."
    # EBI allows 25 connections per address; one user of many should stay far below.
    max_connections = 4
    requests_per_second: float | None = None
    control_accession = "11759"

    def __init__(
        self,
        *,
        api: str = "https://www.ebi.ac.uk",
        ftp: str = "https://ftp.ebi.ac.uk",
        biostudies: str = "https://www.ebi.ac.uk",
        timeout_s: float | str = 12.0,
        retries: int | str = 4,
        backoff_s: float | str = 0.5,
    ) -> None:
        self._api, self._ftp, self._biostudies = (base.rstrip("/") for base in (api, ftp, biostudies))
        self._timeout_s, self._retries, self._backoff_s = float(timeout_s), int(retries), float(backoff_s)

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:
        """Entries released on or after `since`, from BioStudies or, where that is down, from EBI Search.

        Their revision is of the search hit: it changes with an entry's title or release, not with its files.
        """
        with self._client() as client:
            found = empiar_listing.hits(client, self._biostudies, self.control_accession)
        for accession, hit in found:
            if since is None or hit.released is None or hit.released >= since:
                day = hit.released.isoformat() if hit.released else "undated"
                revision = f"{day}-{short_hash(accession, hit.title)}"
                yield DatasetRef(accession, revision, hit.released, hit.title)

    def describe(self, accessions: Sequence[str]) -> Mapping[str, EntryDetails]:
        """Method, image sets, size and day of update, of those of the entries that EMPIAR has."""
        with self._client() as client:
            return empiar_listing.describe(client, self._api, accessions, self.control_accession)

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """What the REST answer and the XML header say; where they disagree, both claims are kept.

        Raises `InputRefused` for a level, and where the spec does not say which of several image sets is
        meant.
        """
        accession = _accession(spec)
        refuse_levels(spec, "an image set of EMPIAR is files of images")
        with self._client() as client:
            answer = fetch_json(client, f"{self._api}/empiar/api/entry/EMPIAR-{accession}/")
            header = self._header(client, accession)
        entry = from_rest(answer.url, accession, answer.value)
        _check_released(entry, accession)
        chosen = _choose_image_set(entry, spec)
        image_set = entry.image_sets[chosen]
        folder = self._folder(accession, image_set["directory"].text or "data")
        at = Claimant(answer.url, EXTRACTOR).says(
            "provenance.download_url",
            folder,
            image_set["directory"].at,
            image_set["directory"].raw or "data",
            "below the archive's folder of the entry",
        )
        claims = [
            *claims_of(entry, chosen, EXTRACTOR),
            curated_claim("rights.licence", LICENCE, EXTRACTOR),
            at,
        ]
        documents = {"entry.json": answer.text}
        references = set(entry.cross_references)
        if header is not None:
            documents["header.xml"] = header.text
            other = from_xml(header.url, header.root)
            references.update(other.cross_references)
            if len(other.image_sets) == len(entry.image_sets):
                claims += claims_of(other, chosen, EXTRACTOR)
        return PortalRecord(
            revision=_revision(entry, answer.value, header),
            claims=tuple(claims),
            documents=documents,
            facts={
                "folder": folder,
                "images": image_set["images"].count,
                "data_format": image_set["data_format"].text,
                "cross_references": sorted(references),
            },
        )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """The image set's top-level files of its format, or those that `spec.include` names, in number order.

        Raises `RecordInvalid` where fewer are listed than the portal counts, naming the gaps.
        """
        folder = str(record.facts["folder"])
        wanted = empiar_files.selector(spec, record)
        expected = empiar_files.expected(spec, record)
        with self._client() as client:
            names = self._listed(client, folder, wanted, expected)
            empiar_files.check_complete(folder, names, expected)
            with ThreadPoolExecutor(self.max_connections) as pool:
                return list(pool.map(lambda name: _remote_file(client, folder, name), names))

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        """The volume in those files."""
        return open_volume([held.path for held in files], name=spec.dataset_id)

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:  # noqa: ARG002
        """None: EMPIAR keeps segmentations as entries of their own."""
        return {}

    def _client(self) -> PortalClient:
        return PortalClient(
            connections=self.max_connections,
            requests_per_second=self.requests_per_second,
            timeout_s=self._timeout_s,
            retries=self._retries,
            backoff_s=self._backoff_s,
        )

    def _header(self, client: PortalClient, accession: str) -> XmlDocument | None:
        try:
            return fetch_xml(client, f"{self._folder(accession)}{accession}.xml", "entry")
        except NotFound:
            return None

    def _folder(self, accession: str, directory: str = "") -> str:
        parts = [part for part in directory.split("/") if part]
        if ".." in parts or "." in parts:
            raise RecordInvalid(
                f"Find the files of EMPIAR-{accession}",
                f"the image set's directory is {directory!r}, which leads elsewhere",
                "Nothing was read from there",
            )
        path = "".join(f"{quote(part)}/" for part in parts)
        return f"{self._ftp}/empiar/world_availability/{accession}/{path}"

    def _listed(
        self, client: PortalClient, folder: str, wanted: Callable[[str], bool], expected: int | None
    ) -> list[str]:
        """Wanted names in the union of a few listings: no more are asked for than it takes."""
        names: set[str] = set()
        for attempt in range(empiar_files.LISTINGS):
            time.sleep(self._backoff_s * attempt)
            names.update(filter(wanted, autoindex.file_names(client.get_text(folder), folder)))
            if empiar_files.enough(names, expected):
                break
        return sorted(names, key=lambda name: natural_key(Path(name)))


def _accession(spec: DatasetSpec) -> str:
    match = ACCESSION.match(spec.accession)
    if match is None:
        raise InputRefused(
            f"Read {spec.accession!r} as an EMPIAR accession",
            "it is not a number of 4 to 7 digits, such as 11759",
            "Take it from the entry's page, https://www.ebi.ac.uk/empiar/EMPIAR-<number>/",
        )
    return match[1]


def _check_released(entry: Entry, accession: str) -> None:
    status = entry["status"].text
    if status != RELEASED:
        raise RecordInvalid(
            f"Read {entry.url}",
            f"EMPIAR-{accession} has the status {status!r}, not {RELEASED!r}",
            "Its files are not public; wait for its release",
        )
    if not entry.image_sets:
        raise RecordInvalid(f"Read {entry.url}", "the entry has no image set", "There is nothing to ingest")


def _choose_image_set(entry: Entry, spec: DatasetSpec) -> int:
    sets = entry.image_sets
    if spec.image_set is None and len(sets) == 1:
        return 0
    if isinstance(spec.image_set, int) and 0 <= spec.image_set < len(sets):
        return spec.image_set
    named = [n for n, one in enumerate(sets) if one["name"].text == spec.image_set]
    if spec.image_set is not None and len(named) == 1:
        return named[0]
    offered = "; ".join(
        f"{n}: {one['name'].text} ({one['data_format'].text}, {one['images'].raw} images)"
        for n, one in enumerate(sets)
    )
    raise InputRefused(
        f"Choose an image set of {spec.dataset_id}",
        f"{'none is named' if spec.image_set is None else f'{spec.image_set!r} is not one'} of: {offered}",
        "Give the number or the exact name with --image-set (`image_set` in the spec)",
    )


def _revision(entry: Entry, answer: object, header: XmlDocument | None) -> str:
    day = entry["updated"].text or entry["released"].text or "undated"
    content = short_hash(json.dumps(answer, sort_keys=True), header.text if header else "")
    return check_revision(f"{re.sub(r'[^0-9A-Za-z]+', '-', day)}-{content}")


def _remote_file(client: PortalClient, folder: str, name: str) -> RemoteFile:
    url = f"{folder}{quote(name)}"
    head = client.head(url)
    return RemoteFile(url=url, path=name, size=head.size, etag=head.etag, modified=head.modified)
