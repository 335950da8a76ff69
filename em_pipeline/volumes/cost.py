"""What a rechunk on an object store costs: requests, bytes, time and money, before anything runs.

The model. A unit of a level is work for one machine; machines take units as they become free. Units of level
0 read the source. Every unit but those of the last level leaves its downsampled voxels, raw, in one blob, its
*scratch*; a chunk of a coarser level is put together from the parts that up to eight finer chunks left, one
ranged GET for those that lie one behind the other (`scratch.ScratchReader`), so a level begins when the finer
one is complete. No shard is read.

Within a unit, *steps* (one layer of chunks each) go through three stages that overlap: read, compute, write.
With `r`, `c` and `w` the seconds that each stage needs for a step, a unit of `s` steps takes

    t = r + c + w + (s − 1) · max(r, c, w) + closing

(the fill of a linear pipeline, and what is done in turn at the end: see that the place is still ours, send
the last part of each blob and complete it, write the record). Where one slab is held at a time
(`LevelPlan.slabs_held`), read and compute are one stage of `r + c`. `g` requests of `b` bytes over `k`
connections and a network of `n` bytes per second take, as long as the slower of the two,

    max(g · b / n + request, ⌈g / k⌉ · (b / n + request))

A thread for each core reads scratch, and none asks for more than `memory.CHUNKS_AHEAD` chunks at once: where
that is fewer requests than connections, they are `k`.
The units of a level on `N` machines take, by Graham's bound for list scheduling (R. L. Graham, Bounds on
multiprocessing timing anomalies, SIAM J. Appl. Math. 17, 1969),

    max(Σt / N, t_max)  ≤  seconds  ≤  Σt / N + (1 − 1/N) · t_max

When `k` machines are lost on the way, the others share the work, and each loss repeats at most one unit:

    seconds  ≤  Σt / (N − k) + t_max + k · (t_max + noticed)

At the end, one machine reads every record, and copies every shard out of staging. The store itself is no
bottleneck in the model: `RechunkCost.gets_per_second` is to be compared with its limits. A dozen requests
that hold the place, or ask whether something is there, are not counted; nor is it that scratch and shards
share a process's connections (`object_client.ObjectPolicy`), of which shards take few.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Final, NamedTuple, Self

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.memory import CHUNKS_AHEAD
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan
from em_pipeline.volumes.scratch_requests import units_by_requests
from em_pipeline.volumes.store_requests import DOCUMENTS, Prices, Requests, frame_requests, publish_requests
from em_pipeline.volumes.tiling import grid

__all__ = [
    "PART_BYTES",
    "Machine",
    "Prices",
    "Ratios",
    "RechunkCost",
    "Requests",
    "UnitCost",
    "bytes_held",
    "least_seconds",
    "most_seconds",
    "rechunk_cost",
    "requests_of",
    "unit_costs",
]

PART_BYTES: Final = 16 << 20
"""Of a multipart upload (`object_client.Policy`), and of one GET of the source."""
RECORDS_AT_ONCE: Final = 8
"""Records that are read at once when all units are done (`rechunk.py`)."""
MONTH_HOURS: Final = 730
"""Of a year's twelfth."""


@dataclass(frozen=True)
class Machine:
    """One worker. Rates are bytes per second.

    `core_rate` is voxels that a core decodes, downsamples and encodes, `padding_rate` zeros that fill up its
    chunks (zstd 1 took 0.45 ms for the 2 MiB of a chunk with one plane); `network` is each direction's;
    `request` the seconds until a request's first byte; `connections` the requests under way at once in each
    direction; `copy` the seconds of a copy within the store, of which `copies` are under way at once;
    `noticed` the seconds until a lost machine's unit is given to another.
    """

    cores: int = 16
    core_rate: float = 300e6
    padding_rate: float = 4e9
    network: float = 7.5e9 / 8
    request: float = 0.03
    connections: int = 16
    copy: float = 0.5
    copies: int = 64
    noticed: float = 60.0

    def transfer(self, nbytes: float, count: float, in_turn: float) -> float:
        """What `count` requests of `nbytes` together take, of which so many wait for one another."""
        if not count:
            return 0.0
        each = nbytes / count / self.network
        return max(nbytes / self.network + self.request, in_turn * (each + self.request))

    def seconds(self, voxel_bytes: int, padding_bytes: int) -> float:
        """What all cores take to decode, downsample and encode so many bytes."""
        return (voxel_bytes / self.core_rate + padding_bytes / self.padding_rate) / self.cores

    def scratch_at_once(self, chunk_bytes: float, run_bytes: float) -> int:
        """Requests for runs of scratch that are under way at once, of a level with such chunks."""
        return min(self.connections, self.cores * max(1, int(CHUNKS_AHEAD * chunk_bytes / run_bytes)))


@dataclass(frozen=True)
class Ratios:
    """Encoded bytes per byte of voxels: as we store them (zstd on micrographs), and of the source.

    `padding` is of the zeros that fill up chunks: of compressed ones, nothing to speak of.
    """

    stored: float = 0.76
    source: float = 1.0
    padding: float = 0.0

    def of_chunks(self, shape: Shape, level: LevelPlan, itemsize: int) -> int:
        """Stored bytes of the chunks that cover `shape` voxels (z-y-x)."""
        return round((shape.voxels * self.stored + _padding(shape, level) * self.padding) * itemsize)


@dataclass(frozen=True)
class UnitCost:
    """`count` units that are alike: bytes, steps, requests and seconds of each.

    `bytes_stored` are its shards, `scratch_bytes` what it leaves for the next coarser level.
    """

    count: int
    bytes_read: int
    bytes_stored: int
    scratch_bytes: int
    steps: int
    requests: Requests
    seconds: float


@dataclass(frozen=True)
class RechunkCost:
    """What the whole costs. Seconds are bounds; dollars those of the greater.

    `bytes_read` counts what comes over the network, from the source and from scratch; `bytes_stored` is the
    volume, `scratch_bytes` what is deleted again; `voxel_bytes` is the finest level. `peak_bytes` are the
    most that lie in the store at once: shards and scratch, or at the end everything twice. `gets_per_second`
    is the average over the level that asks most; `storage_dollars` store the peak while the rechunk lasts.
    """

    machines: int
    voxel_bytes: int
    units: int
    requests: Requests
    bytes_read: int
    bytes_stored: int
    scratch_bytes: int
    peak_bytes: int
    gets_per_second: float
    seconds_least: float
    seconds_most: float
    machine_dollars: float
    request_dollars: float
    egress_dollars: float
    storage_dollars: float
    month_dollars: float

    @property
    def bytes_written(self) -> int:
        return self.bytes_stored + self.scratch_bytes

    @property
    def dollars(self) -> float:
        """Once, without the storage of the result, which is `month_dollars` a month."""
        return self.machine_dollars + self.request_dollars + self.egress_dollars + self.storage_dollars


def rechunk_cost(
    plan: RechunkPlan,
    machine: Machine,
    machines: int,
    *,
    prices: Prices | None = None,
    ratios: Ratios | None = None,
    losses: int = 0,
) -> RechunkCost:
    """What `plan` costs on `machines` machines that read from and write to an object store.

    `losses` are machines that die on the way. Raises `InputRefused` where no machine would be left.
    """
    if not 0 <= losses < machines:
        raise InputRefused(
            "Estimate what a rechunk costs", f"{machines} machines of which {losses} are lost", "Add machines"
        )
    prices = prices or Prices()
    levels = unit_costs(plan, machine, ratios or Ratios())
    units = [unit for level in levels for unit in level]
    shards = sum(level.shard_grid.voxels for level in plan.levels)
    published = publish_requests(shards + len(plan.levels) + DOCUMENTS)
    requests = requests_of(units) + frame_requests(plan) + published
    count = sum(unit.count for unit in units)
    ending = math.ceil(count / RECORDS_AT_ONCE) * machine.request
    ending += math.ceil(published.copy / machine.copies) * machine.copy
    least = sum(least_seconds(level, machines) for level in levels) + ending
    most = most_seconds(levels, machine, machines, losses) + ending
    stored = sum(u.bytes_stored * u.count for u in units)
    peak = max(2 * stored, *bytes_held(levels))
    return RechunkCost(
        machines=machines,
        voxel_bytes=plan.shape.voxels * plan.dtype.itemsize,
        units=count,
        requests=requests,
        bytes_read=sum(u.bytes_read * u.count for u in units),
        bytes_stored=stored,
        scratch_bytes=sum(u.scratch_bytes * u.count for u in units),
        peak_bytes=peak,
        gets_per_second=max(requests_of(level).get / least_seconds(level, machines) for level in levels),
        seconds_least=least,
        seconds_most=most,
        machine_dollars=machines * most / 3600 * prices.machine_hour,
        request_dollars=requests.dollars(prices),
        egress_dollars=sum(u.bytes_read * u.count for u in levels[0]) / 1e9 * prices.egress_gb,
        storage_dollars=peak / 1e9 * prices.storage_gb_month * most / 3600 / MONTH_HOURS,
        month_dollars=stored / 1e9 * prices.storage_gb_month,
    )


def bytes_held(levels: list[list[UnitCost]]) -> list[int]:
    """Bytes in the store when each level is complete, and what it was made from not yet removed."""
    held, stored, before = [], 0, 0
    for level in levels:
        stored += sum(unit.bytes_stored * unit.count for unit in level)
        left = sum(unit.scratch_bytes * unit.count for unit in level)
        held.append(stored + before + left)
        before = left
    return held


def least_seconds(level: list[UnitCost], machines: int) -> float:
    """No schedule of a level's units on so many machines is faster."""
    return max(sum(u.seconds * u.count for u in level) / machines, max(u.seconds for u in level))


def most_seconds(levels: list[list[UnitCost]], machine: Machine, machines: int, losses: int = 0) -> float:
    """No schedule that leaves no machine idle while a unit waits is slower; of `losses` machines at worst."""
    left, total, longest = machines - losses, 0.0, 0.0
    for level in levels:
        slowest = max(unit.seconds for unit in level)
        work = sum(unit.seconds * unit.count for unit in level)
        total += work / left + (slowest if losses else (1 - 1 / machines) * slowest)
        longest = max(longest, slowest)
    return total + losses * (longest + machine.noticed)


def unit_costs(plan: RechunkPlan, machine: Machine, ratios: Ratios) -> list[list[UnitCost]]:
    """The units of each level, alike ones counted together."""
    return [
        [_unit(plan, level, alike, machine, ratios) for alike in _units(plan, level, ratios)]
        for level in plan.levels
    ]


def requests_of(units: Iterable[UnitCost]) -> Requests:
    """Of all of them together."""
    total = Requests()
    for unit in units:
        total += Requests(*(getattr(unit.requests, f.name) * unit.count for f in fields(Requests)))
    return total


class _Units(NamedTuple):
    """`number` units that are alike: shape (voxels, z-y-x), bytes and requests that each is made from."""

    shape: Shape
    read: int
    gets: int
    number: int


def _units(plan: RechunkPlan, level: LevelPlan, ratios: Ratios) -> Iterator[_Units]:
    itemsize = plan.dtype.itemsize
    if level.index:
        for shape, gets, count in units_by_requests(level, plan.levels[level.index - 1]):
            yield _Units(shape, shape.voxels * itemsize, gets, count)
        return
    # As much more than the unit's own voxels as the plan's reads decode on the whole.
    amplification = level.bytes_to_read / (level.shape.voxels * itemsize)
    for shape, count in _shapes(level.shape, level.unit_shape):
        read = round(shape.voxels * itemsize * ratios.source * amplification)
        yield _Units(shape, read, math.ceil(read / PART_BYTES), count)


def _unit(plan: RechunkPlan, level: LevelPlan, units: _Units, machine: Machine, ratios: Ratios) -> UnitCost:
    itemsize = plan.dtype.itemsize
    shape, read, gets, number = units
    steps = math.ceil(shape.z / level.chunk_shape.z)
    at_once = machine.connections
    if level.index:
        at_once = machine.scratch_at_once(level.tile_shape.voxels * itemsize, read / gets)
    waits = math.ceil(gets / steps / at_once)
    scratch = 0 if plan.is_last(level) else grid(shape, level.factors).voxels * itemsize
    shards = [
        (ratios.of_chunks(shard, level, itemsize), alike)
        for shard, alike in _shapes(shape, level.shard_shape)
    ]
    writes = _Writes()
    for nbytes, alike in [*shards, (scratch, 1)]:
        writes += _Writes.of(nbytes, alike)
    ours = Requests(get=1, put=1)  # the place is still ours; the record
    compute = machine.seconds(shape.voxels * itemsize, _padding(shape, level) * itemsize)
    sends = math.ceil(writes.early / steps / machine.connections)
    reading = machine.transfer(read / steps, gets / steps, waits)
    filling = (reading + compute / steps,) if level.slabs_held == 1 else (reading, compute / steps)
    stages = (*filling, machine.transfer(writes.early_bytes / steps, writes.early / steps, sends))
    closing = (writes.late + 2) * machine.request + writes.late_bytes / machine.network
    return UnitCost(
        count=number,
        bytes_read=read,
        bytes_stored=sum(nbytes * alike for nbytes, alike in shards),
        scratch_bytes=scratch,
        steps=steps,
        requests=writes.requests + Requests(get=gets) + ours,
        seconds=sum(stages) + (steps - 1) * max(stages) + closing,
    )


@dataclass(frozen=True)
class _Writes:
    """Blobs of a unit: requests; and of these what is sent meanwhile (`early`) and in turn at the end."""

    requests: Requests = field(default_factory=Requests)
    early: int = 0
    early_bytes: int = 0
    late: int = 0
    late_bytes: int = 0

    @classmethod
    def of(cls, nbytes: int, count: int) -> "_Writes":
        """`count` blobs: small ones are one PUT, others are sent in parts (`storage.object_sink`)."""
        parts = math.ceil(nbytes / PART_BYTES)
        if parts <= 1:
            sent = min(nbytes, 1) * count
            return cls(Requests(put=sent), late=sent, late_bytes=nbytes * count)
        last = nbytes - (parts - 1) * PART_BYTES
        requests = Requests(upload=2 * count, part=parts * count)
        return cls(requests, parts * count, (nbytes - last) * count, 2 * count, last * count)

    def __add__(self, other: Self) -> "_Writes":
        return _Writes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def _padding(shape: Shape, level: LevelPlan) -> int:
    """Voxels past `shape` of the chunks that cover it."""
    return grid(shape, level.chunk_shape).voxels * level.chunk_shape.voxels - shape.voxels


def _shapes(whole: Shape, tile: Shape) -> Iterator[tuple[Shape, int]]:
    """The shapes that tiles clipped to `whole` have, and how many have each: at most two per axis."""
    tiles = grid(whole, tile)
    axes = [
        [(t, count - 1), (n - t * (count - 1), 1)] if count > 1 else [(n, 1)]
        for n, t, count in zip(whole, tile, tiles, strict=True)
    ]
    for z, y, x in product(*axes):
        yield Shape(z[0], y[0], x[0]), z[1] * y[1] * x[1]
