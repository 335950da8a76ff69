"""One file from an address to its place, part by part, whatever the protocol."""

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

from em_pipeline.domain.errors import ChecksumMismatch, EmError, RecordInvalid, SourceUnavailable
from em_pipeline.domain.files import RawFile
from em_pipeline.storage.answers import WEB_PAGE, WEB_PAGES, looks_like_html
from em_pipeline.storage.digests import RunningDigest, promised_checksum
from em_pipeline.storage.faults import Behind, Fault, Trickle
from em_pipeline.storage.holdings import Arrived
from em_pipeline.storage.journal import Plan, Validators, append_parts, begin_journal, resume_journal
from em_pipeline.storage.pace import Line
from em_pipeline.storage.task import Absent, Restart, Task, Unit
from em_pipeline.storage.transport import Stopped

CONTINUE_LATER = "Nothing is known about the data; try again later, finished parts are kept"
MAX_RESTARTS = 3
# An attempt that gained this much counts as progress: failures before it are forgotten.
PROGRESS_BYTES = 64 * 1024
# Parts are what one connection takes over from another: many, so that all are done at about the same time.
PARTS_PER_CONNECTION = 256
SMALLEST_PART = 128 * 1024
# Files up to this size have one part; of a file of unknown size, so much is asked for first.
SMALL_FILE = 1024 * 1024
# What is whole is flushed and noted together this often: a kill costs what came since.
NOTED_EACH_S = 0.5
# How often in a row a request that is far behind others is asked again; then it is borne.
MAX_HURRIES = 3
# EBI's servers never answer one in thirty range requests; those that answer do so well within this.
QUICK_PATIENCE_S = 3.0


class Transfer(ABC):
    """One content of one file from one address. Where it changes or fails for good, another takes over.

    Errors of its units: those of its protocol, `SourceUnavailable` when patience ends at every address,
    `RecordInvalid` for a web page or a size other than listed, `ChecksumMismatch`.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._remote = task.remote
        self._address = task.addresses[0]
        self._places = task.places
        self._transport = task.transport
        self._tally = task.tally
        self._promised = promised_checksum(task.remote.checksum, task.remote.url)
        self._digest = RunningDigest(self._promised.algorithm if self._promised else None)
        self._plan: Plan | None = None
        # Bytes that came of each part, and of all.
        self._got: dict[int, int] = {}
        self._count = 0
        self._left: set[int] = {0}
        # Parts that are whole and not noted yet, when some were last, and before which part all are whole.
        self._unnoted: list[int] = []
        self._noted = time.monotonic()
        self._front = 0
        # Held wherever files are opened by name: after a restart the names are the next transfer's.
        self._lock = threading.Lock()
        self._noting = threading.Lock()
        self._superseded = False
        self._finishing = False

    @abstractmethod
    def _ask(self, part: int, silences: int, line: Line | None) -> None:
        """One attempt at the rest of a part, after so many silences; cut by `line` where it is behind.

        Raises `Fault`, `Restart`, `Absent`, and lasting errors.
        """

    @abstractmethod
    def _next(self, part: int, first: bool) -> list[Unit]:
        """What to do after `part` was asked for, where parts are left; `first` if it was the only one."""

    def share(self) -> Unit | None:
        """Some of what is left, for a connection that has nothing else to do; None where that is no use."""
        return None

    @property
    def over(self) -> bool:
        """Whether nothing is left to fetch here."""
        return self._superseded or not self._left

    def begin(self) -> list[Unit]:
        """Resume from the journal, or ask for the first part and learn what there is."""
        resumed = resume_journal(self._places)
        if resumed is None or (why := self._unfit(resumed[0])):
            if resumed is not None:
                self._tally.note(f"{self._address}: {why}; fetching it from its beginning")
            return self._fetch(0)
        self._plan, finished = resumed
        self._got = {part: self._plan.length(part) for part in finished}
        self._left = set(self._plan.parts) - finished
        self._count = sum(self._got.values())
        self._tally.reached(self._count)
        self._tally.note(
            f"{self._address}: resuming, {len(finished)} of {len(self._plan.parts)} parts are held"
        )
        if not self._left:
            return [partial(self._finish, self._plan)]
        return self._next(min(self._left), first=True)

    def _unfit(self, plan: Plan) -> str | None:
        if plan.url != self._address:
            return f"it was fetched from {plan.url} before"
        if plan.offset != (self._remote.offset or 0) or self._remote.size not in (None, plan.size):
            return "other bytes of it were listed before"
        return plan.validators.difference(self._listed)

    @property
    def _listed(self) -> Validators:
        """What the listing says of all that is at this address. A mirror's validators are its own."""
        size = self._remote.size if self._remote.offset is None else None
        if self._address != self._remote.url:
            return Validators(size, None, None)
        return Validators(size, self._remote.etag, self._remote.modified)

    def _fetch(self, part: int) -> list[Unit]:
        first = self._plan is None
        try:
            plan = self._asked(part, first)
            if not self._is_whole(part, plan):
                return self._next(part, first)
            left = self._hold(part, plan)
        except Restart as why:
            return self._restart(str(why))
        except Absent:
            self._places.discard()
            self._places.target.unlink(missing_ok=True)
            self._task.holdings.miss(self._remote.path)
            return []
        except EmError as error:
            self._note_whole()
            return self._elsewhere(error)
        except Stopped:
            self._note_whole()
            raise
        if left:
            return self._next(part, first)
        return self._finish(plan) if left is not None and self._finishes() else []

    def _finishes(self) -> bool:
        """Whether the caller is the one to finish: several connections may see that nothing is left."""
        with self._lock:
            mine, self._finishing = not self._finishing, True
            return mine

    def _asked(self, part: int, first: bool) -> Plan:
        """Ask for a part until it is whole; for the first one, until it is known what there is."""
        attempts = silences = hurries = 0
        while self._plan is None or not (first or self._is_whole(part, self._plan)):
            if self._superseded:
                raise Restart("another part found it changed")
            before = self._got.get(part, 0)
            try:
                self._ask(part, silences, Line() if hurries < MAX_HURRIES else None)
            except Behind as behind:
                hurries = 0 if self._gained(part, before) else hurries + 1
                self._tally.note(f"{self._address}: {behind}; asking again on a new connection")
            except Fault as fault:
                attempts = 1 if self._gained(part, before) else attempts + 1
                silences = silences if isinstance(fault, Trickle) else attempts
                self._transport.wait_after(self._address, attempts, fault, to_do=CONTINUE_LATER)
        return self._plan

    def _gained(self, part: int, before: int) -> bool:
        return self._got.get(part, 0) - before >= PROGRESS_BYTES

    def _is_whole(self, part: int, plan: Plan) -> bool:
        return self._got.get(part, 0) == plan.length(part)

    def _hold(self, part: int, plan: Plan) -> int | None:
        """Count a part as whole and say how many are left; None where another transfer has taken over."""
        with self._lock:
            # Held already: where it was the last, the file may have its own name by now.
            if part not in self._left:
                return None if self._superseded else len(self._left)
        with self._part_file() as descriptor:
            if part == 0:
                self._refuse_web_page(os.pread(descriptor, 512, 0))
            with self._lock:
                if self._superseded:
                    return None
                self._left.discard(part)
                self._unnoted.append(part)
                while self._front < len(plan.parts) and self._front not in self._left:
                    self._front += 1
                left, whole = len(self._left), min(self._front * plan.part_size, plan.size)
                due = time.monotonic() - self._noted >= NOTED_EACH_S
                due = due or len(self._unnoted) * plan.part_size >= self._task.part_size
            self._digest.catch_up(descriptor, whole)
        if due or not left:
            self._note_whole()
        return left

    def _note_whole(self) -> None:
        """Flush the parts that are whole, and note that they are held."""
        with self._noting:
            with self._lock:
                parts, plan = self._unnoted, self._plan
                if not parts or plan is None or self._superseded:
                    return
                self._unnoted, self._noted = [], time.monotonic()
            try:
                with self._part_file() as descriptor:
                    os.fsync(descriptor)
            except Restart:
                return
            with self._lock:
                # What is whole altogether is recorded as such at once.
                if self._left and not self._superseded:
                    if not self._places.journal.exists():
                        begin_journal(self._places.journal, plan)
                    append_parts(self._places.journal, parts)

    def _refuse_web_page(self, head: bytes) -> None:
        if self._is_web_page(None, head):
            self._places.discard()
            raise SourceUnavailable(
                f"Fetch {self._address}",
                WEB_PAGE,
                "Open the URL in a browser: it may be a login, consent or maintenance page",
            )

    @contextmanager
    def _part_file(self) -> Iterator[int]:
        with self._lock:
            if self._superseded:
                raise Restart("another part found it changed")
            descriptor = os.open(self._places.part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _pin(self, plan: Plan) -> None:
        """Settle on a content: its part file is made anew, and what other contents left is forgotten."""
        with self._lock:
            if self._superseded:
                raise Restart("another part found it changed")
            self._places.discard()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._places.part, flags, 0o644)
            try:
                os.ftruncate(descriptor, plan.size)
            finally:
                os.close(descriptor)
            self._plan, self._left = plan, set(plan.parts)
            self._unnoted, self._front = [], 0

    def _restart(self, why: str) -> list[Unit]:
        with self._lock:
            if self._superseded:
                return []
            self._superseded = True
            self._places.discard()
        if self._task.restarts >= MAX_RESTARTS:
            raise SourceUnavailable(
                f"Fetch {self._address}",
                f"it changed {self._task.restarts + 1} times while it was fetched, the last time: {why}",
                "Try again when the portal has settled",
            )
        self._tally.note(f"{self._address}: {why}; fetching it from its beginning")
        return [partial(self._task.begin, replace(self._task, restarts=self._task.restarts + 1))]

    def _elsewhere(self, error: EmError) -> list[Unit]:
        """Go on at the next address; raise the first address's outage where there is none.

        What a mirror refuses or lacks says nothing: only the first address knows. Parts already held are kept
        until another address has something to replace them.
        """
        with self._lock:
            if self._superseded:
                return []
            self._superseded = True
        outage = self._task.outage or (error if isinstance(error, SourceUnavailable) else None)
        following = self._task.addresses[1:]
        if following and (outage is not None or self._address != self._remote.url):
            self._tally.note(f"{error}; going on at {following[0]}")
            return [partial(self._task.begin, replace(self._task, addresses=following, outage=outage))]
        if outage is None or outage is error:
            raise error
        raise outage from error

    def _part_size(self, size: int | None) -> int:
        """How many bytes a part has of a file of `size` bytes, if that is known."""
        largest = self._task.part_size
        if size is None or size <= SMALL_FILE:
            return min(SMALL_FILE, largest)
        shares = PARTS_PER_CONNECTION * self._transport.policy.connections
        return min(largest, max(SMALLEST_PART, -(-size // shares)))

    def _patience_s(self, silences: int) -> float:
        """Seconds of silence to bear: little at first, and in the end all that the policy has."""
        patience: float = min(self._transport.policy.read_timeout_s, QUICK_PATIENCE_S * 2**silences)
        return patience

    def _compare(self, now: Validators) -> None:
        listed = self._listed.difference(now)
        if listed:
            found = f"since it was listed, {listed}"
            raise Fault(
                found, lasting=RecordInvalid(f"Fetch {self._address}", found, "Fetch the record again")
            )
        changed = self._plan.validators.difference(now) if self._plan else None
        if changed:
            raise Restart(f"it changed while it was being fetched: {changed}")

    def _write(self, descriptor: int, part: int, offset: int, data: bytes) -> None:
        """`data` of `part` arrived, that lies `offset` bytes from the file's beginning."""
        view, at = memoryview(data), offset
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written
        self._digest.update(offset, data)
        with self._lock:
            self._got[part] = self._got.get(part, 0) + len(data)
            self._count += len(data)
            count = self._count
        self._tally.reached(count)

    def _forget(self, part: int) -> None:
        with self._lock:
            self._count -= self._got.pop(part, 0)

    def _is_web_page(self, content_type: str | None, head: bytes) -> bool:
        suffix = PurePosixPath(self._remote.path).suffix.lower()
        return suffix not in WEB_PAGES and looks_like_html(content_type, head)

    def _finish(self, plan: Plan) -> list[Unit]:
        self._note_whole()
        sha256, other = self._digest.finish(self._places.part, lambda _: self._transport.check_running())
        if self._promised and other != self._promised.value:
            self._places.discard()
            raise ChecksumMismatch(
                f"Verify {self._address}",
                f"its {self._promised.algorithm} is {other}, the portal promises {self._promised.value}",
                "What was fetched is deleted; try again, and tell the portal if it stays so",
            )
        mtime_ns = self._places.part.stat().st_mtime_ns
        listed = self._listed
        file = RawFile(
            url=self._address,
            path=self._remote.path,
            size=plan.size,
            sha256=sha256,
            etag=plan.etag or listed.etag,
            modified=plan.modified or listed.modified,
            offset=self._remote.offset,
        )
        self._task.holdings.arrive(Arrived(file, self._places, self._remote.checksum, mtime_ns))
        return []
