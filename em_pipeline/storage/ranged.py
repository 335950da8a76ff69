"""Files read part by part where they lie, on a web server or on this machine, within a budget.

A reader seeks and reads as in any file; only the blocks it touches are fetched, each once.
"""

import io
import re
from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from em_pipeline.domain.errors import BudgetSpent, EmError, InputRefused, RecordInvalid, SourceUnavailable
from em_pipeline.storage.answers import WEB_PAGES, looks_like_html
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.transport import Transport

if TYPE_CHECKING:
    import httpx
    from _typeshed import WriteableBuffer

URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
# A header with its first tables fits; twenty of these are a third of the budget.
BLOCK = 32 * 1024
# What a jump takes along from before its aim: writers put a table's long values just before the table.
LOOK_BACK = 8 * 1024
# Reading on about where a block ended doubles it up to this: then it is a long table, not a jump.
LONGEST_BLOCK = 512 * 1024


@dataclass
class Meter:
    """What was read, and how much may be."""

    most_bytes: int
    most_requests: int
    bytes: int = 0
    requests: int = 0

    def ask(self, what: str, count: int) -> None:
        """Count a request for `count` bytes. Raises `BudgetSpent` where that would exceed the budget."""
        if self.requests >= self.most_requests or self.bytes + count > self.most_bytes:
            raise BudgetSpent(
                f"Read {count} bytes more of {what}",
                f"{self.bytes} bytes in {self.requests} requests are read, and {self.most_bytes} in "
                f"{self.most_requests} allowed",
                "Download the file to know the rest",
            )
        self.requests += 1

    def got(self, count: int) -> None:
        self.bytes += count


class Ranges(Protocol):
    """One file. `size` is in bytes; `name` is the last part of its address."""

    name: str
    size: int

    def read(self, start: int, stop: int) -> bytes:
        """Exactly the bytes of `[start, stop)`, which lies inside the file. Raises like `Transport`."""
        ...


class RangedFile(io.RawIOBase):
    """A file over `Ranges`, readable and seekable. Not safe for several threads.

    Libraries may turn an error of a read into a verdict on the file; `failure` keeps the first one, and
    `check` raises it.
    """

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        self.name = ranges.name
        self.size = ranges.size
        self.failure: EmError | None = None
        self._ranges = ranges
        self._at = 0
        self._starts: list[int] = []
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to byte {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill `buffer`, but for the end of the file. Raises `BudgetSpent`, and like `Ranges.read`."""
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self.size)
        done = 0
        while self._at < stop:
            start, block = self._block(self._at, stop)
            part = block[self._at - start : stop - start]
            view[done : done + len(part)] = part
            done += len(part)
            self._at += len(part)
        return done

    def check(self) -> None:
        """Raise the first error that a read had."""
        if self.failure is not None:
            raise self.failure

    def check_outage(self) -> None:
        """Raise the first error that a read had, but for a spent budget, which the reader may live with."""
        if not isinstance(self.failure, BudgetSpent):
            self.check()

    def _block(self, at: int, stop: int) -> tuple[int, bytes]:
        """Start and bytes of a block that holds the byte `at`; fetched for a read up to `stop` if need be."""
        place = bisect_right(self._starts, at) - 1
        before = self._starts[place] if place >= 0 else 0
        end = before + len(self._blocks.get(before, b""))
        if at < end:
            return before, self._blocks[before]
        start = max(end, at - LOOK_BACK)
        reads_on = 0 < end == start
        ahead = min(2 * (end - before), LONGEST_BLOCK) if reads_on else BLOCK
        limit = self._starts[place + 1] if place + 1 < len(self._starts) else self.size
        try:
            block = self._ranges.read(start, min(limit, max(start + ahead, stop)))
        except EmError as error:
            self.failure = self.failure or error
            raise
        insort(self._starts, start)
        self._blocks[start] = block
        return start, block


class LocalRanges:
    """A file of this machine."""

    def __init__(self, path: Path, meter: Meter) -> None:
        self.name = path.name
        self.size = path.stat().st_size
        self._path, self._meter = path, meter

    def read(self, start: int, stop: int) -> bytes:
        self._meter.ask(self.name, stop - start)
        with self._path.open("rb", buffering=0) as file:
            file.seek(start)
            data = file.read(stop - start)
        if len(data) != stop - start:
            raise InputRefused(
                f"Read {self._path}", "it became shorter meanwhile", "Read it when it is at rest"
            )
        self._meter.got(len(data))
        return data


class HttpRanges:
    """A file on a web server that sends ranges (RFC 9110 §14); a small one is taken whole where it does not.

    Raises `InputRefused` for a large file on a server without ranges, `RecordInvalid` for encoded content,
    `SourceUnavailable` for an outage, a web page in place of the file, and a file that changes meanwhile.
    """

    def __init__(self, url: str, transport: Transport, meter: Meter) -> None:
        self.name = urlsplit(url).path.rpartition("/")[2]
        self._url, self._transport, self._meter = url, transport, meter
        self._etag: str | None = None
        self._whole: bytes | None = None
        self.size = -1
        self._head = self._retrying(lambda: self._first())

    def read(self, start: int, stop: int) -> bytes:
        for held in (self._whole, self._head):
            if held is not None and stop <= len(held):
                return held[start:stop]
        return self._retrying(lambda: self._range(start, stop))

    def _retrying(self, ask: Callable[[], bytes]) -> bytes:
        return self._transport.retrying(self._url, ask)

    def _first(self) -> bytes:
        """The first block, which also tells the file's size."""
        self._meter.ask(self.name, BLOCK)
        wanted = {"Range": f"bytes=0-{BLOCK - 1}", "Accept-Encoding": "identity"}
        with self._transport.exchange(
            "GET", self._url, wanted, accept=frozenset({200, 206, 416})
        ) as response:
            self._check(response)
            self._etag = response.headers.get("ETag")
            if response.status_code == 416:
                self.size = 0
                return b""
            if response.status_code == 200:
                self._whole = self._small(response)
                self.size = len(self._whole)
                return self._whole
            found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None:
                raise Fault("a part of the file came without Content-Range")
            self.size = int(found[3])
            return self._body(response, min(BLOCK, self.size))

    def _range(self, start: int, stop: int) -> bytes:
        self._meter.ask(self.name, stop - start)
        wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with self._transport.exchange("GET", self._url, wanted, accept=frozenset({206, 200})) as response:
            self._check(response)
            if response.status_code != 206 or response.headers.get("ETag") != self._etag:
                raise SourceUnavailable(
                    f"Read bytes {start} to {stop} of {self._url}",
                    "the file changed while it was read, or the server no longer sends parts of it",
                    "Try again",
                )
            return self._body(response, stop - start)

    def _small(self, response: "httpx.Response") -> bytes:
        """All of a file whose server does not send parts."""
        said = response.headers.get("Content-Length", "")
        left = self._meter.most_bytes - self._meter.bytes
        if not said.isdecimal() or int(said) > left:
            raise InputRefused(
                f"Read the headers of {self._url}",
                f"the server sends no parts of files (ranges), only all {said or 'unknown'} bytes of it",
                "Download the file and inspect the local copy",
            )
        return self._body(response, int(said))

    def _body(self, response: "httpx.Response", length: int) -> bytes:
        body = bytearray()
        for piece in response.iter_raw():
            body += piece
            self._meter.got(len(piece))
            if len(body) > length:
                break
        if len(body) != length:
            raise Fault(f"{len(body)} bytes came in place of {length}")
        if looks_like_html(None, bytes(body[:64])) and not self.name.lower().endswith(WEB_PAGES):
            raise Fault("a web page came in place of the file")
        return bytes(body)

    def _check(self, response: "httpx.Response") -> None:
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise RecordInvalid(
                f"Read {self._url}", f"it comes with Content-Encoding {encoding}", "Find its plain address"
            )
        if looks_like_html(response.headers.get("Content-Type"), b"") and response.status_code == 200:
            raise Fault("a web page came in place of the file")


def is_url(target: str) -> bool:
    """Whether it is an address of any kind, and no path; whoever reads it says which kinds it reads."""
    return bool(URL.match(target))
