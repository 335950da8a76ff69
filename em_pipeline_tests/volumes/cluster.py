"""A cluster that rechunks, simulated request by request.

Machines take units from a queue. A unit streams in through the machine's connections and its link, is
computed layer by layer of chunks, and streams out blob by blob as parts of a multipart upload; two layers
are in memory at most, or one where the plan holds a single slab. What is read of scratch are the parts that
`parts_of` finds in the blobs of the plan's finer units, those together that follow each other, and of all of
them the cluster's store must hold every byte. A
machine that is killed does nothing more, and its unit is given away again once that was noticed.
"""

import heapq
import math
import random
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby

from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.cost import PART_BYTES, Machine, Ratios, Requests
from em_pipeline.volumes.memory import CHUNKS_AHEAD
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit
from em_pipeline.volumes.scratch import parts_of


@dataclass(frozen=True)
class Range:
    """Bytes of the scratch blob of a unit."""

    unit: int
    start: int
    nbytes: int


@cache
def ranges_of(finer: LevelPlan, itemsize: int) -> Mapping[Shape, Sequence[Range]]:
    """What each chunk of the next coarser level is put together from, in the order in which it is read."""
    found: dict[Shape, list[Range]] = defaultdict(list)
    for unit in finer.units():
        for chunk, part in parts_of(finer, unit, itemsize).items():
            ranges = found[Shape(*(i // f for i, f in zip(chunk, finer.factors, strict=True)))]
            nbytes = part.shape.voxels * itemsize
            if ranges and (ranges[-1].unit, ranges[-1].start + ranges[-1].nbytes) == (
                unit.index,
                part.offset,
            ):
                last = ranges.pop()
                ranges.append(Range(unit.index, last.start, last.nbytes + nbytes))
            else:
                ranges.append(Range(unit.index, part.offset, nbytes))
    return found


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

    def read_ahead(self, now: float, chunks: Sequence[Sequence[int]], readers: int, held: int) -> float:
        """When requests of these sizes are done.

        Each reader takes chunk after chunk, and the answers in the order in which it asked; what it asked for
        and did not take is `held` bytes, or one request.
        """
        waiting = deque(chunks)
        todo: list[deque[int]] = [deque() for _ in range(readers)]
        asked: list[deque[tuple[float, int]]] = [deque() for _ in range(readers)]
        events = [(now, number) for number in range(readers)]
        done = now
        while events:
            now, number = heapq.heappop(events)
            mine, flying = todo[number], asked[number]
            if flying:
                flying.popleft()
            while waiting or mine:
                if not mine:
                    mine.extend(waiting.popleft())
                    continue
                if flying and sum(nbytes for _, nbytes in flying) + mine[0] > held:
                    break
                flying.append((self.send(now, mine[0]), mine.popleft()))
            if flying:
                done = max(done, flying[0][0])
                heapq.heappush(events, (max(now, flying[0][0]), number))
        return done


@dataclass
class Blob:
    """One that is being written: its bytes, those sent, and when the last of these had landed."""

    size: int
    sent: int = 0
    landed: float = 0.0

    def parts_full_at(self, share: float) -> int:
        """Parts that can be sent once that share is there; the last one waits until the blob is complete."""
        return (min(int(self.size * share), self.size - 1) - self.sent) // PART_BYTES


@dataclass
class Cluster:
    """Runs a plan, machine `n` dying at `deaths[n]`; counts the requests, and the units done again.

    `store` holds the bytes of each scratch blob, by level and unit, `shards` those of each unit's shards;
    `held` is what there was of both when each level was complete.
    """

    plan: RechunkPlan
    machine: Machine
    machines: int
    ratios: Ratios
    deaths: tuple[float, ...] = ()
    seed: int = 0
    asked: Requests = field(default_factory=Requests)
    store: dict[tuple[int, int], int] = field(default_factory=dict)
    shards: dict[tuple[int, int], int] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    repeated: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.dies = dict(enumerate(self.deaths))

    def run(self) -> float:
        """Seconds until the last level is complete."""
        now = 0.0
        for level in self.plan.levels:
            now = self._level(level, now)
            self.held.append(sum(self.store.values()) + sum(self.shards.values()))
            self.store = {at: size for at, size in self.store.items() if at[0] == level.index}
        return now

    def _level(self, level: LevelPlan, begun: float) -> float:
        waiting = deque(level.units())
        left, end = len(waiting), begun
        # Free machines, and units that come back: (time, tie-breaker, machine or unit).
        events: list[tuple[float, int, int | Unit]] = [
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
                number, unit = idle.pop(), waiting.popleft()
                ties += 1
                death = self.dies.get(number, math.inf)
                if death <= now:
                    waiting.appendleft(unit)
                    continue
                done = self._unit(level, unit, now)
                if death < done:
                    self.repeated += 1
                    heapq.heappush(events, (death + self.machine.noticed, ties, unit))
                    continue
                left, end = left - 1, max(end, done)
                heapq.heappush(events, (done, ties, number))
        return end

    def _unit(self, level: LevelPlan, unit: Unit, begun: float) -> float:
        """When a machine that takes the unit at `begun` is done with it."""
        incoming, outgoing = Pipe(self.machine, self.dice), Pipe(self.machine, self.dice)
        layers = self._layers(level, unit)
        blobs = [Blob(size) for size in self._sizes(level, unit)]
        read, computed = [begun], [begun, begun]
        compute = self._bytes(unit.box.shape) / len(layers) / (self.machine.cores * self.machine.core_rate)
        room = -1 if level.slabs_held == 1 else -2
        for step, chunks in enumerate(layers, 1):
            read.append(incoming.read_ahead(max(read[-1], computed[room]), chunks, *self._readers(level)))
            computed.append(max(read[-1], computed[-1]) + compute * self.dice.uniform(0.8, 1.2))
            for blob in blobs:
                for _ in range(blob.parts_full_at(step / len(layers))):
                    blob.sent += PART_BYTES
                    blob.landed = outgoing.send(computed[-1], PART_BYTES)
        now = incoming.send(computed[-1], 0)  # is the place still ours?
        for blob in blobs:
            now = outgoing.send(max(now, blob.landed), blob.size - blob.sent)
            if blob.sent:
                now += self.machine.request  # complete it
        now = outgoing.send(now, 0)  # the record
        multipart = sum(blob.sent > 0 for blob in blobs)
        put = len(blobs) - multipart + 1
        part = outgoing.requests - put
        self.asked += Requests(get=incoming.requests, put=put, part=part, upload=2 * multipart)
        return now

    def _readers(self, level: LevelPlan) -> tuple[int, int]:
        """How many, and bytes that each asks for at once: one for each connection to the source, or core."""
        if level.index == 0:
            return self.machine.connections, PART_BYTES
        return self.machine.cores, CHUNKS_AHEAD * self._bytes(level.tile_shape)

    def _layers(self, level: LevelPlan, unit: Unit) -> list[list[list[int]]]:
        """For each layer of chunks the sizes of the requests for each, or for each part of the source."""
        if level.index == 0:
            amplification = level.bytes_to_read / self._bytes(level.shape)
            requests = deque(_cut(round(self._bytes(unit.box.shape) * self.ratios.source * amplification)))
            steps = math.ceil(unit.box.shape.z / level.chunk_shape.z)
            total, asked = sum(requests), 0
            layers: list[list[list[int]]] = []
            for step in range(1, steps + 1):
                layers.append([])
                while requests and asked < total * step / steps - 1e-6:
                    asked += requests[0]
                    layers[-1].append([requests.popleft()])
            return layers
        ranges = ranges_of(self.plan.levels[level.index - 1], self.plan.dtype.itemsize)
        chunks = sorted(chunk for chunk, _ in unit.chunks(level.chunk_shape))
        for chunk in chunks:
            for part in ranges[chunk]:
                assert part.start + part.nbytes <= self.store[level.index - 1, part.unit]
        return [
            [[part.nbytes for part in ranges[chunk]] for chunk in layer]
            for _, layer in groupby(chunks, lambda chunk: chunk.z)
        ]

    def _sizes(self, level: LevelPlan, unit: Unit) -> list[int]:
        """Of the unit's blobs: its shards, and what it leaves for the next coarser level."""
        shards = [tile.shape for tile in unit.box.tiles(level.shard_shape)]
        sizes = [round(self._bytes(shard) * self.ratios.stored) for shard in shards]
        self.store[level.index, unit.index] = 0
        self.shards[level.index, unit.index] = sum(sizes)
        if not self.plan.is_last(level):
            parts = parts_of(level, unit, self.plan.dtype.itemsize).values()
            sizes.append(sum(part.shape.voxels for part in parts) * self.plan.dtype.itemsize)
            self.store[level.index, unit.index] = sizes[-1]
        return sizes

    def _bytes(self, shape: Shape) -> int:
        return shape.voxels * self.plan.dtype.itemsize


def _cut(nbytes: int) -> list[int]:
    whole, rest = divmod(nbytes, PART_BYTES)
    return [PART_BYTES] * whole + ([rest] if rest else [])
