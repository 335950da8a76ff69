"""Progress of a step, written to Dagster's log at a pace a person can read."""

import threading
import time
from collections.abc import Callable

from em_pipeline.domain.progress import Progress

# Seconds between two lines of one step.
PACE_S = 5.0


class LoggedProgress:
    """Logs counts of the running steps every few seconds, and passes everything on to a second watcher.

    Dagster's log may only be written from the thread that runs the asset: what other threads report is
    kept until `flush` or the next report from that thread.
    """

    def __init__(self, log: Callable[[str], None], onward: Progress) -> None:
        self._log = log
        self._onward = onward
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._steps: dict[str, tuple[int, int, str, float, float]] = {}

    def start(self, step: str, total: int, unit: str) -> None:
        now = time.monotonic()
        with self._lock:
            self._steps[step] = (0, total, unit, now, now)
        self._onward.start(step, total, unit)

    def advance(self, step: str, amount: int) -> None:
        now = time.monotonic()
        with self._lock:
            done, total, unit, began, spoke = self._steps.get(step, (0, 0, "", now, now))
            done += amount
            if now - spoke >= PACE_S:
                spoke = now
                self._waiting.append(_line(step, done, total, unit, now - began))
            self._steps[step] = (done, total, unit, began, spoke)
        self._onward.advance(step, amount)
        self._speak()

    def note(self, message: str) -> None:
        with self._lock:
            self._waiting.append(message)
        self._onward.note(message)
        self._speak()

    def flush(self) -> None:
        """Log what is still waiting; call from the asset's thread when the step ends."""
        self._speak()

    def _speak(self) -> None:
        if threading.get_ident() != self._thread:
            return
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._log(message)


def _line(step: str, done: int, total: int, unit: str, seconds: float) -> str:
    rate = done / seconds if seconds else 0.0
    if unit == "bytes":
        return (
            f"{step}: {done / 1e6:.1f}"
            + (f" of {total / 1e6:.1f}" if total else "")
            + f" MB, {rate / 1e6:.1f} MB/s"
        )
    return f"{step}: {done}" + (f" of {total}" if total else "") + f" {unit}, {rate:.1f}/s"
