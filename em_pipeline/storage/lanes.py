"""Connections to a host, each with the right to have it, and for how long it is kept without being used."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from em_pipeline.storage.host_slots import HostSlots, Slot
from em_pipeline.storage.pace import Pace

if TYPE_CHECKING:
    import httpx

    from em_pipeline.storage.patience import HeaderDeadline

# A connection that another process waits for is given up after this long, between two requests.
LONGEST_TURN_S = 2.0
# One that is not in use is given up for others within the first of these, and for good after the second.
LOOK_EACH_S = 0.2
LONGEST_REST_S = 5.0


class Lane:
    """One connection to a host, and the right to have it."""

    def __init__(self, slot: Slot, scheme: str, client: "httpx.Client", headers: "HeaderDeadline") -> None:
        self._slot = slot
        self.scheme = scheme
        self.client = client
        self.headers = headers
        self.since = self.used = time.monotonic()

    def close(self) -> None:
        self.client.close()
        self._slot.release()


class Host:
    """One host's connections, of all threads of a transport, and the earliest time of its next request."""

    def __init__(self, name: str, connections: int, locks: Path) -> None:
        self.turns = threading.BoundedSemaphore(connections)
        self.slots = HostSlots(locks, name, connections)
        self.lock = threading.Lock()
        self.next_request = 0.0
        self.pace = Pace()
        self._idle: list[Lane] = []
        self._closed = threading.Event()
        self._resting: threading.Thread | None = None

    @contextmanager
    def lane(self, scheme: str, opened: Callable[["Host", str], Lane]) -> Iterator[Lane]:
        """A connection to http or https that nobody else uses: an idle one, else what `opened` opens."""
        with self.turns:
            with self.lock:
                lane = self._idle.pop() if self._idle else None
            if lane is not None and lane.scheme != scheme:
                lane.close()
                lane = None
            lane = lane or opened(self, scheme)
            try:
                yield lane
            finally:
                if time.monotonic() - lane.since > LONGEST_TURN_S and self.slots.wanted():
                    lane.close()
                else:
                    self._keep(lane)

    def _keep(self, lane: Lane) -> None:
        lane.used = time.monotonic()
        with self.lock:
            kept = not self._closed.is_set()
            if kept:
                self._idle.append(lane)
                if self._resting is None:
                    self._resting = threading.Thread(target=self._rest, name="resting", daemon=True)
                    self._resting.start()
        if not kept:
            lane.close()

    def _rest(self) -> None:
        """Give up connections that are not in use, until there are none."""
        while not self._closed.wait(LOOK_EACH_S):
            wanted = self.slots.wanted()
            latest = time.monotonic() - LONGEST_REST_S
            with self.lock:
                given = [lane for lane in self._idle if wanted or lane.used < latest]
                self._idle = [lane for lane in self._idle if lane not in given]
                over = not self._idle
                if over:
                    self._resting = None
            for lane in given:
                lane.close()
            if over:
                return

    def close(self) -> None:
        self._closed.set()
        with self.lock:
            given, self._idle = self._idle, []
        for lane in given:
            lane.close()
