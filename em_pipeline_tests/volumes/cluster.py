"""A cluster that rechunks, simulated request by request.

Machines take units from a queue. A unit streams in through the machine's connections and its link, is
computed layer by layer of chunks, and streams out shard by shard as parts of a multipart upload; two layers
are in memory at most. A machine that is killed does nothing more, and its unit is given away again once that
was noticed.
"""

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.volumes.cost import PART_BYTES, Machine, Ratios
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan


@dataclass
class Pipe:
    """Connections that share a link: a request waits for one, then for its first byte, then for its turn."""

    machine: Machine
    dice: random.Random
    free: list[float] = field(default_factory=list)
    link_free: float = 0.0
    requests: int = 0

    def send(self, now: float, nbytes: float) -> float:
        """When a request of `nbytes` that is made at `now` is done."""
        self.requests += 1
        if len(self.free) < self.machine.connections:
            heapq.heappush(self.free, 0.0)
        begun = max(now, heapq.heappop(self.free))
        answered = begun + self.machine.request * self.dice.uniform(0.5, 1.5)
        self.link_free = max(answered, self.link_free) + nbytes / self.machine.network
        heapq.heappush(self.free, self.link_free)
        return self.link_free


@dataclass
class Cluster:
    """Runs a plan, machine `n` dying at `deaths[n]`; counts the requests, and the units done again."""

    plan: RechunkPlan
    machine: Machine
    machines: int
    ratios: Ratios
    deaths: tuple[float, ...] = ()
    seed: int = 0
    gets: int = 0
    parts: int = 0
    uploads: int = 0
    repeated: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.dies = dict(enumerate(self.deaths))

    def run(self) -> float:
        """Seconds until the last level is complete."""
        now = 0.0
        for level in self.plan.levels:
            now = self._level(level, now)
        return now

    def _level(self, level: LevelPlan, begun: float) -> float:
        waiting = deque(unit.box for unit in level.units())
        left, end = len(waiting), begun
        # Free machines, and units that come back: (time, tie-breaker, machine or box).
        events: list[tuple[float, int, int | BoundingBox]] = [
            (begun, n, n) for n in range(self.machines) if self.dies.get(n, math.inf) > begun
        ]
        heapq.heapify(events)
        idle: list[int] = []
        ties = self.machines
        while left:
            now, _, what = heapq.heappop(events)
            if isinstance(what, int):
                idle.append(what)
            else:
                waiting.append(what)
            while waiting and idle:
                number, box = idle.pop(), waiting.popleft()
                ties += 1
                death = self.dies.get(number, math.inf)
                if death <= now:
                    waiting.appendleft(box)
                    continue
                done = self._unit(level, box, now)
                if death < done:
                    self.repeated += 1
                    heapq.heappush(events, (death + self.machine.noticed, ties, box))
                    continue
                left, end = left - 1, max(end, done)
                heapq.heappush(events, (done, ties, number))
        return end

    def _unit(self, level: LevelPlan, box: BoundingBox, begun: float) -> float:
        """When a machine that takes the unit at `begun` is done with it."""
        incoming, outgoing = Pipe(self.machine, self.dice), Pipe(self.machine, self.dice)
        steps = math.ceil(box.shape.z / level.chunk_shape.z)
        ranges = deque(self._ranges(level, box))
        total, asked = sum(ranges), 0.0
        shards = [tile.shape for tile in box.tiles(level.shard_shape)]
        stored = [round(self._bytes(shard) * self.ratios.stored) for shard in shards]
        sent = [0.0] * len(shards)
        read, computed = [begun], [begun, begun]
        compute = self._bytes(box.shape) / steps / (self.machine.cores * self.machine.core_rate)
        uploaded = begun + self.machine.request  # the uploads begin
        for step in range(1, steps + 1):
            start = done = max(read[-1], computed[-2])
            while ranges and asked < total * step / steps - 1e-6:
                asked += ranges[0]
                done = max(done, incoming.send(start, ranges.popleft()))
            read.append(done)
            computed.append(max(done, computed[-1]) + compute * self.dice.uniform(0.8, 1.2))
            for n, size in enumerate(stored):
                ready = size * step / steps
                while sent[n] < size and (ready - sent[n] >= PART_BYTES or step == steps):
                    part = min(PART_BYTES, size - sent[n])
                    uploaded = max(uploaded, outgoing.send(computed[-1], part))
                    sent[n] += part
        multipart = [size for size in stored if size > PART_BYTES]
        self.gets += incoming.requests
        self.parts += outgoing.requests - (len(stored) - len(multipart))
        self.uploads += 2 * len(multipart)
        return max(uploaded, computed[-1]) + 2 * self.machine.request  # complete them, and say so

    def _ranges(self, level: LevelPlan, box: BoundingBox) -> list[float]:
        """Bytes of each request for what a unit is made from, in the order in which it is needed."""
        if level.index == 0:
            amplification = level.bytes_to_read / self._bytes(level.shape)
            return _cut(round(self._bytes(box.shape) * self.ratios.source * amplification))
        below = self.plan.levels[level.index - 1]
        shape = Shape(*(n * f for n, f in zip(box.shape, below.factors, strict=True)))
        shards = BoundingBox.of_shape(shape).tiles(below.shard_shape)
        sizes = [round(self._bytes(shard.shape) * self.ratios.stored) for shard in shards]
        return [nbytes for size in sizes for nbytes in (0.0, *_cut(size))]

    def _bytes(self, shape: Shape) -> int:
        return shape.voxels * self.plan.dtype.itemsize


def _cut(nbytes: int) -> list[float]:
    whole, rest = divmod(nbytes, PART_BYTES)
    return [float(PART_BYTES)] * whole + ([float(rest)] if rest else [])
