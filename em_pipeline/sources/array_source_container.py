"""Where a container of arrays lies and which objects are there: a folder, a web server, an object store.

An object store is listed; a web server is not, and only tells of an object when it is fetched.
"""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats.arrays import SPATIAL, ArrayLayout
from em_pipeline.formats.held import object_names
from em_pipeline.sources.documents import fetch_json, json_document
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import bucket_and_key, https_url
from em_pipeline.storage.objects import ObjectStoreClient

# Keys in one answer to a listing (ListObjectsV2 of S3, Objects: list of Google Cloud Storage).
LISTED = 1000
# Requests to a store at once, within what its client allows.
CONNECTIONS = 8
# Objects that are asked for on a web server to learn how it names them.
SAMPLES = 3


@dataclass(frozen=True)
class Stored:
    """An object: its key below the container, its size in bytes, and what changes when it does."""

    key: str
    size: int | None
    etag: str | None = None
    modified: str | None = None


class Container(Protocol):
    """Keys and objects. `certain` says whether `stored` knows what is there, or only what may be."""

    @property
    def certain(self) -> bool: ...

    def url(self, key: str) -> str:
        """The address of an object, as `RemoteFile.url` takes it."""
        ...

    def fetch(self, key: str) -> bytes | None:
        """A JSON document, None where there certainly is none. Raises like `documents.fetch_json`."""
        ...

    def document(self, key: str, content: bytes) -> Stored:
        """What is known of a document that `fetch` returned."""
        ...

    def stored(self, layout: ArrayLayout, box: BoundingBox) -> Iterator[Stored]:
        """The array's objects that meet `box` (z-y-x voxels), in the order of `layout.objects`.

        Where it is `certain`, only those that there are.
        """
        ...

    def nested(self, layout: ArrayLayout, box: BoundingBox) -> bool:
        """Whether the keys of a zarr v2 array are nested (`0/0/0`), which old writers do not say."""
        ...

    def names(self, prefix: str) -> tuple[str, ...]:
        """What lies directly below `prefix`, folders with a slash at the end; empty where unknown."""
        ...


@dataclass(frozen=True)
class FolderContainer:
    """A container in a folder of this machine; its files stay where they are."""

    folder: Path
    certain: bool = True

    def url(self, key: str) -> str:
        return (self.folder / key).as_uri()

    def fetch(self, key: str) -> bytes | None:
        path = self.folder / key
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def document(self, key: str, content: bytes) -> Stored:
        return self._found(key) or Stored(key, len(content))

    def stored(self, layout: ArrayLayout, box: BoundingBox) -> Iterator[Stored]:
        """By listing: of a large array, most objects may never have been written."""
        wanted = [_indices(layout, box, dim) for dim in range(len(layout.axes))]
        try:
            names = list(object_names(self.folder / layout.path, layout.array, wanted))
        except OSError as error:
            raise _unreadable(Path(error.filename or self.folder), error) from error
        there = {index for name in names if (index := layout.grid_index(name)) is not None}
        for key in map(layout.key, sorted(there)):
            if found := self._found(key):
                yield found

    def nested(self, layout: ArrayLayout, box: BoundingBox) -> bool:  # noqa: ARG002
        return _has_numbered_folders(self.names(layout.path))

    def names(self, prefix: str) -> tuple[str, ...]:
        try:
            return tuple(
                sorted(f"{e.name}/" if e.is_dir() else e.name for e in (self.folder / prefix).iterdir())
            )
        except OSError:
            return ()

    def _found(self, key: str) -> Stored | None:
        path = self.folder / key
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        return Stored(key, stat.st_size, modified=str(stat.st_mtime_ns))


@dataclass(frozen=True)
class WebContainer:
    """A container on a web server that cannot be listed; `base` is its http(s) URL."""

    base: str
    client: PortalClient
    certain: bool = False

    def url(self, key: str) -> str:
        return f"{self.base}/{quote(key)}" if key else self.base

    def fetch(self, key: str) -> bytes | None:
        try:
            return fetch_json(self.client, self.url(key)).text.encode()
        except NotFound:
            return None

    def document(self, key: str, content: bytes) -> Stored:
        return Stored(key, len(content))

    def stored(self, layout: ArrayLayout, box: BoundingBox) -> Iterator[Stored]:
        return (Stored(key, None) for key, _ in layout.objects(box))

    def nested(self, layout: ArrayLayout, box: BoundingBox) -> bool:
        """By the first objects of the box: nothing can be listed."""
        return any(self._is_there(key) for key, _ in islice(as_nested(layout).objects(box), SAMPLES))

    def names(self, prefix: str) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def _is_there(self, key: str) -> bool:
        try:
            self.client.head(self.url(key))
        except NotFound:
            return False
        return True


@dataclass(frozen=True)
class StoreContainer:
    """A container in a public bucket; `address` is s3:// or gs://, asked at the client's endpoints."""

    address: str
    client: PortalClient
    certain: bool = True

    def url(self, key: str) -> str:
        return https_url(self._address(key), self.client.endpoints).rstrip("/")

    def fetch(self, key: str) -> bytes | None:
        data = ObjectStoreClient(self.client).get(self._address(key))
        if data is not None:
            json_document(self.url(key), data.decode(errors="replace"))
        return data

    def document(self, key: str, content: bytes) -> Stored:
        return Stored(key, len(content))

    def stored(self, layout: ArrayLayout, box: BoundingBox) -> Iterator[Stored]:
        wanted = [key for key, _ in layout.objects(box)]
        below = prefixes(layout, box)
        store = ObjectStoreClient(self.client)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            if below is None:
                found = list(pool.map(lambda key: store.head(self._address(key)), wanted))
            else:
                listings = pool.map(lambda prefix: store.list(self._address(prefix)).objects, below)
                found = [entry for listing in listings for entry in listing]
        there = {self._below(entry.key): entry for entry in found if entry is not None}
        return (Stored(key, there[key].size, there[key].etag) for key in wanted if key in there)

    def nested(self, layout: ArrayLayout, box: BoundingBox) -> bool:  # noqa: ARG002
        return _has_numbered_folders(self.names(f"{layout.path}/" if layout.path else ""))

    def names(self, prefix: str) -> tuple[str, ...]:
        listing = ObjectStoreClient(self.client).list(self._address(prefix), "/")
        keys = (*listing.prefixes, *(entry.key for entry in listing.objects))
        return tuple(self._below(key).removeprefix(prefix) for key in keys)

    def _address(self, key: str) -> str:
        return f"{self.address.rstrip('/')}/{key}"

    def _below(self, key: str) -> str:
        """A key of the bucket as one of the container."""
        root = bucket_and_key(self._address(""))[1]
        return key.removeprefix(root)


def as_nested(layout: ArrayLayout) -> ArrayLayout:
    """The layout with keys such as `0/0/0`."""
    return replace(layout, array=replace(layout.array, separator="/"))


def prefixes(layout: ArrayLayout, box: BoundingBox) -> list[str] | None:
    """Prefixes below which every object of `box` lies, such that listing them takes the fewest requests.

    None where it takes fewer to ask for each object by its key: a listing is paged by the keys that there
    may be below its prefix, so for a small box of a large array it is not the array that is listed.
    """
    array = layout.array
    grid = [-(-n // s) for n, s in zip(array.shape, array.stored, strict=True)]
    wanted = [_indices(layout, box, dim) for dim in range(len(grid))]
    # Of equals, the deeper: it answers with less, and its requests can be made at once.
    depths = range(len(grid), -1, -1)

    def requests(depth: int) -> int:
        prefixes = math.prod(len(indices) for indices in wanted[:depth])
        return prefixes * -(-math.prod(grid[depth:]) // LISTED)

    cheapest = min(depths, key=requests)
    if cheapest == len(grid):
        return None
    starts: list[tuple[int, ...]] = [()]
    for indices in wanted[:cheapest]:
        starts = [(*start, index) for start in starts for index in indices]
    return [array.key(start) + (array.separator if start else "/") for start in starts]


def _indices(layout: ArrayLayout, box: BoundingBox, dim: int) -> range:
    """Which objects along a stored axis meet the box."""
    axis, size = layout.axes[dim], layout.array.stored[dim]
    if axis in SPATIAL:
        along = box.slices[SPATIAL.index(axis)]
        return range(along.start // size, -(-along.stop // size))
    fixed = layout.at.get(axis, 0) // size
    return range(fixed, fixed + 1)


def _has_numbered_folders(names: Iterable[str]) -> bool:
    return any(name.endswith("/") and name[:-1].isdecimal() for name in names)


def _unreadable(path: Path, error: OSError) -> InputRefused:
    return InputRefused(f"Read {path}", error.strerror or str(error), "Make it readable")
