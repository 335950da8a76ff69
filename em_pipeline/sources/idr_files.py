"""Where the file of an IDR image lies.

The API does not say. The study's repository has a table (`<study>-<experiment>-filePaths.tsv`, one row per
file: the dataset it was imported into, and its path on IDR's server), and the server's files are mirrored at
EBI under the same names, but for the case of some folders.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from em_pipeline.domain.errors import NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RemoteFile
from em_pipeline.sources import autoindex
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.idr_claims import EXTRACTOR
from em_pipeline.storage.http import HeadResult, PortalClient

PROJECT = re.compile(r"^(idr\d{4})-[^/]+/[^/]+$")
TARGET = re.compile(r"(?:^|/)Dataset:name:(.+)$")
# Paths on IDR's server that the mirror has (github.com/IDR/idr.openmicroscopy.org: _data/download_urls.tsv).
MIRRORED = "/uod/idr/filesets/"
SERIES = re.compile(r" \[[^\]]*\]$")


@dataclass(frozen=True)
class Experiment:
    """One experiment of a study, as its project is named: `idr0086-miron-micrographs/experimentD`."""

    accession: str
    study: str
    name: str

    @classmethod
    def of_project(cls, project: str) -> "Experiment | None":
        """None for a name of another form, such as that of an empty project that stands for a whole study."""
        match = PROJECT.match(project)
        return cls(match[1], *project.split("/")) if match else None

    @property
    def letter(self) -> str:
        """`D` of experimentD; empty where it ends otherwise."""
        return self.name[-1] if self.name[-1].isupper() else ""

    @property
    def paths_table(self) -> str:
        """Path of its table below the address of the studies' repositories."""
        return f"{self.study}/HEAD/{self.name}/{self.accession}-{self.name}-filePaths.tsv"


@dataclass(frozen=True)
class Place:
    """Where an image's voxels lie: what `list_files` needs to know of it, what is said there of the image,
    and a text that changes when they do."""

    facts: dict[str, Any]
    claims: tuple[Claim, ...]
    mark: str


def place_of(client: PortalClient, address: str) -> Place:
    """An image in one file at `address`."""
    head = client.head(address)
    raw = {"Content-Length": head.size, "Last-Modified": head.modified}
    claim = Claimant(address, EXTRACTOR).says("provenance.download_url", address, "HEAD", raw)
    mark = _mark(address, head)
    return Place({"file": address, "mark": mark}, (claim,), mark)


def remote_file(client: PortalClient, address: str, mark: str, mirrors: tuple[str, ...]) -> RemoteFile:
    """The file at a quoted address, and at others, under its own name.

    Raises `RecordInvalid` where the server describes it otherwise than by the `mark` of its place.
    """
    head = client.head(address)
    if (now := _mark(address, head)) != mark:
        raise RecordInvalid(
            f"List {address}",
            f"it was {mark!r} when its record was made, and is {now!r}",
            "Ingest it again, so that a record is made of what it is now",
        )
    name = unquote(urlsplit(address).path).rpartition("/")[2]
    return RemoteFile(
        url=address,
        path=name,
        size=head.size,
        etag=head.etag,
        modified=head.modified,
        mirrors=mirrors,
    )


def _mark(address: str, head: HeadResult) -> str:
    # Without the server: the same file on another mirror is the same revision.
    return f"{urlsplit(address).path} {head.size} {head.etag} {head.modified}"


def path_of(table: str, url: str, image: str, dataset: str | None) -> str:
    """The path on IDR's server of the file that the image called `image` was imported from.

    Rows of other datasets count only where the dataset is not known. Raises `RecordInvalid` where no row, or
    more than one, has the file, and `SourceUnavailable` for what is no table.
    """
    name = SERIES.sub("", image)  # an image of a file with several is named `<file> [<series>]`
    if "\t" not in table:
        raise SourceUnavailable(
            f"Read {url}",
            f"it is no table of file paths; it begins {table[:80]!r}",
            "Nothing is known about the data; open the URL in a browser, and try again later",
        )
    found = set()
    for line in table.splitlines():
        target, _, path = line.partition("\t")
        match = TARGET.search(target.strip().strip('"'))
        elsewhere = dataset is not None and match is not None and match[1] != dataset
        if PurePosixPath(path.strip()).name in (image, name) and not elsewhere:
            found.add(path.strip())
    if len(found) != 1:
        raise RecordInvalid(
            f"Find the file of the image {image!r}",
            f"{url} has {len(found) or 'no'} file{'s' * (len(found) != 1)} of that name",
            "Look for it on the mirror and ingest it by its address: em ingest URL",
        )
    return found.pop()


def locate(client: PortalClient, mirror: str, path: str) -> str:
    """The address of a server's `path` on the mirror, as the mirror spells it.

    Raises `RecordInvalid` for a path that is not mirrored or has names that are not plain, `NotFound` where
    the mirror lacks it.
    """
    if not path.startswith(MIRRORED) or ".." in PurePosixPath(path).parts:
        raise RecordInvalid(
            f"Find {path} on {mirror}",
            f"the mirror has only what is below {MIRRORED}",
            "The study keeps its images elsewhere; ingest them by their address: em ingest URL",
        )
    parts = [part for part in path.removeprefix(MIRRORED).split("/") if part]
    if not all(map(autoindex.plain, parts)):
        raise RecordInvalid(
            f"Find {path!r} on {mirror}",
            "a name in it could not be a file's on every system",
            "Nothing was read from there",
        )
    address = f"{mirror}/{quote('/'.join(parts))}"
    try:
        client.head(address)
    except NotFound:
        return _spelled_otherwise(client, mirror, parts)
    return address


def _spelled_otherwise(client: PortalClient, mirror: str, parts: list[str]) -> str:
    """Follow `parts` down from the mirror's root, folder by folder, whatever their case."""
    folder = f"{mirror}/"
    for n, part in enumerate(parts):
        page = client.get_text(folder)
        is_file = n + 1 == len(parts)
        names = (autoindex.file_names if is_file else autoindex.folder_names)(page, folder)
        alike = [name for name in names if name.casefold() == part.casefold()]
        chosen = part if part in alike else next(iter(alike), None)
        if chosen is None or (len(alike) > 1 and part not in alike):
            raise NotFound(
                f"Find {'/'.join(parts)} on {mirror}",
                f"{folder} has " + (f"both {' and '.join(alike)}" if alike else f"nothing called {part!r}"),
                "Look for it on the mirror and ingest it by its address: em ingest URL",
            )
        folder += quote(chosen) + ("" if is_file else "/")
    return folder
