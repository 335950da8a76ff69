"""Which files of a raw folder are whole, and which the portal does not have: one log, flushed in batches.

A batch costs a few flushes to the disk however many files it has; of thousands of small files, each on its
own would cost more than fetching it.
"""

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from em_pipeline.domain.files import RawFile, RemoteFile
from em_pipeline.storage.digests import RunningDigest, promised_checksum
from em_pipeline.storage.journal import Places, Validators
from em_pipeline.storage.local_files import fsync_path, write_atomically

NAME = "holdings.jsonl"
# What a kill may cost: the files of one batch, none larger than this, are fetched again.
BATCH_FILES = 64
BATCH_SECONDS = 1.0
SMALL_BYTES = 1 << 20
T = TypeVar("T")


class WholeRecord(BaseModel):
    """Says that a file is whole, and which state of it on disk was hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: RawFile
    mtime_ns: int
    checksum: str | None


class AbsentRecord(BaseModel):
    """Says that the portal does not have a file of a listing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    absent: str
    listing: str


_LINE: TypeAdapter[WholeRecord | AbsentRecord] = TypeAdapter(WholeRecord | AbsentRecord)


@dataclass(frozen=True)
class Arrived:
    """A file whose bytes are in its part, on the disk, and verified; or one that stays where it is."""

    file: RawFile
    places: Places
    checksum: str | None
    mtime_ns: int


class Holdings:
    """The log in the folder `work`. Safe to use from several threads of one process.

    `listing` names what is being downloaded: that a file is absent is remembered for the same listing only.
    `whole` is told of each file once it is at its place, `missed` of the path of each that is absent.
    """

    def __init__(
        self,
        work: Path,
        listing: str = "",
        whole: Callable[[RawFile], None] = lambda _: None,
        missed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._path = work / NAME
        self._listing = listing
        self._whole = whole
        self._missed = missed
        self._arrived: list[Arrived] = []
        self._absent: list[str] = []
        self._due = 0.0
        self._waiting = threading.Lock()
        self._writing = threading.Lock()
        self._records: dict[str, WholeRecord] = {}
        self.absent: set[str] = set()
        self._read()

    def _read(self) -> None:
        try:
            # What follows the last newline is empty, or torn by a power cut.
            *lines, torn = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for line in lines:
            try:
                record = _LINE.validate_json(line)
            except ValidationError:
                continue
            if isinstance(record, WholeRecord):
                self._records[record.file.path] = record
            elif record.listing == self._listing:
                self.absent.add(record.absent)
        if torn or len(lines) > 2 * (len(self._records) + len(self.absent)) + BATCH_FILES:
            self._write_anew()

    def _write_anew(self) -> None:
        absent = [AbsentRecord(absent=path, listing=self._listing) for path in sorted(self.absent)]
        write_atomically(self._path, _lines([*self._records.values(), *absent]))

    def arrive(self, arrived: Arrived) -> None:
        """Give the file its name, with others that are small, in at most `BATCH_SECONDS`."""
        self._add(self._arrived, arrived)
        if arrived.file.size > SMALL_BYTES:
            self.flush()
        else:
            self.flush_if_due()

    def miss(self, path: str) -> None:
        """The portal does not have the file."""
        self._add(self._absent, path)
        self.flush_if_due()

    def _add(self, batch: list[T], entry: T) -> None:
        with self._waiting:
            if not self._arrived and not self._absent:
                self._due = time.monotonic() + BATCH_SECONDS
            batch.append(entry)

    def flush_if_due(self) -> None:
        """`flush`, where there is a whole batch or its time is over."""
        with self._waiting:
            count = len(self._arrived) + len(self._absent)
            due = count >= BATCH_FILES or (count > 0 and time.monotonic() >= self._due)
        if due:
            self.flush()

    def flush(self) -> None:
        """Give all files that arrived their names, durably."""
        with self._writing:
            with self._waiting:
                arrived, absent = self._arrived.copy(), self._absent.copy()
                self._arrived.clear()
                self._absent.clear()
            if not arrived and not absent:
                return
            self.remember(
                [
                    WholeRecord(file=each.file, mtime_ns=each.mtime_ns, checksum=each.checksum)
                    for each in arrived
                ],
                absent,
            )
            settle([each.places for each in arrived if not each.file.in_place])
            self.absent.update(absent)
            for each in arrived:
                self._whole(each.file)
            for path in absent:
                self._missed(path)

    def remember(self, records: Sequence[WholeRecord], absent: Sequence[str] = ()) -> None:
        """Add to the log, in one write."""
        missing = [AbsentRecord(absent=path, listing=self._listing) for path in absent]
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        new = not self._path.exists()
        descriptor = os.open(self._path, flags, 0o644)
        try:
            os.write(descriptor, _lines([*records, *missing]))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            fsync_path(self._path.parent)
        self._records.update((record.file.path, record) for record in records)

    def recall(self, remote: RemoteFile, places: Places) -> RawFile | None:
        """The file, where an earlier run made it whole and it still is what is listed now.

        A file whose modification time is not the recorded one is read and compared by its SHA-256.
        """
        record = self._records.get(remote.path)
        if record is None or not _is_listed(record.file, remote):
            return None
        for candidate in (places.target, places.part):
            mtime_ns = _whole_at(candidate, record, remote.checksum)
            if mtime_ns is None:
                continue
            if (record.checksum, record.mtime_ns) != (remote.checksum, mtime_ns):
                self.remember([WholeRecord(file=record.file, mtime_ns=mtime_ns, checksum=remote.checksum)])
            if candidate != places.target:  # killed between its record and its renaming
                settle([places])
            return record.file
        return None

    def still_holds(self, file: RawFile, path: Path) -> bool:
        """Whether `path` still has the bytes of `file`, read only where its modification time moved."""
        known = self._records.get(file.path)
        fits = known is not None and known.file.sha256 == file.sha256
        record = known if known and fits else WholeRecord(file=file, mtime_ns=-1, checksum=None)
        mtime_ns = _whole_at(path, record, record.checksum)
        if mtime_ns is not None and mtime_ns != record.mtime_ns and self._path.parent.is_dir():
            self.remember([record.model_copy(update={"mtime_ns": mtime_ns})])
        return mtime_ns is not None


def listing_digest(dataset_id: str, revision: str, files: Iterable[RemoteFile]) -> str:
    """What names a listing: SHA-256 of the dataset, its revision, and every file's address and path."""
    digest = hashlib.sha256(f"{dataset_id}\n{revision}\n".encode())
    for file in files:
        digest.update(f"{file.url}\t{file.offset}\t{file.path}\n".encode())
    return digest.hexdigest()


def disagreeing(held: Mapping[str, RawFile]) -> dict[str, str]:
    """By address, how files that are ranges of one URL are not of the same content of it."""
    first: dict[str, Validators] = {}
    found: dict[str, str] = {}
    for file in held.values():
        if file.offset is not None:
            validators = Validators(None, file.etag, file.modified)
            if why := first.setdefault(file.url, validators).difference(validators):
                found[file.url] = why
    return found


def settle(places: Sequence[Places]) -> None:
    """Give whole parts, already recorded, their names."""
    for each in places:
        each.part.rename(each.target)
    for folder in {each.target.parent for each in places}:
        fsync_path(folder)
    for each in places:
        each.journal.unlink(missing_ok=True)


def _lines(records: Iterable[BaseModel]) -> bytes:
    return b"".join(record.model_dump_json().encode() + b"\n" for record in records)


def _is_listed(file: RawFile, remote: RemoteFile) -> bool:
    if file.offset != remote.offset:
        return False
    if file.url == remote.url:
        return Validators.of(file).difference(Validators.of(remote)) is None
    # A mirror's validators are its own.
    return file.url in remote.mirrors and remote.size in (None, file.size)


def _whole_at(path: Path, record: WholeRecord, checksum: str | None) -> int | None:
    """The modification time of `path` where it is the recorded file and has `checksum`; else None."""
    try:
        found = path.stat() if record.file.in_place else path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_size != record.file.size:
        return None
    if found.st_mtime_ns == record.mtime_ns and checksum in (None, record.checksum):
        return found.st_mtime_ns
    promised = promised_checksum(checksum, record.file.url)
    sha256, other = RunningDigest(promised.algorithm if promised else None).finish(path, lambda _: None)
    same = sha256 == record.file.sha256 and (promised is None or other == promised.value)
    return found.st_mtime_ns if same else None
