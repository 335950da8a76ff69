"""A volume over files of the spool, for machines whose own spool does not have them.

Readers keep the paths of their files. Pickled here, those below the spool's folder are written relative to
it; unpickled on another machine, they lead into the spool of that machine, and a file is brought from the
object store when a read first needs it.
"""

import io
import pickle
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.files import Manifest
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.progress import Silent
from em_pipeline.formats.base import used_of
from em_pipeline.settings import load_settings
from em_pipeline.storage import keys
from em_pipeline.storage.bring import HELD_BYTES
from em_pipeline.storage.download import changed_since
from em_pipeline.storage.listing import WORK
from em_pipeline.storage.lock import turn
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.spool import Spool, spooled_in

_TURN: Final = "bring.lock"
_LAST: Final = chr(0x10FFFF)  # sorts after everything that a path goes on with


@dataclass(frozen=True)
class Spooled:
    """The raw files of a revision: in `folder`, in the spool of a machine, and in `files` of the store.

    `documents` is where their manifest lies.
    """

    folder: Path
    dataset_id: str
    revision: str
    files: ObjectBlobs
    documents: ObjectBlobs

    def manifest(self) -> Manifest:
        """Raises `StorageFailed`."""
        name = keys.manifest(self.dataset_id, self.revision).rpartition("/")[2]
        return Manifest.model_validate_json(self.documents.read(name))

    def here(self) -> "Spooled":
        """Where they are, or will be, on this machine: in the spool that it was told of, or the same folder.

        Raises `InputRefused` where this machine's settings cannot be read.
        """
        settings = load_settings().settings
        if settings.spool is None and self.folder.is_dir():
            return self
        folder = spooled_in(settings.spool_folder, self.dataset_id, self.revision)
        return replace(self, folder=folder.absolute())


class SpooledVolume:
    """Implements `LazyVolume` and `Fetching` over `volume`, whose files are `spooled`, or come by `fetcher`.

    `scratch_bytes` are those of `volume`, which may need its files to know them. Unpickling raises
    `StorageFailed` where the store does not answer, and like `Spooled.here`.
    """

    fetch_bytes = HELD_BYTES

    def __init__(
        self, volume: LazyVolume, spooled: Spooled, scratch_bytes: int, fetcher: "Fetcher | None" = None
    ) -> None:
        self._volume = volume
        self._spooled = spooled
        self._scratch_bytes = scratch_bytes
        self._fetcher = fetcher

    def __reduce__(self) -> tuple[Any, ...]:
        payload, _ = _packed(self._volume, self._spooled.folder)
        return _on_this_machine, (payload, self._spooled, self._scratch_bytes)

    def lacks(self, box: BoundingBox) -> bool:
        return self._fetcher is not None and self._fetcher.lacks(self._used(box))

    def read(self, box: BoundingBox, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `LazyVolume.read`. Raises besides what bringing files does (`Spool.bring`)."""
        if self._fetcher is not None:
            self._fetcher.fetch(self._used(box))
        return self._volume.read(box, out)

    def _used(self, box: BoundingBox) -> frozenset[str]:
        item = used_of(self._volume, box)
        return self._used_by_all if item is self._volume else self._paths_in(item)

    @cached_property
    def _used_by_all(self) -> frozenset[str]:
        return self._paths_in(self._volume)

    def _paths_in(self, item: object) -> frozenset[str]:
        return _packed(item, self._spooled.folder)[1]

    @property
    def shape(self) -> Shape:
        return self._volume.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._volume.dtype

    @property
    def chunk_shape(self) -> Shape:
        return self._volume.chunk_shape

    @property
    def decode_shape(self) -> Shape:
        return self._volume.decode_shape

    @property
    def voxel_size_nm(self) -> PartialVoxelSize:
        return self._volume.voxel_size_nm

    @property
    def translation_nm(self) -> tuple[float, float, float]:
        return self._volume.translation_nm

    @property
    def missing(self) -> Any:
        return self._volume.missing

    @property
    def scratch_bytes(self) -> int:
        return self._scratch_bytes

    @property
    def claims(self) -> Sequence[Claim]:
        return self._volume.claims

    @property
    def metadata(self) -> dict[str, Any]:
        return self._volume.metadata

    def close(self) -> None:
        self._volume.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Fetcher:
    """Brings files of `spooled` when they are first asked for, by their paths or those of folders of them.

    Safe to use from several threads, and from several processes of one machine.
    """

    def __init__(self, spooled: Spooled) -> None:
        self._manifest = spooled.manifest()
        self._files = {file.path: file for file in self._manifest.files if not file.in_place}
        self._paths = sorted(self._files)
        self._spool = Spool(spooled.folder, spooled.files, spooled.documents, Silent())
        self._held: set[str] = set()  # paths as they were asked for, of folders too
        self._lock = threading.Lock()

    def lacks(self, paths: frozenset[str]) -> bool:
        with self._lock:
            return bool(self._lacking(paths))

    def fetch(self, paths: frozenset[str]) -> None:
        """Raises like `Spool.bring`."""
        if paths <= self._held:  # no need to wait for what others are bringing
            return
        with self._lock:
            if not self._lacking(paths):
                return
            turns = self._spool.folder / WORK / _TURN
            with turn(turns, f"Bring files to {self._spool.folder}"):
                self._spool.bring(self._only(self._lacking(paths)))
            self._held |= paths

    def _lacking(self, paths: frozenset[str]) -> set[str]:
        """Paths of files that are not known to be held, and are not."""
        asked = {path: self._below(path) for path in paths - self._held}
        if not asked:
            return set()
        lacking = set(changed_since(self._only(set().union(*asked.values())), self._spool.folder))
        self._held.update(path for path, files in asked.items() if not files & lacking)
        return lacking

    def _below(self, path: str) -> set[str]:
        """The file of that path, or all those below that folder."""
        if path in self._files:
            return {path}
        start = f"{path}/" if path else ""
        first = bisect_left(self._paths, start)
        return set(self._paths[first : bisect_left(self._paths, f"{start}{_LAST}", first)])

    def _only(self, paths: set[str]) -> Manifest:
        return self._manifest.model_copy(update={"files": tuple(self._files[path] for path in sorted(paths))})


def _on_this_machine(payload: bytes, spooled: Spooled, scratch_bytes: int) -> SpooledVolume:
    here = spooled.here()
    volume: LazyVolume = _Unpickler(io.BytesIO(payload), here.folder).load()
    return SpooledVolume(volume, here, scratch_bytes, Fetcher(here))


def _packed(item: object, folder: Path) -> tuple[bytes, frozenset[str]]:
    """`item`, pickled, and the paths in it that lie in `folder`, relative to it ("" for itself)."""
    sink = io.BytesIO()
    pickler = _Pickler(sink, folder)
    pickler.dump(item)
    return sink.getvalue(), frozenset(pickler.paths)


class _Pickler(pickle.Pickler):
    """Writes paths in `folder`, `Path`s and texts alike (some decoders want texts), without it."""

    def __init__(self, sink: io.BytesIO, folder: Path) -> None:
        super().__init__(sink, protocol=5)
        self._start = str(folder)
        self.paths: set[str] = set()

    def persistent_id(self, item: Any) -> tuple[type, str] | None:
        if isinstance(item, PurePath) or type(item) is str:
            text = str(item)
            if text == self._start or text.startswith(f"{self._start}/"):
                rest = text[len(self._start) :]
                self.paths.add(rest.strip("/"))
                return (str if type(item) is str else Path), rest
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, source: io.BytesIO, folder: Path) -> None:
        super().__init__(source)
        self._folder = folder

    def persistent_load(self, found: tuple[type, str]) -> Any:
        kind, rest = found
        return kind(f"{self._folder}{rest}")
