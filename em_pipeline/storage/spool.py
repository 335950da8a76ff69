"""Raw files on their way into an object store and back: a folder of this machine, and what the store holds.

The receipt `uploads.json` beside the uploaded files tells, of each, its SHA-256 and the tag that the store
gave the object. An object that still has that size and tag has those bytes: nothing is read to know it.
"""

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChecksumMismatch, EmError, NotFound
from em_pipeline.domain.files import Manifest, RawFile
from em_pipeline.domain.progress import Progress
from em_pipeline.domain.wording import counted
from em_pipeline.storage.bring import bring
from em_pipeline.storage.download import changed_since
from em_pipeline.storage.holdings import NAME
from em_pipeline.storage.listing import WORK
from em_pipeline.storage.local_files import storage_errors
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.object_client import StoredObject

STEP: Final = "upload"
RECEIPT: Final = "uploads.json"
_READ_BYTES: Final = 8 << 20
_AT_ONCE: Final = 4
# What a kill may cost: the uploads of the last seconds are made again.
_RECEIPT_SECONDS: Final = 20.0


class Uploaded(BaseModel):
    """One uploaded file. `tag` is the store's for the object, which changes with its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int
    tag: str


_RECEIPT: TypeAdapter[dict[str, Uploaded]] = TypeAdapter(dict[str, Uploaded])


def spooled_in(spool: Path, dataset_id: str, revision: str) -> Path:
    """The folder of a revision's files in the spool of a machine."""
    return spool / dataset_id / revision


class Spool:
    """The raw files of one revision: in `folder` of this machine, in `files` of the store.

    `documents` is where the receipt lies. For one process at a time (the dataset's lock). Every method raises
    `StorageFailed` where the disk or the store refuses.
    """

    def __init__(
        self,
        folder: Path,
        files: ObjectBlobs,
        documents: Blobs,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self._files = files
        self._documents = documents
        self._progress = progress

    @contextmanager
    def taking(self) -> Iterator[Callable[[RawFile], None]]:
        """During a download: upload files that are handed over and the store does not hold, several at once.

        Those that wait for their turn at the end, and those that the store refused, are left to `keep`.
        """
        receipt, there = self._receipt(), self._files.entries()
        self._files.clear_unfinished()
        sent = _Sent(self, receipt)

        def upload(file: RawFile) -> None:
            try:
                self._upload(file, lambda _: None)
                sent.add(file)
            except EmError as error:
                self._progress.note(f"{file.path} is not uploaded yet: {error}")

        def take(file: RawFile) -> None:
            if not file.in_place and not _is_held(file, receipt, there):
                pool.submit(upload, file)

        with ThreadPoolExecutor(_AT_ONCE, STEP) as pool:
            try:
                yield take
            finally:
                pool.shutdown(cancel_futures=True)
                sent.note()

    def keep(self, manifest: Manifest) -> None:
        """Upload every whole file that the store does not hold yet, several at once.

        Raises `ChecksumMismatch` where a file is not what was downloaded.
        """
        receipt = self._receipt()
        there = self._files.entries()
        missing = [file for file in _moved(manifest) if not _is_held(file, receipt, there)]
        if not missing:
            return
        self._files.clear_unfinished()
        self._progress.start(STEP, sum(file.size for file in missing), "bytes")
        sent = _Sent(self, receipt)

        def upload(file: RawFile) -> None:
            self._upload(file, partial(self._progress.advance, STEP))
            sent.add(file)

        with ThreadPoolExecutor(_AT_ONCE, STEP) as pool:
            uploads = [pool.submit(upload, file) for file in missing]
            try:
                for done in as_completed(uploads):
                    done.result()
            finally:
                pool.shutdown(cancel_futures=True)
                sent.note()

    def changed(self, manifest: Manifest) -> list[str]:
        """Paths of files that the store no longer holds as uploaded, or that changed where they lie.

        Costs a listing of the files and the receipt; of files in place, what `changed_since` costs.
        """
        moved = _moved(manifest)
        receipt = self._receipt() if moved else {}
        there = self._files.entries() if moved else {}
        gone = {file.path for file in moved if not _is_held(file, receipt, there)}
        gone.update(changed_since(_only(manifest, [f for f in manifest.files if f.in_place]), self.folder))
        return [file.path for file in manifest.files if file.path in gone]

    def changed_here(self, manifest: Manifest) -> list[str]:
        """Paths of files that the folder does not hold, or that changed in it or where they lie.

        Costs what `changed_since` costs.
        """
        return changed_since(manifest, self.folder)

    def bring(self, manifest: Manifest) -> None:
        """Fetch the files that the folder lacks from the store, as `bring` does, and raise like it."""
        moved = _moved(manifest)
        lacking = set(changed_since(_only(manifest, moved), self.folder))
        if not lacking:
            return
        self._progress.note(f"bringing {counted(len(lacking), 'raw file')} from {self._files.url}")
        try:
            bring([file for file in moved if file.path in lacking], self._files, self.folder, self._progress)
        except (ChecksumMismatch, NotFound):
            # What the receipt says of the store is not so: the next fetch asks the portal again.
            self._documents.delete(RECEIPT)
            raise

    def recall(self, manifest: Manifest) -> None:
        """Bring what the store still holds of the files, so that the others alone are downloaded."""
        lost = set(self.changed(manifest))
        self.bring(_only(manifest, [file for file in _moved(manifest) if file.path not in lost]))

    def let_go(self, manifest: Manifest) -> None:
        """Empty the folder, but for what it knows of files that stay in place."""
        with storage_errors(f"Delete {self.folder}"):
            if not self.folder.exists():
                return
            known = self.folder / WORK / NAME
            kept = (
                known.read_bytes() if len(_moved(manifest)) < len(manifest.files) and known.exists() else b""
            )
            shutil.rmtree(self.folder)
            if kept:
                known.parent.mkdir(parents=True)
                known.write_bytes(kept)
                return
            _remove_if_empty(self.folder.parent)

    def _upload(self, file: RawFile, told: Callable[[int], None]) -> None:
        digest = hashlib.sha256()
        path = self.folder / file.path
        sink = self._files.create(file.path)
        try:
            with storage_errors(f"Read {path}"), path.open("rb") as opened:
                for block in iter(partial(opened.read, _READ_BYTES), b""):
                    digest.update(block)
                    sink.append(block)
                    told(len(block))
            if digest.hexdigest() != file.sha256:
                raise ChecksumMismatch(
                    f"Upload {path}", "it is no longer what was downloaded", "Delete it, and ingest again"
                )
            sink.commit()
        finally:
            sink.abandon()

    def _receipt(self) -> dict[str, Uploaded]:
        try:
            return _RECEIPT.validate_json(self._documents.read(RECEIPT))
        except (NotFound, ValidationError):  # as good as none: everything is uploaded again
            return {}

    def note(self, receipt: Mapping[str, Uploaded], sent: Sequence[RawFile]) -> dict[str, Uploaded]:
        """Write the receipt, and the files just sent into it; what it then says."""
        there = self._files.entries()
        new = {
            file.path: Uploaded(sha256=file.sha256, size=file.size, tag=there[file.path].tag)
            for file in sent
            if file.path in there
        }
        noted = {**receipt, **new}
        self._documents.write(RECEIPT, _RECEIPT.dump_json(noted))
        return noted


class _Sent:
    """Files uploaded by several threads, and the receipt of them, written every now and then."""

    def __init__(self, spool: Spool, receipt: Mapping[str, Uploaded]) -> None:
        self._spool, self._receipt = spool, receipt
        self._files: list[RawFile] = []
        self._since = time.monotonic()
        self._lock = threading.Lock()

    def add(self, file: RawFile) -> None:
        with self._lock:
            self._files.append(file)
            due = time.monotonic() - self._since > _RECEIPT_SECONDS
        if due:
            self.note()

    def note(self) -> None:
        with self._lock:
            if self._files:
                self._receipt = self._spool.note(self._receipt, self._files)
            self._files, self._since = [], time.monotonic()


def _moved(manifest: Manifest) -> list[RawFile]:
    """The files that were downloaded."""
    return [file for file in manifest.files if not file.in_place]


def _only(manifest: Manifest, files: Sequence[RawFile]) -> Manifest:
    return manifest.model_copy(update={"files": tuple(files)})


def _is_held(file: RawFile, receipt: Mapping[str, Uploaded], there: Mapping[str, StoredObject]) -> bool:
    noted, found = receipt.get(file.path), there.get(file.path)
    if noted is None or found is None:
        return False
    return (noted.sha256, noted.size) == (file.sha256, file.size) and (noted.size, noted.tag) == (
        found.size,
        found.tag,
    )


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
