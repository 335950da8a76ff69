"""Where the raw files of one revision are downloaded, kept and read.

A store on a disk holds them itself. Downloads into an object store go through the *spool*, a folder of this
machine: ranges are written and resumed there, and each file is uploaded when it is whole. What a later step
does not find in the spool it brings back. Files that the user gave in place stay where they are.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from em_pipeline.domain.files import Manifest, RawFile
from em_pipeline.domain.identity import check_dataset_id
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.ingest.spooled_volume import Spooled, SpooledVolume
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.base import HeldFile
from em_pipeline.storage import keys
from em_pipeline.storage.download import changed_since
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.storage.local_files import path_of_file_url, storage_errors
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.spool import Spool, spooled_in


class RawFiles(Protocol):
    """Every method raises `StorageFailed` where the storage refuses."""

    @property
    def folder(self) -> Path:
        """Where a download puts them."""
        ...

    def taking(self) -> AbstractContextManager[Callable[[RawFile], None]]:
        """During a download: make the store hold what is handed over, as far as that goes meanwhile."""
        ...

    def keep(self, manifest: Manifest) -> None:
        """Make the store hold what was downloaded. Raises `ChecksumMismatch` where that changed since."""
        ...

    def changed(self, manifest: Manifest) -> list[str]:
        """Paths of the manifest's files that are gone or no longer what it says."""
        ...

    def changed_here(self, manifest: Manifest) -> list[str]:
        """Paths of the manifest's files that this machine does not hold, or no longer as it says."""
        ...

    def bring(self, manifest: Manifest) -> None:
        """Make this machine hold them, below `folder`. Raises `ChecksumMismatch`, `NotFound`."""
        ...

    def recall(self, manifest: Manifest) -> None:
        """Before a download: make this machine hold what the store still holds. Raises like `bring`."""
        ...

    def let_go(self, manifest: Manifest) -> None:
        """Delete what this machine holds beside the store."""
        ...


def raw_files(workspace: Workspace, dataset_id: str, revision: str) -> RawFiles:
    """Those of a revision, in the workspace's store."""
    place = workspace.store.blobs(keys.raw_files(dataset_id, revision))
    if isinstance(place, ObjectBlobs):
        documents = workspace.store.blobs(keys.raw_folder(dataset_id, revision))
        folder = spooled_in(workspace.spool, dataset_id, revision)
        return Spool(folder, place, documents, workspace.progress)
    if isinstance(place, LocalBlobs):
        return _InStore(place.root)
    raise TypeError(f"{place} is neither on a disk nor in an object store")


def for_any_machine(workspace: Workspace, manifest: Manifest, volume: LazyVolume) -> LazyVolume:
    """`volume` over files of `manifest`, such that it can be pickled for machines that do not have them."""
    dataset_id, revision = manifest.dataset_id, manifest.revision
    files = workspace.store.blobs(keys.raw_files(dataset_id, revision))
    documents = workspace.store.blobs(keys.raw_folder(dataset_id, revision))
    if not isinstance(files, ObjectBlobs) or not isinstance(documents, ObjectBlobs):
        return volume
    folder = spooled_in(workspace.spool, dataset_id, revision).absolute()
    spooled = Spooled(folder, dataset_id, revision, files, documents)
    return SpooledVolume(volume, spooled, volume.scratch_bytes)


def held_by(raw: RawFiles, manifest: Manifest) -> Sequence[HeldFile]:
    """The manifest's files, on this machine."""
    raw.bring(manifest)
    return [HeldFile(file, _path(file, raw.folder)) for file in manifest.files]


def empty_spool(workspace: Workspace, dataset_id: str) -> None:
    """Delete what the spool has of a dataset. Raises `StorageFailed`."""
    folder = workspace.spool / check_dataset_id(dataset_id)
    with storage_errors(f"Delete {folder}"):
        if folder.exists():
            shutil.rmtree(folder)


class _InStore:
    """Files that lie in the store on a disk of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def taking(self) -> AbstractContextManager[Callable[[RawFile], None]]:
        return nullcontext(lambda _: None)

    def keep(self, manifest: Manifest) -> None: ...

    def bring(self, manifest: Manifest) -> None: ...

    def recall(self, manifest: Manifest) -> None: ...

    def let_go(self, manifest: Manifest) -> None: ...

    def changed(self, manifest: Manifest) -> list[str]:
        if not self.folder.exists():
            return [file.path for file in manifest.files]
        return changed_since(manifest, self.folder)

    def changed_here(self, manifest: Manifest) -> list[str]:
        return self.changed(manifest)


def _path(file: RawFile, folder: Path) -> Path:
    return path_of_file_url(file.url) if file.in_place else folder / file.path
