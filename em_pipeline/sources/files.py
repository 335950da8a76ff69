"""Files of one's own, or at any web address: no portal, so nothing but the files speaks."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid, UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.geometry import PartialVoxelSize
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import FOLDERS, FORMATS, READ_TODAY, open_volume
from em_pipeline.formats.stack import natural_key
from em_pipeline.sources.autoindex import plain
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord
from em_pipeline.sources.claimant import Claimant
from em_pipeline.storage.http import PortalClient

EXTRACTOR = "em_pipeline.sources.files"
# Left behind by file managers; nothing of theirs is data.
CLUTTER = frozenset({"thumbs.db", "desktop.ini"})


def spec_for(
    location: str | os.PathLike[str],
    *,
    name: str | None = None,
    voxel_size: PartialVoxelSize | None = None,
    reason: str = "",
    include: Sequence[str] = (),
) -> DatasetSpec:
    """The spec of a file, folder or http(s) URL; the same arguments always give the same spec.

    With `name`, the dataset is `files-<name>`: a person who moves the file keeps the dataset. Without, it is
    `files-<stem>-<6 hexadecimal digits>` of the absolute location, so that two files called `stack.tif` in
    two places never share an id. `voxel_size` (nm, z-y-x) overrides what the files say, for `reason`.
    Raises `InputRefused` for a name that leaves nothing for an id, an address that is no http(s) URL, and a
    path that cannot be followed or is not UTF-8.
    """
    absolute = _absolute(os.fspath(location))
    accession = name if name is not None else f"{_stem(absolute)}-{short_hash(absolute)[:6]}"
    return DatasetSpec(
        source=FilesSource.slug,
        accession=accession,
        location=absolute,
        include=tuple(include),
        voxel_size_nm=voxel_size,
        voxel_size_reason=reason,
    )


class FilesSource:
    """A file, a folder of files, or one file at an http(s) URL: `spec.location`.

    Local files stay where they are. Of a folder, the top level counts; hidden files and clutter do not.
    """

    slug = "files"
    institution = "local"
    licence_policy = "Nothing is known of the licence; state it with an override of rights.licence."
    max_connections = 4
    requests_per_second: float | None = None

    def __init__(
        self, *, timeout_s: float | str = 12.0, retries: int | str = 4, backoff_s: float | str = 0.5
    ) -> None:
        self._timeout_s, self._retries, self._backoff_s = float(timeout_s), int(retries), float(backoff_s)

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:  # noqa: ARG002
        """Nothing: there is no portal to list, and this machine's files are not searched."""
        return ()

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """Names, sizes and times of the files. The revision changes when any of these does.

        Raises `NotFound` with the nearest names for a path that does not exist, `InputRefused` for a folder
        that is empty, unreadable or holds several formats.
        """
        files = self._files(spec)
        location = _location(spec)
        where = location if _is_url(location) else Path(location).as_uri()
        claimant = Claimant(where, EXTRACTOR)
        return PortalRecord(
            revision=_revision(files),
            claims=tuple(_claims(claimant, location, where, files)),
            facts={"files": len(files)},
        )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """file:// URLs of local files, or the http(s) URL itself.

        Raises `RecordInvalid` where the files changed since `record` was made: they are another revision.
        """
        files = self._files(spec)
        if _revision(files) != record.revision:
            raise RecordInvalid(
                f"List the files of {spec.dataset_id} at revision {record.revision}",
                f"{_location(spec)} has changed since; it is now at revision {_revision(files)}",
                "Ingest it again, so that a record is made of what it is now",
            )
        return files

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        """The volume in those files. Several files must be the sections of one volume."""
        try:
            return open_volume([held.path for held in files], name=spec.dataset_id)
        except (UnsupportedFormat, InputRefused) as error:
            if len(files) == 1:
                raise
            names = ", ".join(held.file.path for held in files[:3])
            raise type(error)(
                error.tried,
                error.found,
                f"{error.to_do}. "
                * bool(error.to_do)
                + f"{_location(spec)} holds {len(files)} files ({names}, …): ingest one of them by its own "
                "path, or choose the sections of one volume with `include`",
            ) from error

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:  # noqa: ARG002
        """None: files of one's own come as images."""
        return {}

    def _files(self, spec: DatasetSpec) -> list[RemoteFile]:
        location = _location(spec)
        if _is_url(location):
            return [self._remote(location)]
        path = Path(location)
        try:
            _check_exists(path)
            if path.is_dir():
                return [_local(child) for child in _chosen(path, spec.include)]
            return [_local(path)]
        except PermissionError as error:
            raise InputRefused(
                f"Read {error.filename or path}", "its permissions do not allow it", "Make it readable"
            ) from error
        except OSError as error:
            raise InputRefused(
                f"Read {error.filename or path}", error.strerror or str(error), "Check the path and its disk"
            ) from error

    def _remote(self, url: str) -> RemoteFile:
        name = unquote(urlsplit(url).path).rpartition("/")[2]
        if not plain(name):
            raise InputRefused(
                f"Ingest {url}", "the address does not end in a file's name", "Give the URL of one file"
            )
        with PortalClient(
            connections=self.max_connections,
            timeout_s=self._timeout_s,
            retries=self._retries,
            backoff_s=self._backoff_s,
        ) as client:
            head = client.head(url)
        if head.size is None and head.etag is None and head.modified is None:
            raise RecordInvalid(
                f"Ask for {url}",
                "the server tells neither its size nor its version, so a change could not be seen",
                "Download the file and ingest the local copy",
            )
        return RemoteFile(url=url, path=name, size=head.size, etag=head.etag, modified=head.modified)


def _revision(files: Sequence[RemoteFile]) -> str:
    return short_hash(*(f"{file.path}\t{file.size}\t{file.modified}\t{file.etag}" for file in files))


def _claims(claimant: Claimant, location: str, where: str, files: Sequence[RemoteFile]) -> Iterable[Claim]:
    name = files[0].path if _is_url(location) else Path(location).name
    yield claimant.says("core.title", name, "name", name, "the name of the file or folder")
    yield claimant.says("provenance.download_url", where, "location", location)
    yield claimant.says("technical.file_count", len(files), "names", len(files))
    if all(file.size is not None for file in files):
        total = sum(file.size or 0 for file in files)
        yield claimant.says("technical.file_size_bytes", total, "sizes", total)


def _is_url(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


def _absolute(location: str) -> str:
    try:
        if _is_url(location):
            urlsplit(location)
            return _in_utf8(location)
        if location.lower().startswith("file://"):
            location = url2pathname(urlsplit(location).path)
        if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+://", location):
            raise InputRefused(
                f"Ingest {location}",
                f"addresses of the kind {location.split(':')[0]}:// are not read",
                "Give a path, or an http(s) URL",
            )
        return _in_utf8(str(Path(location).expanduser().resolve()))
    # RuntimeError: a loop of links, or an unknown user after `~`; ValueError: a NUL, or no URL after all.
    except (RuntimeError, OSError, ValueError) as error:
        raise InputRefused(f"Ingest {location!r}", str(error), "Check the path or URL") from error


def _in_utf8(name: str) -> str:
    """`name` itself: records and the catalogue keep names as UTF-8, so another encoding is refused."""
    shown = name.encode(errors="backslashreplace").decode()
    if shown != name:
        raise InputRefused(f"Ingest {shown}", "its name is not UTF-8", "Rename it")
    return name


def _stem(absolute: str) -> str:
    name = unquote(urlsplit(absolute).path).rstrip("/") if _is_url(absolute) else absolute
    stem = re.sub(r"[^a-z0-9]+", "-", Path(name).name.split(".")[0].lower()).strip("-")
    return stem[:80] or "data"


def _location(spec: DatasetSpec) -> str:
    if not spec.location:
        raise InputRefused(
            f"Find the files of {spec.dataset_id}",
            "its spec has no location",
            "Set `location` to a path or an http(s) URL",
        )
    return spec.location


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    existing = next((parent for parent in path.parents if parent.is_dir()), Path(path.anchor))
    lost = path.relative_to(existing).parts[0]
    try:
        siblings = sorted(child.name for child in existing.iterdir())
    except OSError:
        siblings = []
    nearest = difflib.get_close_matches(lost, siblings, n=3, cutoff=0.5)
    hint = f"nearest there: {', '.join(nearest)}" if nearest else f"{existing} holds nothing like it"
    raise NotFound(f"Read {path}", f"{existing / lost} does not exist; {hint}", "Check the path")


def _chosen(folder: Path, include: Sequence[str]) -> list[Path]:
    """The folder's data files at its top level, in number order."""
    visible = [c for c in folder.iterdir() if not c.name.startswith(".") and c.name.lower() not in CLUTTER]
    files = sorted((c for c in visible if not c.is_dir()), key=natural_key)
    tried = f"Choose the files of {folder}"
    marks = {mark: kind for kind, names in FOLDERS.items() for mark in names}
    kind = next((marks[child.name] for child in folder.iterdir() if child.name in marks), None)
    if kind is not None:
        raise UnsupportedFormat(tried, f"it is a {kind} array or image", f"Formats read: {READ_TODAY}")
    if not files:
        subfolders = ", ".join(sorted(c.name for c in visible)[:5])
        raise InputRefused(
            tried,
            f"it holds no file, only the folders {subfolders}" if subfolders else "it is empty",
            "Give the folder that holds the files themselves",
        )
    if include:
        chosen = [file for file in files if any(fnmatchcase(file.name, glob) for glob in include)]
        if not chosen:
            raise InputRefused(
                tried,
                f"none of its {len(files)} files ({files[0].name}, …) matches {' or '.join(include)}",
                "Correct `include`",
            )
        return chosen
    by_format = Counter(title for file in files if (title := _readable_format(file)))
    if not by_format:
        if len(files) == 1:
            return files  # the readers know best what to say of it
        raise UnsupportedFormat(
            tried,
            f"none of its {len(files)} files ({files[0].name}, …) has the suffix of a format we read",
            f"Formats read: {READ_TODAY}. Files with other names can be named with `include`",
        )
    if len(by_format) > 1:
        counts = ", ".join(f"{n} {title}" for title, n in by_format.most_common())
        raise InputRefused(
            tried, f"it mixes formats: {counts}", 'Choose one with `include`, such as include: ["*.tif"]'
        )
    return [file for file in files if _readable_format(file)]


def _readable_format(path: Path) -> str | None:
    """The title of the format that the file's suffix stands for, where there is a reader for it."""
    suffix = path.suffix.lower()
    return next((fmt.title for fmt in FORMATS if fmt.reader and suffix in fmt.suffixes), None)


def _local(path: Path) -> RemoteFile:
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise NotFound(
            f"Read {path}", "it is a link to a file that does not exist", "Remove or repair the link"
        ) from error
    if not os.access(path, os.R_OK):
        raise InputRefused(f"Read {path}", "its permissions do not allow it", "Make it readable")
    return RemoteFile(
        url=path.absolute().as_uri(),
        path=_in_utf8(path.name),
        size=stat.st_size,
        modified=str(stat.st_mtime_ns),
    )
