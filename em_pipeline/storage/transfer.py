"""One file from its server to its place: ranged parts, each asked for again until its bytes are right."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

from em_pipeline.domain.errors import ChecksumMismatch, RecordInvalid, SourceUnavailable
from em_pipeline.domain.files import RawFile, RemoteFile
from em_pipeline.domain.progress import Progress
from em_pipeline.storage.digests import RunningDigest, promised_checksum
from em_pipeline.storage.journal import (
    Places,
    Plan,
    Validators,
    append_part,
    begin_journal,
    resume_journal,
    settle,
    write_record,
)
from em_pipeline.storage.transport import Fault, Transport, looks_like_html

if TYPE_CHECKING:
    import httpx

# One piece of work of a pool's thread; what it returns is to be done next.
Unit: TypeAlias = Callable[[], "list[Unit]"]

WEB_PAGES = frozenset({".html", ".htm", ".xhtml"})
MAX_RESTARTS = 3
# An attempt that gained this much counts as progress: failures before it are forgotten.
PROGRESS_BYTES = 64 * 1024
# A server that sends less than this for as long as a read may take is stalling, though never silent.
SLOWEST_BYTES_PER_S = 256
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Restart(Exception):
    """What was fetched of a file so far is of no use; it must be fetched from its beginning."""


class Tally:
    """Tells a watcher of one file's bytes; bytes that are fetched again do not count twice."""

    def __init__(self, progress: Progress, step: str) -> None:
        self._progress = progress
        self._step = step
        self._told = 0
        self._lock = threading.Lock()

    def reached(self, count: int) -> None:
        with self._lock:
            new, self._told = count - self._told, max(count, self._told)
        if new > 0:
            self._progress.advance(self._step, new)

    def note(self, message: str) -> None:
        self._progress.note(message)


class FileTransfer:
    """One content of one file. Where the server's content changes, another transfer takes over from it.

    Errors of its units: those of `Transport.exchange`, `SourceUnavailable` when patience ends,
    `RecordInvalid` for a web page, an encoded body or a size other than listed, `ChecksumMismatch`.
    """

    def __init__(
        self,
        remote: RemoteFile,
        places: Places,
        transport: Transport,
        part_size: int,
        tally: Tally,
        whole: Callable[[RawFile], None],
        restarts: int = 0,
    ) -> None:
        self._remote = remote
        self._places = places
        self._transport = transport
        self._part_size = part_size
        self._tally = tally
        self._whole = whole
        self._restarts = restarts
        self._promised = promised_checksum(remote)
        self._digest = RunningDigest(self._promised.algorithm if self._promised else None)
        self._plan: Plan | None = None
        self._ranged = True
        self._got: dict[int, int] = {}
        self._left: set[int] = {0}
        # Held wherever files are opened by name: after a restart the names are the next transfer's.
        self._lock = threading.Lock()
        self._superseded = False

    def begin(self) -> list[Unit]:
        """Resume from the journal, or ask for the first part and learn what there is."""
        resumed = resume_journal(self._places)
        if resumed is None or (why := self._unfit(resumed[0])):
            if resumed is not None:
                self._tally.note(f"{self._remote.url}: {why}; fetching it from its beginning")
            self._places.discard()
            return self._fetch(0)
        self._plan, finished = resumed
        self._got = {part: self._plan.length(part) for part in finished}
        self._left = set(self._plan.parts) - finished
        self._tally.reached(sum(self._got.values()))
        self._tally.note(
            f"{self._remote.url}: resuming, {len(finished)} of {len(self._plan.parts)} parts are held"
        )
        if not self._left:
            return [partial(self._finish, self._plan)]
        return [partial(self._fetch, part) for part in sorted(self._left)]

    def _unfit(self, plan: Plan) -> str | None:
        if plan.url != self._remote.url:
            return f"it was listed at {plan.url} before"
        return plan.validators.difference(Validators.of(self._remote))

    def _fetch(self, part: int) -> list[Unit]:
        first = self._plan is None
        try:
            with self._part_file() as descriptor:
                plan = self._until_whole(part, descriptor)
                os.fsync(descriptor)
                if part == 0:
                    self._refuse_web_page(None, os.pread(descriptor, 512, 0))
        except Restart as why:
            return self._restart(str(why))
        with self._lock:
            if self._superseded:
                return []
            if len(plan.parts) > 1:
                append_part(self._places.journal, part)
            self._left.discard(part)
            rest = sorted(self._left)
        if not rest:
            return self._finish(plan)
        return [partial(self._fetch, other) for other in rest] if first else []

    @contextmanager
    def _part_file(self) -> Iterator[int]:
        with self._lock:
            if self._superseded:
                raise Restart("another part found it changed")
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._places.part, flags, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _restart(self, why: str) -> list[Unit]:
        with self._lock:
            if self._superseded:
                return []
            self._superseded = True
            self._places.discard()
        url = self._remote.url
        if self._restarts >= MAX_RESTARTS:
            raise SourceUnavailable(
                f"Fetch {url}",
                f"it changed {self._restarts + 1} times while it was being fetched, the last time: {why}",
                "Try again when the portal has settled",
            )
        self._tally.note(f"{url}: {why}; fetching it from its beginning")
        successor = FileTransfer(
            self._remote,
            self._places,
            self._transport,
            self._part_size,
            self._tally,
            self._whole,
            self._restarts + 1,
        )
        return [successor.begin]

    def _until_whole(self, part: int, descriptor: int) -> Plan:
        attempts = 0
        while not (self._plan and self._got.get(part, 0) == self._plan.length(part)):
            before = self._got.get(part, 0)
            try:
                self._ask(part, descriptor)
            except Fault as fault:
                attempts = 1 if self._got.get(part, 0) - before >= PROGRESS_BYTES else attempts + 1
                self._transport.wait_after(self._remote.url, attempts, fault)
        return self._plan

    def _ask(self, part: int, descriptor: int) -> None:
        start, stop = self._plan.span(part) if self._plan else (0, self._part_size)
        start += self._got.get(part, 0)
        headers = {"Accept-Encoding": "identity"}
        if self._ranged:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        if self._plan and (condition := _if_range(self._plan)):
            headers["If-Range"] = condition
        accept = frozenset({200, 206, 416})
        with self._transport.exchange("GET", self._remote.url, headers, accept=accept) as response:
            if response.status_code == 416:
                self._out_of_range()
                return
            self._refuse_encoded(response)
            self._refuse_web_page(response.headers.get("Content-Type"), b"")
            if response.status_code == 206:
                self._receive_part(response, part, start, stop, descriptor)
            else:
                self._receive_whole(response, descriptor)

    def _out_of_range(self) -> None:
        if self._plan is not None:
            raise Restart("the server says that it is shorter now")
        if not self._ranged:
            raise Fault("HTTP 416, though no range was asked for")
        self._ranged = False  # an empty file has no first part: ask for all of it

    def _receive_part(
        self, response: "httpx.Response", part: int, start: int, stop: int, descriptor: int
    ) -> None:
        sent = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(sent.strip())
        first, last, size = (int(group) for group in match.groups()) if match else (-1, -1, -1)
        if first != start or not start <= last < min(stop, size):
            raise Fault(f"bytes {start}-{stop - 1} were asked for, Content-Range says {sent!r}")
        self._compare(Validators(size, response.headers.get("ETag"), response.headers.get("Last-Modified")))
        if self._plan is None:
            self._pin(response, size, descriptor)
        length = last + 1 - start
        _check_length(response, length)
        received = 0
        for piece in self._pieces(response):
            if received + len(piece) > length:
                self._got[part] = 0  # which of its bytes belong to the range is not known
                raise Fault(f"more than the {length} bytes that were asked for")
            _write(descriptor, piece, start + received)
            self._digest.update(start + received, piece)
            received += len(piece)
            self._count(part, len(piece))
        if received < length:
            raise Fault(f"{received} of {length} bytes")

    def _compare(self, now: Validators) -> None:
        listed = Validators.of(self._remote).difference(now)
        if listed:
            found = f"since it was listed, {listed}"
            raise Fault(
                found, lasting=RecordInvalid(f"Fetch {self._remote.url}", found, "Fetch the record again")
            )
        changed = self._plan.validators.difference(now) if self._plan else None
        if changed:
            raise Restart(f"it changed while it was being fetched: {changed}")

    def _pin(self, response: "httpx.Response", size: int, descriptor: int) -> None:
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        plan = Plan(self._remote.url, size, etag, modified, self._part_size)
        os.ftruncate(descriptor, size)
        if len(plan.parts) > 1:
            begin_journal(self._places.journal, plan)
        self._plan, self._left = plan, set(plan.parts)

    def _receive_whole(self, response: "httpx.Response", descriptor: int) -> None:
        """Take all of a file from a server that does not send parts."""
        length = response.headers.get("Content-Length")
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        size = int(length) if length is not None else self._remote.size
        self._compare(Validators(size, etag, modified))
        if self._plan is not None:
            found = "the server sent the whole file in place of a part"
            raise Fault(found, lasting=Restart("the server does not send parts of it any more"))
        self._refuse_endless(response, size)
        os.ftruncate(descriptor, 0)
        received = 0
        for piece in self._pieces(response):
            _write(descriptor, piece, received)
            self._digest.update(received, piece)
            received += len(piece)
            self._tally.reached(received)
        if size is not None and received != size:
            raise Fault(f"{received} of {size} bytes")
        self._compare(Validators(received, etag, modified))
        self._got[0] = received
        self._plan = Plan(self._remote.url, received, etag, modified, max(1, received))

    def _pieces(self, response: "httpx.Response") -> Iterator[bytes]:
        patience = self._transport.policy.read_timeout_s
        since, arrived = time.monotonic(), 0
        for piece in response.iter_raw():
            self._transport.check_running()
            arrived += len(piece)
            now = time.monotonic()
            if now - since > patience:
                if arrived < SLOWEST_BYTES_PER_S * patience:
                    raise Fault(f"only {arrived} bytes in {now - since:.1f} s")
                since, arrived = now, 0
            yield piece

    def _count(self, part: int, count: int) -> None:
        with self._lock:
            self._got[part] = self._got.get(part, 0) + count
            total = sum(self._got.values())
        self._tally.reached(total)

    def _refuse_endless(self, response: "httpx.Response", size: int | None) -> None:
        chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        if size is None and not chunked and self._promised is None:
            raise RecordInvalid(
                f"Fetch {self._remote.url}",
                "neither server nor listing says how long it is: a cut connection would look whole",
                "List the file with its size or checksum",
            )

    def _refuse_encoded(self, response: "httpx.Response") -> None:
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise RecordInvalid(
                f"Fetch {self._remote.url}",
                f"it comes with Content-Encoding {encoding}, though the plain bytes were asked for",
                "Its size and checksum would be of other bytes; find another address of the file",
            )

    def _refuse_web_page(self, content_type: str | None, head: bytes) -> None:
        if PurePosixPath(self._remote.path).suffix.lower() in WEB_PAGES:
            return
        if looks_like_html(content_type, head):
            self._places.discard()
            raise RecordInvalid(
                f"Fetch {self._remote.url}",
                "the server answered with a web page in place of the file",
                "Open the URL in a browser: it may be a login, consent or maintenance page",
            )

    def _finish(self, plan: Plan) -> list[Unit]:
        sha256, other = self._digest.finish(self._places.part, lambda _: self._transport.check_running())
        if self._promised and other != self._promised.value:
            self._places.discard()
            raise ChecksumMismatch(
                f"Verify {self._remote.url}",
                f"its {self._promised.algorithm} is {other}, the portal promises {self._promised.value}",
                "What was fetched is deleted; try again, and tell the portal if it stays so",
            )
        file = RawFile(
            url=self._remote.url,
            path=self._remote.path,
            size=plan.size,
            sha256=sha256,
            etag=plan.etag or self._remote.etag,
            modified=plan.modified or self._remote.modified,
        )
        write_record(self._places, file, self._places.part, self._remote.checksum)
        settle(self._places)
        self._whole(file)
        return []


def _if_range(plan: Plan) -> str | None:
    # Weak ETags never match in If-Range (RFC 9110 §13.1.5).
    if plan.etag and not plan.etag.startswith("W/"):
        return plan.etag
    return plan.modified


def _check_length(response: "httpx.Response", length: int) -> None:
    said = response.headers.get("Content-Length")
    if said is not None and int(said) != length:
        raise Fault(f"Content-Length says {said}, the range has {length} bytes")


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
