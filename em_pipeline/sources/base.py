"""The contract of a source: everything a portal author writes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RawFile, RemoteFile
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec


@dataclass(frozen=True)
class DatasetRef:
    """One entry of a portal's listing.

    `revision` changes when the portal's entry does. The revision of a record that was made of the entry as it
    is listed is the same, or begins with it and a dash: that is how a dataset that is there is known.
    """

    accession: str
    revision: str
    released: date | None
    title: str


@dataclass(frozen=True)
class ImageSet:
    """One of the volumes that an entry holds: how a spec names it (`image_set`), and the portal's word for
    its kind."""

    name: int | str
    category: str


@dataclass(frozen=True)
class EntryDetails:
    """What a portal says of a listed entry, as far as one chooses by it; None or empty: it says nothing.

    `revision` is as in `DatasetRef`, and takes its place. `methods` are the portal's words for how it was
    imaged. `size` is in bytes, of the whole entry. `available` is False for what is announced and cannot be
    had yet.
    """

    revision: str
    methods: tuple[str, ...] = ()
    image_sets: tuple[ImageSet, ...] = ()
    size: int | None = None
    licence: str | None = None
    available: bool = True


class PageReading(BaseModel):
    """How a portal's page for people was read: in what way, or why not.

    The links are those that the page has and its source does not know, and known ones that the page no longer
    has; None where nothing compares them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    how: str
    links_only_on_the_page: tuple[str, ...] | None = None
    links_not_on_the_page: tuple[str, ...] | None = None


class PortalRecord(BaseModel):
    """What a portal says of a dataset: its revision, claims with evidence, and the answers themselves.

    `documents` maps a plain file name to the text received, kept beside the raw files.
    `facts` are JSON values that the source's own `list_files` needs again. `page` is how a page for people,
    where the source reads one, was read. `unavailable` says why what can be done without could not be read;
    where it could before, at the same revision, the record of then stays.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: str
    claims: tuple[Claim, ...]
    documents: dict[str, str] = {}
    facts: dict[str, Any] = {}
    page: PageReading | None = None
    unavailable: dict[str, str] = {}


@dataclass(frozen=True)
class HeldFile:
    """A raw file and where it lies on this machine."""

    file: RawFile
    path: Path


@runtime_checkable
class Source(Protocol):
    """A portal adapter. Downloading, retrying, hashing, chunking, validating, publishing are not its job.

    `slug` is lower-case letters and digits. `institution` says whose servers are asked: its sources share
    one allowance of runs at a time. `max_connections` bounds the connections to the portal's
    hosts at once, `requests_per_second` the rate (None: no limit known). `licence_policy` says in a
    sentence what licence the portal's data has.
    """

    slug: str
    institution: str
    licence_policy: str
    max_connections: int
    requests_per_second: float | None

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:
        """Entries released or revised on or after `since`. Raises `SourceUnavailable` on an outage."""
        ...

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """Ask the portal. Raises `NotFound`, `RecordInvalid` or `SourceUnavailable`."""
        ...

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """The files that hold the spec's volume, with sizes. Raises like `fetch_record`."""
        ...

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        """The volume in those files, without loading it. Raises `UnsupportedFormat`.

        It is the whole level that the spec names, even where only the chunks of the spec's bounding box
        are held: cutting the box out is not the source's job.
        """
        ...

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        """The segmentations that the spec names (`label_images`), by name; none where it names none.

        Each is as large as its own level. Raises `UnsupportedFormat`.
        """
        ...


@runtime_checkable
class WatchedSource(Source, Protocol):
    """A source whose portal lists its datasets, so that its new entries can be watched for.

    `control_accession` is an entry known to exist: a listing without it is an outage, whatever the portal
    says of itself.
    """

    control_accession: str


@runtime_checkable
class DescribingSource(WatchedSource, Protocol):
    """A watched source that can say more of many entries at once than its listing does."""

    def describe(self, accessions: Sequence[str]) -> Mapping[str, EntryDetails]:
        """Details by accession, without those that the portal has no record of.

        Raises `SourceUnavailable` on an outage, which an answer without the control is too.
        """
        ...
