"""Files over HTTP: ranged parts, several at once, asked for again until their bytes are right (RFC 9110)."""

import re
from functools import partial
from typing import TYPE_CHECKING

from em_pipeline.domain.errors import NotFound, RecordInvalid
from em_pipeline.storage.answers import WEB_PAGE
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.journal import Plan, Validators
from em_pipeline.storage.object_urls import https_url
from em_pipeline.storage.pace import Line
from em_pipeline.storage.task import Absent, Restart, Task, Unit
from em_pipeline.storage.transfer import SMALL_FILE, Transfer

if TYPE_CHECKING:
    import httpx

# What comes in one round trip, as a connection begins slowly (RFC 6928): others follow when it is there.
FIRST_BYTES = 8 * 1024
# Connections take this part of a file first, then of the rest: while that comes, what came is hashed. Another
# round is worth its requests where each connection has so much left for it.
ROUND = 0.75
ROUND_BYTES = 4 * 1024 * 1024
# Parts that a connection must have left for another to take half of them: the first of them is on its way.
LEAST_TO_SHARE = 2
MAX_ERROR_BYTES = 16 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HttpTransfer(Transfer):
    """From http(s), s3:// and gs:// addresses.

    Bytes are held as they are stored: what a store keeps with a Content-Encoding is not decoded, and its size
    is that of the encoded bytes. From other servers encoded bytes are taken only where they have the listed
    size: otherwise they may have been encoded on the way, and be others the next time.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        endpoints = task.transport.policy.endpoints
        self._url = https_url(self._address, endpoints)
        self._store = endpoints.stores_bytes_as_sent(self._url)
        # Google decodes what is kept compressed for those who do not take it so, and sends no parts of it.
        self._accepts = "gzip, identity" if self._store else "identity"
        self._ranged = True
        # One request asks for consecutive parts: the part each began at → the part it is to end before.
        self._ends: dict[int, int] = {}

    def _next(self, part: int, first: bool) -> list[Unit]:
        if first:
            with self._lock:
                self._ends = self._shares()
                starts = list(self._ends)
            self._task.sharers.join(self)
            return [partial(self._fetch, start) for start in starts]
        following = self._following(part)
        return [] if following is None else [partial(self._fetch, following)]

    def _shares(self) -> dict[int, int]:
        """What is left, cut so that each connection has a share of each round, no request for too much."""
        plan, left = self._plan, sorted(self._left)
        if plan is None:
            return {}
        connections = self._transport.policy.connections
        most = max(1, self._task.request_size // plan.part_size)
        least = max(1, min(SMALL_FILE, self._task.part_size) // plan.part_size)
        worth = max(1, min(ROUND_BYTES, self._task.part_size) // plan.part_size)
        shares: dict[int, int] = {}
        start, begun, share = -1, 0, 0
        for number, part in enumerate(left):
            if number == begun:
                share, begun = _round(len(left) - number, connections, least, worth)
                begun, start = number + begun, -1
            if start < 0 or part != shares[start] or part - start >= min(most, share):
                start = part
            shares[start] = part + 1
        return shares

    def _following(self, part: int) -> int | None:
        """What is left of a request that began at `part`, after a failure; None where nothing is."""
        with self._lock:
            end = self._ends.pop(part, part)
            rest = next((other for other in range(part, end) if other in self._left), None)
            if rest is not None:
                self._ends[rest] = end
            return rest

    def share(self) -> Unit | None:
        """The later half of what one connection has most left of, for one that has nothing else to do.

        So one that fell behind keeps the others waiting no longer than they help it.
        """
        with self._lock:
            if self._superseded or len(self._ends) >= self._transport.policy.connections:
                return None
            open_parts = {
                start: [other for other in range(start, stop) if other in self._left]
                for start, stop in self._ends.items()
            }
            start, most = max(open_parts.items(), key=lambda entry: len(entry[1]), default=(0, []))
            if len(most) < LEAST_TO_SHARE:
                return None
            begin = most[-(len(most) // 2)]
            self._ends[begin], self._ends[start] = self._ends[start], begin
            return partial(self._fetch, begin)

    def _ask(self, part: int, silences: int, line: Line | None) -> None:
        start, stop = 0, self._first_bytes()
        if self._plan:
            start, stop = self._plan.span(part)[0], self._plan.span(self._end(part) - 1)[1]
        start += self._got.get(part, 0)
        if self._remote.offset is not None:
            stop = min(stop, self._remote.size or stop)
        base = self._remote.offset or 0
        headers = {"Accept-Encoding": self._accepts}
        if self._ranged:
            headers["Range"] = f"bytes={base + start}-{base + stop - 1}"
        if self._plan and (condition := _if_range(self._plan)):
            headers["If-Range"] = condition
        absence = {404} if self._remote.may_be_absent and self._address == self._remote.url else set()
        accept = frozenset({200, 206, 416} | absence)
        patience = self._patience_s(silences)
        with self._transport.exchange(
            "GET", self._url, headers, accept=accept, patience_s=patience, line=line
        ) as response:
            if response.status_code == 404:
                self._miss(response)
            elif response.status_code == 416:
                self._out_of_range()
            else:
                if self._is_web_page(response.headers.get("Content-Type"), b""):
                    raise Fault(WEB_PAGE)
                if response.status_code == 206:
                    self._receive_part(response, part, start, stop)
                else:
                    if line is not None:
                        line.let_be()  # a stream that is cut begins anew
                    self._receive_whole(response)

    def _end(self, part: int) -> int:
        """The part before which the request that began at `part` is to end, as others leave it."""
        with self._lock:
            return max(part + 1, self._ends.get(part, part + 1))

    def _first_bytes(self) -> int:
        """How much to ask for first: of a file of several parts little, so that others soon follow."""
        size, part_size = self._remote.size, self._part_size(self._remote.size)
        several = size is not None and size > part_size
        return min(FIRST_BYTES, part_size) if several else part_size

    def _miss(self, response: "httpx.Response") -> None:
        """The file is not there, unless it is the bucket that is not."""
        body = b""
        for piece in response.iter_bytes():
            body += piece
            if len(body) > MAX_ERROR_BYTES:
                break
        if b"<Code>NoSuchBucket</Code>" in body:
            raise NotFound(f"Fetch {self._address}", "there is no such bucket", "Check the address")
        if self._plan is not None:
            raise Restart("the server says that it is gone")
        raise Absent

    def _out_of_range(self) -> None:
        if self._plan is not None:
            raise Restart("the server says that it is shorter now")
        if self._remote.offset is not None:
            raise self._too_short("nothing")
        if not self._ranged:
            raise Fault("HTTP 416, though no range was asked for")
        self._ranged = False  # an empty file has no first part: ask for all of it

    def _too_short(self, what: str) -> RecordInvalid:
        offset, size = self._remote.offset or 0, self._remote.size or 0
        return RecordInvalid(
            f"Fetch bytes {offset} to {offset + size} of {self._address}",
            f"the server has {what} there",
            "Fetch the record again: it may have changed since it was listed",
        )

    def _receive_part(self, response: "httpx.Response", part: int, start: int, stop: int) -> None:
        base = self._remote.offset or 0
        sent = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(sent.strip())
        first, last, total = (int(group) for group in match.groups()) if match else (-1, -1, -1)
        if first != base + start or not first <= last < min(base + stop, total):
            raise Fault(f"bytes {base + start}-{base + stop - 1} were asked for, Content-Range says {sent!r}")
        self._refuse_encoded(response, total)
        self._compare(Validators(total, response.headers.get("ETag"), response.headers.get("Last-Modified")))
        if self._remote.offset is not None and total < base + (self._remote.size or 0):
            raise self._too_short(f"only {total - base} bytes")
        plan = self._plan or self._planned(response, total)
        if self._plan is None:
            self._pin(plan)
            with self._lock:
                self._ends[part] = -(-(last + 1 - base) // plan.part_size)
        length = last + 1 - first
        _check_length(response, length)
        received = self._receive_parts(response, plan, part, start, start + length)
        if received is not None and received < length:
            raise Fault(f"{received} of {length} bytes")

    def _receive_parts(
        self, response: "httpx.Response", plan: Plan, began: int, start: int, stop: int
    ) -> int | None:
        """Write bytes `start` to `stop` as they come, holding each part that they complete.

        Returns how many came; None where another connection took over the rest meanwhile.
        """
        at, part = start, began
        with self._part_file() as descriptor:
            for piece in response.iter_raw():
                rest = memoryview(piece)
                if at + len(rest) > stop:
                    self._forget(part)  # which of its bytes belong to the range is not known
                    raise Fault(f"more than the {stop - start} bytes that were asked for")
                while rest:
                    now = rest[: plan.span(part)[1] - at]
                    self._write(descriptor, part, at, bytes(now))
                    at, rest = at + len(now), rest[len(now) :]
                    if at == plan.span(part)[1] and at < stop:
                        if self._hold(part, plan) is None:
                            raise Restart("another part found it changed")
                        # In this order: what is asked for and not held cannot be taken over any more.
                        if part + 1 >= self._end(began):
                            return None
                        part += 1
        if at == stop == plan.span(part)[1] and self._hold(part, plan) is None:
            raise Restart("another part found it changed")
        return at - start

    def _planned(self, response: "httpx.Response", total: int) -> Plan:
        offset, size = self._remote.offset, self._remote.size
        size = total if offset is None or size is None else size
        return Plan(
            url=self._address,
            size=size,
            etag=response.headers.get("ETag"),
            modified=response.headers.get("Last-Modified"),
            part_size=self._part_size(size),
            offset=offset or 0,
            total=total,
        )

    def _receive_whole(self, response: "httpx.Response") -> None:
        """Take all of a file from a server that does not send parts."""
        length = response.headers.get("Content-Length")
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        size = int(length) if length is not None else self._listed.size
        now = Validators(size, etag, modified)
        if self._listed.difference(now) and self._is_web_page(None, next(response.iter_raw(), b"")):
            raise Fault(WEB_PAGE)
        self._refuse_encoded(response, int(length) if length is not None else None)
        self._compare(now)
        if self._remote.offset is not None:
            found = "the server sends no parts of files, only all of it"
            unusable = RecordInvalid(f"Fetch {self._address}", found, "Find another address of the file")
            raise Fault(found, lasting=unusable)
        if self._plan is not None and self._plan.part_size < self._plan.size:
            found = "the server sent the whole file in place of a part"
            raise Fault(found, lasting=Restart("the server does not send parts of it any more"))
        self._refuse_endless(response, size)
        self._take_stream(response, size, etag, modified)

    def _take_stream(
        self, response: "httpx.Response", size: int | None, etag: str | None, modified: str | None
    ) -> None:
        self._pin(Plan(self._address, size or 0, etag, modified, max(1, size or 1), 0, size or 0))
        received, self._got, self._count = 0, {}, 0
        try:
            with self._part_file() as descriptor:
                for piece in response.iter_raw():
                    if size is not None and received + len(piece) > size:
                        raise Fault(f"more than the {size} bytes that are its size")
                    self._write(descriptor, 0, received, piece)
                    received += len(piece)
            if size is not None and received != size:
                raise Fault(f"{received} of {size} bytes")
        finally:
            self._plan, self._got, self._count = None, {}, 0  # a stream cut short is begun anew
        self._plan = Plan(self._address, received, etag, modified, max(1, received), 0, received)
        self._got = {0: received}

    def _refuse_endless(self, response: "httpx.Response", size: int | None) -> None:
        chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        if size is None and not chunked and self._promised is None:
            raise RecordInvalid(
                f"Fetch {self._address}",
                "neither server nor listing says how long it is: a cut connection would look whole",
                "List the file with its size or checksum",
            )

    def _refuse_encoded(self, response: "httpx.Response", total: int | None) -> None:
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        stored = total is not None and (self._store or total == self._listed.size)
        if encoding != "identity" and not stored:
            raise RecordInvalid(
                f"Fetch {self._address}",
                f"it comes with Content-Encoding {encoding}, though the plain bytes were asked for",
                "Its size and checksum would be of other bytes; find another address of the file",
            )


def _round(left: int, connections: int, least: int, worth: int) -> tuple[int, int]:
    """Of `left` parts, how many each connection takes now, and how many all together; see `ROUND`."""
    share = int(ROUND * left) // connections
    if share and left - share * connections >= connections * worth:
        return share, share * connections
    return max(least, -(-left // connections)), left


def _if_range(plan: Plan) -> str | None:
    # Weak ETags never match in If-Range (RFC 9110 §13.1.5).
    if plan.etag and not plan.etag.startswith("W/"):
        return plan.etag
    return plan.modified


def _check_length(response: "httpx.Response", length: int) -> None:
    said = response.headers.get("Content-Length")
    if said is not None and int(said) != length:
        raise Fault(f"Content-Length says {said}, the range has {length} bytes")
