"""Files and arrays of one's own, or at any web address: no portal, so nothing but they themselves speak."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from em_pipeline.domain.errors import InputRefused, RecordInvalid, UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.geometry import PartialVoxelSize
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import open_volume
from em_pipeline.sources.array_source_address import container_at, is_remote
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.files_local import in_utf8
from em_pipeline.sources.files_parts import Look, Part, image_part, label_part, open_part
from em_pipeline.sources.region_size import LARGEST_GB, SizeLimit
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints, bucket_and_key, is_object

EXTRACTOR = "em_pipeline.sources.files"


def spec_for(
    location: str | os.PathLike[str],
    *,
    name: str | None = None,
    voxel_size: PartialVoxelSize | None = None,
    reason: str = "",
    include: Sequence[str] = (),
) -> DatasetSpec:
    """The spec of a path, or of an s3://, gs:// or http(s):// URL; the same arguments give the same spec.

    With `name`, the dataset is `files-<name>`: a person who moves the file keeps the dataset. Without, it is
    `files-<stem>-<6 hexadecimal digits>` of the absolute location, so that two files called `stack.tif` in
    two places never share an id. `voxel_size` (nm, z-y-x) overrides what the files say, for `reason`.
    Raises `InputRefused` for a name that leaves nothing for an id, an address of another kind, and a path
    that cannot be followed or is not UTF-8.
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
    """`spec.location`: a file, a folder of files, or an array (zarr, N5, precomputed), here or on the web.

    Local files stay where they are. Of a folder of files, the top level counts; hidden files and clutter do
    not. `spec.image_set` is the path of an image inside a container or HDF5 file, `spec.level` one of its
    levels. `spec.label_images` are `name=address` of files or arrays, or names that an OME-Zarr image lists.
    The setting `s3` is the http(s) base of another server that answers for s3:// addresses.
    At most `largest_gb` of a remote array, once decoded, are taken.
    """

    slug = "files"
    institution = "local"
    licence_policy = "Nothing is known of the licence; state it with an override of rights.licence."
    max_connections = 4
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
        """Nothing: there is no portal to list, and this machine's files are not searched."""
        return ()

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """Names, sizes and times of the files. The revision changes when any of these does.

        Raises `NotFound` with the nearest names for a path that does not exist, `InputRefused` for a folder
        that is empty, unreadable or holds several formats, and what reading an array's documents raises.
        """
        parts = self._parts(spec)
        return PortalRecord(
            revision=_revision(parts),
            claims=tuple(_claims(_location(spec), parts)),
            facts={"files": sum(len(part.files) for part in parts)},
        )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """file:// URLs of local files, or web addresses.

        Raises `RecordInvalid` where the files changed since `record` was made: they are another revision.
        """
        parts = self._parts(spec)
        if _revision(parts) != record.revision:
            raise RecordInvalid(
                f"List the files of {spec.dataset_id} at revision {record.revision}",
                f"{_location(spec)} has changed since; it is now at revision {_revision(parts)}",
                "Ingest it again, so that a record is made of what it is now",
            )
        return [file for part in parts for file in part.files]

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        """The volume in those files. Several files must be the sections of one volume."""
        held = [one for one in files if not one.file.path.startswith("labels/")]
        volume = open_part(held, "image", spec)
        if volume is not None:
            return volume
        path = spec.image_set if isinstance(spec.image_set, str) else None
        try:
            return open_volume(
                [one.path for one in held],
                name=spec.dataset_id,
                image=path,
                level=spec.level or None,  # files have one level, which may be called 0
                raw=spec.raw_layout,
            )
        except (UnsupportedFormat, InputRefused) as error:
            if len(held) == 1:
                raise
            raise _explained(error, held, _location(spec)) from error

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        """The label images that the spec names, whatever their formats."""
        images: dict[str, LazyVolume] = {}
        for name in spec.label_names:
            place = f"labels/{name}"
            held = [one for one in files if one.file.path.startswith(f"{place}/")]
            images[name] = open_part(files, place, spec) or open_volume([one.path for one in held], name=name)
        return images

    def _parts(self, spec: DatasetSpec) -> list[Part]:
        with PortalClient(
            connections=self.max_connections,
            timeout_s=self._timeout_s,
            retries=self._retries,
            backoff_s=self._backoff_s,
            endpoints=self._endpoints,
        ) as client:
            look = Look(client, partial(container_at, client=client), self.size_limit)
            image = image_part(_location(spec), spec, look)
            return [
                image,
                *(label_part(_entry(entry), spec, image, look) for entry in spec.label_images),
            ]


def _revision(parts: Sequence[Part]) -> str:
    revisions = [part.revision for part in parts]
    return revisions[0] if len(parts) == 1 else short_hash(*revisions)


def _explained(error: UnsupportedFormat | InputRefused, held: Sequence[HeldFile], location: str) -> Exception:
    names = ", ".join(one.file.path for one in held[:3])
    return type(error)(
        error.tried,
        error.found,
        f"{error.to_do}. "
        * bool(error.to_do)
        + f"{location} holds {len(held)} files ({names}, …): ingest one of them by its own path, or choose "
        "the sections of one volume with `include`",
    )


def _claims(location: str, parts: Sequence[Part]) -> Iterator[Claim]:
    where = location if is_remote(location) else Path(location).as_uri()
    name = unquote(urlsplit(location).path).rstrip("/") if is_remote(location) else location
    name = Path(name).name
    claimant = Claimant(where, EXTRACTOR)
    yield claimant.says("core.title", name, "name", name, "the name of the file or folder")
    yield claimant.says("provenance.download_url", where, "location", location)
    # Those of the label images are counted too, as they are once they are here.
    files = [file for one in parts for file in one.files]
    yield claimant.says("technical.file_count", len(files), "names", len(files))
    if all(file.size is not None for file in files):
        total = sum(file.size or 0 for file in files)
        yield claimant.says("technical.file_size_bytes", total, "sizes", total)
    yield from parts[0].claims


def _absolute(location: str) -> str:
    try:
        if is_object(location):
            bucket_and_key(location)
        if is_remote(location):
            urlsplit(location)
            return in_utf8(location)
        if location.lower().startswith("file://"):
            location = url2pathname(urlsplit(location).path)
        if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+://", location):
            raise InputRefused(
                f"Ingest {location}",
                f"addresses of the kind {location.split(':')[0]}:// are not read",
                "Give a path, or an http(s)://, s3:// or gs:// URL",
            )
        return in_utf8(str(Path(location).expanduser().resolve()))
    # RuntimeError: a loop of links, or an unknown user after `~`; ValueError: a NUL, or no URL after all.
    except (RuntimeError, OSError, ValueError) as error:
        raise InputRefused(f"Ingest {location!r}", str(error), "Check the path or URL") from error


def _entry(entry: str) -> str:
    """An entry of `label_images`, its address absolute."""
    name, given, address = entry.partition("=")
    return f"{name}={_absolute(address)}" if given else entry


def _stem(absolute: str) -> str:
    name = unquote(urlsplit(absolute).path).rstrip("/") if is_remote(absolute) else absolute
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
