"""What survives a killed download: which parts of a file are on disk, and which files are whole."""

import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from em_pipeline.domain.files import RawFile, RemoteFile
from em_pipeline.storage.digests import RunningDigest, promised_checksum
from em_pipeline.storage.local_files import fsync_path, write_atomically


@dataclass(frozen=True)
class Validators:
    """What tells one content of a remote file from another; None where nothing was said (RFC 9110 §8.8)."""

    size: int | None
    etag: str | None
    modified: str | None

    @classmethod
    def of(cls, file: RemoteFile | RawFile) -> "Validators":
        return cls(file.size, file.etag, file.modified)

    def difference(self, now: "Validators") -> str | None:
        """How `now` is another content than this, or None where nothing says so.

        An ETag that both have decides over Last-Modified, which mirrors of one file often disagree on.
        """
        if self.size is not None and now.size is not None and self.size != now.size:
            return f"its size went from {self.size} to {now.size} bytes"
        if self.etag and now.etag:
            same = _opaque(self.etag) == _opaque(now.etag)
            return None if same else f"its ETag went from {self.etag} to {now.etag}"
        if self.modified and now.modified and self.modified != now.modified:
            return f"its Last-Modified went from {self.modified} to {now.modified}"
        return None


def _opaque(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')


@dataclass(frozen=True)
class Places:
    """Where one file and what is known of it lie. `part` and `journal` are gone once the file is whole."""

    target: Path
    part: Path
    journal: Path
    record: Path

    def discard(self) -> None:
        """Forget everything but the file itself."""
        for path in (self.journal, self.part, self.record):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Plan:
    """One content of a remote file and how it is cut: part n is bytes [n·part_size, (n+1)·part_size)."""

    url: str
    size: int
    etag: str | None
    modified: str | None
    part_size: int

    @property
    def validators(self) -> Validators:
        return Validators(self.size, self.etag, self.modified)

    @property
    def parts(self) -> range:
        return range(max(1, -(-self.size // self.part_size)))

    def span(self, part: int) -> tuple[int, int]:
        """First byte of a part, and the byte after its last."""
        return part * self.part_size, min((part + 1) * self.part_size, self.size)

    def length(self, part: int) -> int:
        start, stop = self.span(part)
        return stop - start


def begin_journal(path: Path, plan: Plan) -> None:
    write_atomically(path, json.dumps(asdict(plan)).encode() + b"\n")


def append_part(path: Path, part: int) -> None:
    """Record that a part's bytes are on the disk; call it only after they were fsynced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{part}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resume_journal(places: Places) -> tuple[Plan, set[int]] | None:
    """The plan and finished parts of an interrupted download, or None where they cannot be trusted."""
    try:
        header, *lines = places.journal.read_text().split("\n")
        plan = Plan(**json.loads(header))
        whole_part = places.part.lstat()
    except (OSError, ValueError, TypeError):
        return None
    if not stat.S_ISREG(whole_part.st_mode) or whole_part.st_size != plan.size:
        return None
    # The last piece follows the last newline: empty, or torn by a power cut.
    finished = {int(line) for line in lines[:-1] if line.isdecimal()}
    return plan, finished & set(plan.parts)


class WholeRecord(BaseModel):
    """Says that a file is whole, and which state of it on disk was hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: RawFile
    mtime_ns: int
    checksum: str | None


def write_record(places: Places, file: RawFile, path: Path, checksum: str | None) -> None:
    """Record that `path`, now at its place or about to be renamed there, is the whole `file`."""
    record = WholeRecord(file=file, mtime_ns=path.stat().st_mtime_ns, checksum=checksum)
    write_atomically(places.record, record.model_dump_json().encode())


def settle(places: Places) -> None:
    """Give the whole `part`, already recorded, its name."""
    places.part.rename(places.target)
    fsync_path(places.target.parent)
    places.journal.unlink(missing_ok=True)


def recall(remote: RemoteFile, places: Places) -> RawFile | None:
    """The file, where an earlier run made it whole and it still is what is listed now.

    A file whose modification time is not the recorded one is read and compared by its SHA-256.
    """
    try:
        record = WholeRecord.model_validate_json(places.record.read_bytes())
    except (OSError, ValidationError):
        return None
    if record.file.url != remote.url or Validators.of(record.file).difference(Validators.of(remote)):
        return None
    for candidate in (places.target, places.part):
        if _still_whole(candidate, record, remote):
            if record.checksum != remote.checksum or record.mtime_ns != candidate.stat().st_mtime_ns:
                write_record(places, record.file, candidate, remote.checksum)
            if candidate != places.target:  # killed between its record and its renaming
                settle(places)
            return record.file
    return None


def _still_whole(path: Path, record: WholeRecord, remote: RemoteFile) -> bool:
    try:
        found = path.stat() if record.file.in_place else path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != record.file.size:
        return False
    if found.st_mtime_ns == record.mtime_ns and remote.checksum in (None, record.checksum):
        return True
    promised = promised_checksum(remote)
    sha256, other = RunningDigest(promised.algorithm if promised else None).finish(path, lambda _: None)
    return sha256 == record.file.sha256 and (promised is None or other == promised.value)
