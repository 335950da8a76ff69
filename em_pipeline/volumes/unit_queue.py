"""The units of one level on their way through many hands: which wait, which are out, which are done.

Nothing here knows who the workers are or how they are reached, and time is told by whoever asks.

A unit is *open* until a batch that holds it comes back. An open unit *waits*, or is *out* in one batch, or,
where that one is late, waits or is out a second time: units may be written twice, and whichever copy comes
back first counts (see `em_pipeline.volumes.output`).
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from em_pipeline.volumes.plan import Unit

_BATCH_BYTES: Final = 1 << 30
"""Voxels of units given at once: seconds of work, much to start a task for and little to lose."""

_SHARES: Final = 4
"""While units wait, a worker gets at most this part (1/4) of its share of them: all end together."""


@dataclass(frozen=True)
class Bounds:
    """How much goes wrong before something is done about it.

    `deaths` workers may end while they write one unit: machines are taken away, more is no accident. A batch
    is late once it is out for more than `late_s` seconds and for more than `late_times` as long as a batch
    of as many bytes usually takes, which is the median of those that came back.
    """

    deaths: int = 3
    late_s: float = 120.0
    late_times: float = 4.0


@dataclass(eq=False)
class Batch:
    """Units, `nbytes` of voxels, that `worker` was given at the time `since` (seconds)."""

    worker: str
    units: tuple[Unit, ...]
    nbytes: int
    since: float
    late: bool = False


class UnitQueue:
    """Hands out `units`, of voxels of `itemsize` bytes. For one thread."""

    def __init__(self, units: Sequence[Unit], itemsize: int, bounds: Bounds) -> None:
        self._waiting = deque(units)
        self._open = {unit.index for unit in units}
        self._out: list[Batch] = []
        self._deaths: Counter[int] = Counter()
        self._paces: list[float] = []  # seconds per byte of what came back, sorted
        self._itemsize = itemsize
        self._bounds = bounds

    @property
    def is_done(self) -> bool:
        return not self._open

    def deaths_at(self, unit: Unit) -> int:
        """How many workers ended while they wrote it."""
        return self._deaths[unit.index]

    def take(self, worker: str, hands: int, now: float) -> Batch | None:
        """The next units for one of `hands` workers that have nothing; None where none waits.

        They follow one another; a unit at which workers ended goes alone.
        """
        share = -(-len(self._waiting) // (_SHARES * hands))
        units: list[Unit] = []
        while self._waiting and len(units) < share:
            alone = self._deaths[self._waiting[0].index] > 0
            if units and (alone or self._nbytes(units) >= _BATCH_BYTES):
                break
            units.append(self._waiting.popleft())
            if alone:
                break
        if not units:
            return None
        batch = Batch(worker, tuple(units), self._nbytes(units), now)
        self._out.append(batch)
        return batch

    def came_back(self, batch: Batch, now: float) -> int:
        """A batch is written; the bytes of voxels that were not written before."""
        self._out.remove(batch)
        insort(self._paces, (now - batch.since) / batch.nbytes)
        new = [unit for unit in batch.units if unit.index in self._open]
        self._open.difference_update(unit.index for unit in new)
        self._waiting = deque(unit for unit in self._waiting if unit.index in self._open)
        return self._nbytes(new)

    def give_back(self, batch: Batch) -> None:
        """A batch was not begun: what is open of it, and nowhere else, waits again."""
        self._out.remove(batch)
        self._waiting.extendleft(reversed(self._only_in(batch)))

    def worker_ended(self, batch: Batch) -> Unit | None:
        """`give_back`, for a batch whose worker ended; the unit at which too many have, if it is known."""
        self._deaths.update(unit.index for unit in batch.units if unit.index in self._open)
        self.give_back(batch)
        # In a larger batch, each may be innocent.
        alone = batch.units[0] if len(batch.units) == 1 else None
        return alone if alone is not None and self.deaths_at(alone) > self._bounds.deaths else None

    def failed(self, batch: Batch) -> bool:
        """Whether the failure of a batch is one of the work: some unit of it has no other copy in time."""
        self._out.remove(batch)
        return bool(self._only_in(batch))

    def let_late_wait(self, now: float) -> list[Batch]:
        """Where nothing else waits, have the units of late batches wait a second time; those batches."""
        if self._waiting or not self._paces:
            return []
        late = [batch for batch in self._out if not batch.late and now - batch.since > self._limit(batch)]
        for batch in late:
            self._waiting.extend(self._only_in(batch))
            batch.late = True
        return late

    def _limit(self, batch: Batch) -> float:
        usual = self._paces[len(self._paces) // 2] * batch.nbytes
        return max(self._bounds.late_s, self._bounds.late_times * usual)

    def _only_in(self, batch: Batch) -> list[Unit]:
        """Open units of a batch that do not wait and are out in no other that is in time."""
        others = [other for other in self._out if other is not batch and not other.late]
        elsewhere = {unit.index for unit in self._waiting}
        elsewhere.update(unit.index for other in others for unit in other.units)
        return [unit for unit in batch.units if unit.index in self._open and unit.index not in elsewhere]

    def _nbytes(self, units: Sequence[Unit]) -> int:
        return sum(unit.box.shape.voxels for unit in units) * self._itemsize
