"""Where a precomputed volume lies, and which raw files hold a part of it.

The raw folder of a dataset mirrors what is held: below `image/` the image's volume, below `labels/<name>/` a
label image's, each with its `info`. A chunk is a file there, named as in an unsharded volume, its bytes as
they are at the source. Volumes on this machine stay where they are, shards and all.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from em_pipeline.domain.errors import Gone, InputRefused, NotFound, RecordInvalid, UnsupportedFormat
from em_pipeline.domain.evidence import Claim, Origin
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.precomputed import claims_of, open_precomputed
from em_pipeline.formats.precomputed_held import held_chunks
from em_pipeline.formats.precomputed_info import Info, Scale, parse_info
from em_pipeline.formats.sharded import ShardIndexes, Sharding
from em_pipeline.sources.base import HeldFile, PortalRecord
from em_pipeline.sources.documents import fetch_json
from em_pipeline.sources.region_size import ELSEWHERE, SizeLimit, check_bytes, check_extent
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import https_url

IMAGE = "image"
# Raw files are held in a folder of that name.
LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SCHEME = "precomputed://"
# How newer links write the same: gs://bucket/path/|neuroglancer-precomputed:
PIPED = "|neuroglancer-precomputed:"
# Requests for indexes at once, within what the client allows.
CONNECTIONS = 8
# Of an unsharded volume, so many chunks of the box are looked for before all of them are listed.
SAMPLES = 5


class Store(Protocol):
    """A precomputed volume at its address `url`."""

    @property
    def url(self) -> str: ...

    def info(self) -> str:
        """The `info` document. Raises `NotFound` where there is none."""
        ...

    def files(self, scale: Scale, box: BoundingBox, place: str) -> Iterator[RemoteFile]:
        """`info` and what holds the chunks that meet `box`, to be held in the folder `place`."""
        ...


@dataclass(frozen=True)
class RemoteStore:
    """A volume on a web server or in an object store; `url` is its http(s) URL."""

    url: str
    client: PortalClient

    def info(self) -> str:
        return fetch_json(self.client, f"{self.url}/info").text

    def files(self, scale: Scale, box: BoundingBox, place: str) -> Iterator[RemoteFile]:
        head = self.client.head(f"{self.url}/info")
        yield RemoteFile(
            url=f"{self.url}/info", path=f"{place}/info", size=head.size, etag=head.etag,
            modified=head.modified,
        )  # fmt: skip
        if scale.sharding is None:
            yield from self._alone(scale, box, place)
        else:
            yield from self._in_shards(scale, scale.sharding, box, place)

    def _in_shards(
        self, scale: Scale, sharding: Sharding, box: BoundingBox, place: str
    ) -> Iterator[RemoteFile]:
        """The byte range of each chunk that was written: the indexes say which those are.

        A shard none of whose chunks was written is not there (404); one that is gone (410) is no such shard.
        """
        grid, folder = scale.grid, f"{self.url}/{quote(scale.key)}"

        def read(name: str, offset: int, size: int) -> bytes | None:
            try:
                return self.client.get_range(f"{folder}/{name}", offset, size)
            except Gone:
                raise
            except NotFound:
                return None

        indexes = ShardIndexes(sharding, read, f"{self.url}/{scale.key}")
        chunks = list(grid.boxes(box))
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            places = pool.map(indexes.locate, map(grid.morton, chunks))
            found = [(chunk, at) for chunk, at in zip(chunks, places, strict=True) if at is not None]
        if not found:
            raise _nothing(self.url, scale, box)
        for chunk, at in found:
            yield RemoteFile(
                url=f"{folder}/{at.shard}", path=f"{place}/{scale.key}/{grid.name(chunk)}",
                offset=at.offset, size=at.size,
            )  # fmt: skip

    def _alone(self, scale: Scale, box: BoundingBox, place: str) -> Iterator[RemoteFile]:
        """Every chunk there may be; the server says which were never written."""
        folder = f"{self.url}/{quote(scale.key)}"
        suffix = self._suffix(scale, box, folder)
        for chunk in scale.grid.boxes(box):
            name = f"{scale.grid.name(chunk)}{suffix}"
            yield RemoteFile(url=f"{folder}/{name}", path=f"{place}/{scale.key}/{name}", may_be_absent=True)

    def _suffix(self, scale: Scale, box: BoundingBox, folder: str) -> str:
        """What follows the names of chunks: nothing, or `.gz` where a disk's files are served as they are.

        Raises `NotFound` where none of some chunks over the whole box is there by either name.
        """
        chunks = list(scale.grid.boxes(box))
        step = math.ceil(len(chunks) / SAMPLES)
        for chunk in [*chunks[step // 2 :: step], *chunks[:1]]:
            for suffix in ("", ".gz"):
                try:
                    self.client.head(f"{folder}/{scale.grid.name(chunk)}{suffix}")
                except NotFound:
                    continue
                return suffix
        raise _nothing(self.url, scale, box)


@dataclass(frozen=True)
class FolderStore:
    """A volume in a folder of this machine."""

    folder: Path

    @property
    def url(self) -> str:
        return self.folder.absolute().as_uri()

    def info(self) -> str:
        try:
            return (self.folder / "info").read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise NotFound(
                f"Open {self.folder}", "it has no file `info`", "Give the volume's folder"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputRefused(f"Open {self.folder / 'info'}", str(error), "Make it readable") from error

    def files(self, scale: Scale, box: BoundingBox, place: str) -> Iterator[RemoteFile]:
        try:
            held = held_chunks(self.folder / scale.key, scale, box)
        except OSError as error:
            raise InputRefused(
                f"Read {error.filename or self.folder}", str(error), "Make it readable"
            ) from error
        there = [f"{scale.key}/{name}" for name in held.names]
        if not there:
            raise _nothing(str(self.folder), scale, box)
        for name in ("info", *there):
            path = self.folder / name
            stat = path.stat()
            yield RemoteFile(
                url=path.absolute().as_uri(), path=f"{place}/{name}", size=stat.st_size,
                modified=str(stat.st_mtime_ns),
            )  # fmt: skip


def plain_address(address: str) -> str:
    """`address` without what says that a precomputed volume lies there."""
    return address.removeprefix(SCHEME).removesuffix(PIPED)


def store_at(address: str, client: PortalClient) -> Store:
    """The store at gs://, s3://, http(s)://, file:// or a path; `precomputed://` before it is understood."""
    plain = plain_address(address).rstrip("/")
    if plain.startswith("file://"):
        return FolderStore(Path(url2pathname(urlsplit(plain).path)))
    if "://" not in plain:
        return FolderStore(Path(plain).expanduser())
    return RemoteStore(https_url(plain, client.endpoints), client)


@dataclass(frozen=True)
class Region:
    """A `box` of voxels of the size `voxel_nm`, counted from the position `origin` (voxels); all z-y-x."""

    voxel_nm: tuple[float, float, float]
    origin: tuple[int, int, int]
    box: BoundingBox


class Sized(Protocol):
    """A box of a level of an image; `bytes` is its size once decoded, `str` what the level is."""

    @property
    def bytes(self) -> int: ...


class Described(Protocol):
    """A part of a volume: where it lies, the `text` that describes it, which part, and where it is held."""

    @property
    def url(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def region(self) -> Region: ...
    @property
    def place(self) -> str: ...


@dataclass(frozen=True)
class Wanted:
    """One scale of a volume, the `box` of it that is wanted (z-y-x voxels), held in the folder `place`."""

    store: Store
    text: str
    info: Info
    scale: Scale
    box: BoundingBox
    place: str

    def __str__(self) -> str:
        return f"level {self.scale}"

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def bytes(self) -> int:
        return self.box.shape.voxels * self.scale.dtype.itemsize

    @property
    def finest(self) -> bool:
        return self.scale == self.info.scale(None)

    @property
    def region(self) -> Region:
        return Region(self.scale.voxel_nm, self.scale.voxel_offset, self.box)

    def files(self) -> Iterator[RemoteFile]:
        """What holds the box. Raises `InputRefused` for more chunks than can be taken."""
        check_extent(self.url, str(self), self.box.shape, self.scale.chunk)
        return self.store.files(self.scale, self.box, self.place)

    def claims(self) -> list[Claim]:
        """What `info` says, as the portal's word."""
        where = f"{self.store.url}/info"
        claims = claims_of(self.info, self.scale, Path("info"))
        return [claim.told_by(Origin.PORTAL, where) for claim in claims]


def image_at(store: Store, spec: DatasetSpec) -> Wanted:
    """The scale that the spec names, and its box. Raises like `Store.info`, `parse_info` and `Info.scale`."""
    text = store.info()
    info = parse_info(text, f"{store.url}/info")
    scale = info.scale(spec.level)
    return Wanted(store, text, info, scale, box_in(spec, scale.shape, f"level {scale.key}"), IMAGE)


def labels_at(store: Store, name: str, region: Region) -> Wanted:
    """The label image whose voxels are as large as the region's, where its box lies.

    Raises `InputRefused` for another data type than unsigned integers, and where it does not meet the box.
    """
    text = store.info()
    info = parse_info(text, f"{store.url}/info")
    scale, part = _part_of_labels(info, name, region)
    return Wanted(store, text, info, scale, part, labels_place(name))


def _part_of_labels(info: Info, name: str, region: Region) -> tuple[Scale, BoundingBox]:
    tried = f"Take the label image {name!r} along"
    if info.kind == "image" or not info.data_type.startswith("uint"):
        found = f"the volume is {info.kind or 'of no stated kind'}, {info.data_type}"
        raise InputRefused(tried, found, "Name a segmentation")
    scale = info.scale_of(region.voxel_nm, f"the label image {name!r}")
    part = scale.part_at(region.box, region.origin)
    if part is None:
        raise InputRefused(tried, f"it has no voxels where {region.box} lies", "Choose another box")
    return scale, part


def box_in(spec: DatasetSpec, shape: Shape, what: str) -> BoundingBox:
    """The spec's box, by default all of `shape` (z-y-x). Raises `InputRefused` for one outside of it."""
    box = spec.bounding_box or BoundingBox.of_shape(shape)
    if not box.within(shape):
        raise InputRefused(
            f"Cut {tuple(box.start)}..{tuple(box.stop)} (z-y-x voxels) out of {spec.dataset_id}",
            f"{what} has {tuple(shape)} voxels, counted from its first",
            "Give a box inside it",
        )
    return box


def check_size(image: Sized, spec: DatasetSpec, limit: SizeLimit) -> None:
    """Raise `InputRefused`, with how to cut a region, where the box wanted exceeds the limit."""
    check_bytes(spec.dataset_id, str(image), image.bytes, limit)


def open_image(spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
    """The whole level that the spec names, of which `files` hold its box."""
    return open_precomputed(root_of(files, IMAGE), level=spec.level, box=spec.bounding_box)


def held_region(spec: DatasetSpec, files: Sequence[HeldFile]) -> Region:
    """Where the spec's box of the image in `files` lies."""
    scale = _info(root_of(files, IMAGE)).scale(spec.level)
    return Region(scale.voxel_nm, scale.voxel_offset, box_in(spec, scale.shape, f"level {scale.key}"))


def open_label_images(
    names: Iterable[str], region: Region, files: Sequence[HeldFile]
) -> dict[str, LazyVolume]:
    """Each whole, of which `files` hold the part in the `region` of the image."""
    images: dict[str, LazyVolume] = {}
    for name in names:
        root = root_of(files, labels_place(name))
        scale, part = _part_of_labels(_info(root), name, region)
        images[name] = open_precomputed(root, level=scale.key, box=part)
    return images


def labels_place(name: str) -> str:
    return f"labels/{name}"


def label_addresses(spec: DatasetSpec, known: Mapping[str, str]) -> dict[str, str]:
    """Name → address of the spec's label images: `name=address`, or one of the `known` names."""
    addresses: dict[str, str] = {}
    for entry in spec.label_images:
        name, given, address = entry.partition("=")
        if not LABEL_NAME.fullmatch(name):
            raise InputRefused(
                f"Take the label image {entry!r} of {spec.dataset_id}",
                f"{name!r} is no plain name",
                "Letters, digits, dots, dashes and underscores make one",
            )
        if not given and name not in known:
            raise NotFound(
                f"Find the label image {name!r} of {spec.dataset_id}",
                f"known by name are {', '.join(known) or 'none'}",
                "Give its address as name=address",
            )
        addresses[name] = address if given else known[name]
    return addresses


def root_of(files: Sequence[HeldFile], place: str) -> Path:
    """The folder that `files` hold as `place`. Raises `UnsupportedFormat` where its `info` is missing."""
    for held in files:
        if held.file.path == f"{place}/info":
            return held.path.parent
    raise UnsupportedFormat(f"Open {place}", "its `info` is not among the raw files", "Download them again")


def _info(root: Path) -> Info:
    return parse_info((root / "info").read_bytes(), f"{root.name}/info")


def _nothing(where: str, scale: Scale, box: BoundingBox) -> NotFound:
    return NotFound(
        f"Find the chunks of {tuple(box.start)}..{tuple(box.stop)} (z-y-x) of {where}",
        f"level {scale} holds none there",
        ELSEWHERE,
    )


def revision_of(wanted: Iterable[Described]) -> str:
    """Changes with a volume's `info` and its path at the server, and with the part of it that is wanted."""
    return short_hash(*(f"{one.place}\t{urlsplit(one.url).path}\t{one.region}\t{one.text}" for one in wanted))


def check_unchanged(spec: DatasetSpec, record: PortalRecord, revision: str) -> None:
    """Raise `RecordInvalid` where the volumes are no longer at the record's revision."""
    if revision != record.revision:
        raise RecordInvalid(
            f"List the files of {spec.dataset_id} at revision {record.revision}",
            f"an `info` has changed since; it is now at revision {revision}",
            "Ingest it again, so that a record is made of what it is now",
        )
