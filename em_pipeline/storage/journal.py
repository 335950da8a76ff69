"""What survives a killed download of one file: how it was cut into parts, and which of them are on disk."""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from em_pipeline.domain.files import RawFile, RemoteFile
from em_pipeline.storage.local_files import write_atomically


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

    def discard(self) -> None:
        """Forget what was fetched, but for the file itself."""
        for path in (self.journal, self.part):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Plan:
    """One content of a remote file and how it is cut: part n is bytes [n·part_size, (n+1)·part_size).

    The file is the `size` bytes from `offset` on of the `total` bytes at `url`.
    """

    url: str
    size: int
    etag: str | None
    modified: str | None
    part_size: int
    offset: int
    total: int

    @property
    def validators(self) -> Validators:
        """Those of all that is at the URL."""
        return Validators(self.total, self.etag, self.modified)

    @property
    def parts(self) -> range:
        return range(max(1, -(-self.size // self.part_size)))

    def span(self, part: int) -> tuple[int, int]:
        """First byte of a part, and the byte after its last, counted from the file's beginning."""
        return part * self.part_size, min((part + 1) * self.part_size, self.size)

    def length(self, part: int) -> int:
        start, stop = self.span(part)
        return stop - start


def begin_journal(path: Path, plan: Plan) -> None:
    write_atomically(path, json.dumps(asdict(plan)).encode() + b"\n")


def append_parts(path: Path, parts: Iterable[int]) -> None:
    """Record that the bytes of parts are on the disk; call it only after they were fsynced.

    Raises `OSError` where the disk does not take all of it.
    """
    text = "".join(f"{part}\n" for part in parts).encode()
    with path.open("ab", buffering=0) as file:
        while text:
            text = text[file.write(text) :]
        os.fsync(file.fileno())


def resume_journal(places: Places) -> tuple[Plan, set[int]] | None:
    """The plan and finished parts of an interrupted download, or None where they cannot be trusted.

    What a power cut or a full disk left of a last line is cut off: the next line must not continue it.
    """
    try:
        text = places.journal.read_bytes()
        header, *lines = text.decode().split("\n")
        plan = Plan(**json.loads(header))
        whole_part = places.part.lstat()
        if lines and lines[-1]:
            os.truncate(places.journal, len(text) - len(lines[-1].encode()))
    except (OSError, ValueError, TypeError):
        return None
    if not stat.S_ISREG(whole_part.st_mode) or whole_part.st_size != plan.size:
        return None
    finished = {int(line) for line in lines[:-1] if line.isdecimal()}
    return plan, finished & set(plan.parts)
