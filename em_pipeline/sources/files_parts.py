"""The image and the label images of a dataset of files: each files, or an array stored as many objects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import FORMATS, RAW_SUFFIXES
from em_pipeline.formats.precomputed import open_precomputed
from em_pipeline.sources import array_source, precomputed_store
from em_pipeline.sources.array_source import IMAGE, HeldImage
from em_pipeline.sources.array_source_address import (
    DOCUMENTS,
    Containers,
    channel_of,
    image_by_address,
    is_remote,
    label_image_by_name,
)
from em_pipeline.sources.autoindex import plain
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.files_local import kind_of, local_files
from em_pipeline.sources.levels import refuse_levels
from em_pipeline.sources.precomputed_store import Wanted
from em_pipeline.sources.region_size import SizeLimit
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import https_url

ARRAYS, PRECOMPUTED, FILE = "arrays", "precomputed", "file"
# What a folder has at least one of where it is an array, an image, or a container of them.
MARKS = (*DOCUMENTS, ".zgroup")
# Suffixes of files: no array has them.
FILE_SUFFIXES = frozenset(suffix for known in FORMATS for suffix in known.suffixes) | set(RAW_SUFFIXES)


@dataclass(frozen=True)
class Look:
    """How addresses are looked at, and how much of a remote array is taken at most."""

    client: PortalClient
    containers: Containers
    limit: SizeLimit


@dataclass(frozen=True)
class Part:
    """One image: its files with their paths in the raw folder, the revision they are at, and what they say.

    `image` is the array or precomputed volume that they are of, None for other files.
    """

    files: tuple[RemoteFile, ...]
    revision: str
    claims: tuple[Claim, ...] = ()
    image: HeldImage | Wanted | None = None


def image_part(address: str, spec: DatasetSpec, look: Look) -> Part:
    """The image at the spec's location. Raises like the functions for what is found there."""
    kind = _kind(address, look.containers)
    if kind == ARRAYS:
        return _of_image(image_by_address(address, spec, look.containers), look)
    if kind == PRECOMPUTED:
        volume = precomputed_store.image_at(precomputed_store.store_at(address, look.client), spec)
        if is_remote(address):
            precomputed_store.check_size(volume, spec, look.limit)
        return _of_volume(volume)
    refuse_levels(spec, "it is files of one image")
    return _in_place(_files(address, spec.include, look.client), "")


def label_part(entry: str, spec: DatasetSpec, image: Part, look: Look) -> Part:
    """The label image that an entry of `DatasetSpec.label_images` means: a name, or `name=address`."""
    name, given, address = entry.partition("=")
    if isinstance(image.image, HeldImage) and (not given or _kind(address, look.containers) == ARRAYS):
        return _of_image(label_image_by_name(entry, image.image, look.containers), look)
    if not given:
        raise InputRefused(
            f"Find the label image {name!r} of {spec.dataset_id}",
            "only OME-Zarr images list label images",
            "Give its address: name=path, or name=URL",
        )
    place = f"labels/{name}"
    kind = _kind(address, look.containers)
    if kind == ARRAYS:
        whole = spec.model_copy(update={"bounding_box": None, "level": None, "image_set": None})
        alone = image_by_address(address, whole, look.containers)
        return _of_image(HeldImage(alone.container, alone.layout, alone.box, place), look)
    if kind == PRECOMPUTED:
        store = precomputed_store.store_at(address, look.client)
        if isinstance(image.image, Wanted):
            return _of_volume(precomputed_store.labels_at(store, name, image.image.region))
        whole = spec.model_copy(update={"bounding_box": None, "level": None})
        return _of_volume(replace(precomputed_store.image_at(store, whole), place=place))
    return _in_place(_files(address, (), look.client), f"{place}/")


def open_part(files: Sequence[HeldFile], place: str, spec: DatasetSpec) -> LazyVolume | None:
    """The array below `place` of the raw files; None where there is none, or files of another kind."""
    first = next((held for held in files if held.file.path.startswith(f"{place}/")), None)
    if first is None:
        return None
    name = PurePosixPath(first.file.path).name
    label = place.removeprefix("labels/")
    if name == "info" and place == IMAGE:
        return precomputed_store.open_image(spec, files)
    if name == "info" and any(held.file.path == f"{IMAGE}/info" for held in files):
        region = precomputed_store.held_region(spec, files)
        return precomputed_store.open_label_images([label], region, files)[label]
    if name == "info":
        return open_precomputed(first.path.parent)
    if name not in MARKS:
        return None
    if place == IMAGE:
        return array_source.open_image(files, channel_of(spec))
    return array_source.open_label_images([label], files)[label]


def plain_revision(files: Sequence[RemoteFile]) -> str:
    """Changes when a name, a size, a time or an entity tag does."""
    return short_hash(*(f"{file.path}\t{file.size}\t{file.modified}\t{file.etag}" for file in files))


def _of_image(image: HeldImage, look: Look) -> Part:
    found = array_source.survey([image], look.limit)
    return Part(tuple(found.files), found.revision, tuple(array_source.layout_claims(image)), image)


def _of_volume(wanted: Wanted) -> Part:
    files = tuple(wanted.files())
    revision = short_hash(plain_revision(files), wanted.text)
    return Part(files, revision, tuple(wanted.claims()), wanted)


def _in_place(files: Sequence[RemoteFile], prefix: str) -> Part:
    placed = tuple(file.model_copy(update={"path": f"{prefix}{file.path}"}) for file in files)
    return Part(placed, plain_revision(placed))


def _kind(address: str, containers: Containers) -> str:
    """What lies at an address, by the documents that only arrays have."""
    if not is_remote(address):
        found = kind_of(Path(address))
        return {"zarr": ARRAYS, "n5": ARRAYS, "precomputed": PRECOMPUTED}.get(found, FILE)
    parts = urlsplit(address)
    if parts.query or PurePosixPath(parts.path).suffix.lower() in FILE_SUFFIXES:
        return FILE
    container = containers(address)
    if any(container.fetch(mark) is not None for mark in MARKS):
        return ARRAYS
    return PRECOMPUTED if container.fetch("info") is not None else FILE


def _files(address: str, include: Sequence[str], client: PortalClient) -> list[RemoteFile]:
    return [_remote(address, client)] if is_remote(address) else local_files(Path(address), include)


def _remote(address: str, client: PortalClient) -> RemoteFile:
    url = https_url(address, client.endpoints)
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not plain(name):
        raise InputRefused(
            f"Ingest {address}",
            f"there is no array (looked for {', '.join(MARKS)}, info), and the address does not end in a "
            "file's name",
            "Give the URL of one file, or of one array",
        )
    try:
        head = client.head(url)
    except NotFound as error:
        tried = "" if PurePosixPath(name).suffix.lower() in FILE_SUFFIXES else _looked_for()
        raise NotFound(error.tried, f"{error.found}{tried}", error.to_do) from error
    if head.size is None and head.etag is None and head.modified is None:
        raise RecordInvalid(
            f"Ask for {url}",
            "the server tells neither its size nor its version, so a change could not be seen",
            "Download the file and ingest the local copy",
        )
    return RemoteFile(url=url, path=name, size=head.size, etag=head.etag, modified=head.modified)


def _looked_for() -> str:
    return f", and there is no array either (looked for {', '.join(MARKS)}, info)"
