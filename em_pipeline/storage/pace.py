"""Which requests a host leaves far behind its others, so that they are better asked again.

A stall is told by its silence alone. A connection that drips, or that is not answered while others are at
once, is told only by comparison: where a host is slow for everybody, nothing is behind.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from em_pipeline.storage.faults import Trickle

# A server that sends less than this for as long as a read may take is stalling.
SLOWEST_BYTES_PER_S = 256
# What is behind gets less than this fraction of what most others do, over this long.
FAR_BEHIND = 10
WINDOW_S = 2.0
# A request that is not answered within this, nor within ten times what others took, was forgotten.
SOONEST_S = 0.3
# Who looks again only after so long was held up, as the whole process may have been: what came meanwhile may
# not have been read.
LATE_LOOK_S = 0.3
# A host that sent nothing to anybody for so long is down, not forgetful.
ALIVE_S = 3.0
# How many requests, or looks at them, tell what is usual; answers shorter than this tell nothing of speed.
REMEMBERED = 64
TELLING_BYTES = 64 * 1024


class Flow:
    """Tells a trickle: less than `SLOWEST_BYTES_PER_S` for `patience_s` of waiting for the next bytes."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._waited, self._arrived = 0.0, 0

    def came(self, count: int, waited_s: float) -> None:
        """`count` bytes came after a wait. Raises `Trickle`."""
        self._arrived += count
        self._waited += waited_s
        if self._waited > self._patience_s:
            if self._arrived < SLOWEST_BYTES_PER_S * self._patience_s:
                raise Trickle(f"only {self._arrived} bytes in {self._waited:.1f} s")
            self._waited, self._arrived = 0.0, 0


class Line:
    """One exchange as other threads see it: how much of its body came when, and a way to end it."""

    def __init__(self) -> None:
        self.behind: str | None = None
        self.bytes = 0
        self.began = self.last = time.monotonic()
        self.answered: float | None = None
        self._excused = -math.inf
        self._end: Callable[[], None] | None = None
        self._marks: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def ended_by(self, end: Callable[[], None]) -> Iterator[None]:
        """The exchange lasts as long as this; `end` ends it from another thread."""
        self.began = self.last = time.monotonic()
        # After a redirect, it is another answer that is waited for.
        self.answered, self.bytes = None, 0
        self._marks.clear()
        with self._lock:
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None

    def came(self, count: int) -> None:
        """`count` bytes came of the body; 0 for the headers."""
        self.last = time.monotonic()
        self.answered = self.answered or self.last
        self.bytes += count

    def let_be(self) -> None:
        """Never cut it from now on: what came would be lost."""
        with self._lock:
            self._end = None

    def cut(self, why: str) -> None:
        """End the exchange, because it is behind."""
        with self._lock:
            if self._end is not None:
                self.behind = why
                self._end()

    def excuse(self, now: float) -> None:
        """Hold nothing against it of what was before `now`."""
        self._excused = now
        self._marks.clear()

    def unanswered(self, now: float) -> float | None:
        """Seconds for which it has been seen to wait for an answer; None where it has one."""
        return now - max(self.began, self._excused) if self.answered is None else None

    def rate(self, now: float) -> float | None:
        """Bytes per second of the last `WINDOW_S`, told from one look to the next; None before that."""
        self._marks.append((now, self.bytes))
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW_S:
            self._marks.popleft()
        since, bytes_then = self._marks[0]
        return (self.bytes - bytes_then) / (now - since) if since <= now - WINDOW_S else None


class Pace:
    """The exchanges of one host that are under way, and what is usual there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: set[Line] = set()
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        self._answers: deque[float] = deque(maxlen=REMEMBERED)
        self._heard = self._looked = -math.inf

    @contextmanager
    def watching(self, line: Line, end: Callable[[], None]) -> Iterator[None]:
        """Compare an exchange with others for as long as this lasts, and `end` it where it is behind."""
        with line.ended_by(end):
            with self._lock:
                self._lines.add(line)
            try:
                yield
            finally:
                with self._lock:
                    self._lines.discard(line)
                    self._learn(line)

    def _learn(self, line: Line) -> None:
        if line.answered is None or line.behind:
            return
        self._heard = max(self._heard, line.last)
        self._answers.append(line.answered - line.began)
        seconds = line.last - line.answered
        if line.bytes >= TELLING_BYTES and seconds > 0:
            self._rates.append(line.bytes / seconds)

    def look(self, now: float) -> None:
        """Cut what is behind. Called some times a second, `now` being the monotonic clock's seconds."""
        with self._lock:
            lines = list(self._lines)
            if now - self._looked > LATE_LOOK_S:
                for line in lines:
                    line.excuse(now)
            self._looked = now
            rates = {line: rate for line in lines if (rate := line.rate(now)) is not None}
            self._rates.extend(rates.values())
            usual, patience = _most(self._rates), _most(self._answers)
            heard = max((line.last for line in lines if line.answered), default=self._heard)
        alive = now - max(heard, self._heard) < ALIVE_S
        for line in lines:
            silent_s = line.unanswered(now)
            if silent_s is not None:
                if alive and patience and silent_s > max(SOONEST_S, FAR_BEHIND * patience):
                    line.cut(f"no answer for {silent_s:.1f} s, where others took {patience:.2g} s")
            elif usual and rates.get(line, math.inf) < usual / FAR_BEHIND:
                line.cut(f"only {rates[line]:.0f} bytes per second, where others get {usual:.0f}")


def _most(values: Sequence[float]) -> float | None:
    """What a quarter of the values exceed: of few connections, several may be bad at once."""
    return sorted(values)[3 * len(values) // 4] if values else None
