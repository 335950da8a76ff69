"""What a rechunk on an object store costs: requests, bytes, time and money, before anything runs.

The model. A unit of a level is work for one machine; machines take units as they become free, and a level
begins when the one below is complete, from whose shards it is read. Within a unit, *steps* (one layer of
chunks each) go through three stages that overlap: read, compute, write. With `r`, `c` and `w` the seconds
that each stage needs for a step, a unit of `s` steps takes

    t = r + c + w + (s − 1) · max(r, c, w) + 2 · request

(the fill of a linear pipeline, and the requests that nothing hides: complete the upload, say that the unit
is done). `g` requests over `k` connections take `⌈g / k⌉ · request` besides their bytes' time on the network.
The units of a level on `N` machines take, by Graham's bound for list scheduling (R. L. Graham, Bounds on
multiprocessing timing anomalies, SIAM J. Appl. Math. 17, 1969),

    max(Σt / N, t_max)  ≤  seconds  ≤  Σt / N + (1 − 1/N) · t_max

When `k` machines are lost on the way, the others share the work, and each loss repeats at most one unit:

    seconds  ≤  Σt / (N − k) + t_max + k · (t_max + noticed)

At the end, one machine copies every shard out of staging. The store itself is no bottleneck in the model:
`RechunkCost.gets_per_second` is to be compared with its limits.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Final, Self

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan
from em_pipeline.volumes.tiling import grid

PART_BYTES: Final = 16 << 20
"""Of a multipart upload, and of one GET."""
LIST_KEYS: Final = 1000
"""Keys in one page of a listing (S3 API Reference, ListObjectsV2)."""
DOCUMENTS: Final = 3
"""Written once per volume besides one document per level: the group's, the ledger, the pointer."""


@dataclass(frozen=True)
class Prices:
    """US dollars. The defaults are list prices of AWS us-east-1 for Linux on demand and S3 Standard.

    `machine_hour` is 16 vCPU of m7g: 8 × $0.0816 (June 2026,
    https://www.factualminds.com/blog/amazon-ec2-on-demand-pricing-instance-families-2026/). Requests and
    storage are as on https://aws.amazon.com/s3/pricing/ and as quoted in 2026: PUT, COPY, POST and LIST per
    thousand, every request of a multipart upload among them; GET per thousand; a gigabyte for a month. DELETE
    is free, and so is traffic between machines and buckets of one region; `egress_gb` is for a source that
    charges for it. Prices change: give your own.
    """

    machine_hour: float = 0.6528
    put_thousand: float = 0.005
    get_thousand: float = 0.0004
    storage_gb_month: float = 0.023
    egress_gb: float = 0.0


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

    def seconds(self, voxel_bytes: int, padding_bytes: int) -> float:
        """What all cores take to decode, downsample and encode so many bytes."""
        return (voxel_bytes / self.core_rate + padding_bytes / self.padding_rate) / self.cores


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
class Requests:
    """Requests of one kind each. `part` are PUTs of parts; `upload` those that begin and complete uploads."""

    get: int = 0
    put: int = 0
    upload: int = 0
    part: int = 0
    copy: int = 0
    list: int = 0
    delete: int = 0

    def __add__(self, other: Self) -> "Requests":
        return Requests(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def dollars(self, prices: Prices) -> float:
        written = self.put + self.upload + self.part + self.copy + self.list
        return (written * prices.put_thousand + self.get * prices.get_thousand) / 1000


@dataclass(frozen=True)
class UnitCost:
    """`count` units that are alike: bytes read and written, steps, requests and seconds of each."""

    count: int
    bytes_read: int
    bytes_written: int
    steps: int
    requests: Requests
    seconds: float


@dataclass(frozen=True)
class RechunkCost:
    """What the whole costs. Seconds are bounds; dollars those of the greater.

    `bytes_read` counts what comes over the network, from the source and from levels below; `voxel_bytes` is
    the finest level.
    """

    machines: int
    voxel_bytes: int
    units: int
    requests: Requests
    bytes_read: int
    bytes_written: int
    seconds_least: float
    seconds_most: float
    machine_dollars: float
    request_dollars: float
    egress_dollars: float
    month_dollars: float

    @property
    def dollars(self) -> float:
        """Once, without the storage of the result, which is `month_dollars` a month."""
        return self.machine_dollars + self.request_dollars + self.egress_dollars

    @property
    def gets_per_second(self) -> float:
        """At most, on average over the run."""
        return self.requests.get / self.seconds_least


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
    published = _publish_requests(shards + len(plan.levels) + DOCUMENTS)
    requests = requests_of(units) + published
    publishing = math.ceil(published.copy / machine.copies) * machine.copy
    least = sum(least_seconds(level, machines) for level in levels) + publishing
    most = most_seconds(levels, machine, machines, losses) + publishing
    written = sum(u.bytes_written * u.count for u in units)
    voxel_bytes = plan.shape.voxels * plan.dtype.itemsize
    return RechunkCost(
        machines=machines,
        voxel_bytes=voxel_bytes,
        units=sum(unit.count for unit in units),
        requests=requests,
        bytes_read=sum(u.bytes_read * u.count for u in units),
        bytes_written=written,
        seconds_least=least,
        seconds_most=most,
        machine_dollars=machines * most / 3600 * prices.machine_hour,
        request_dollars=requests.dollars(prices),
        egress_dollars=sum(u.bytes_read * u.count for u in levels[0]) / 1e9 * prices.egress_gb,
        month_dollars=written / 1e9 * prices.storage_gb_month,
    )


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
        [
            _unit(plan, level, shape, count, machine, ratios)
            for shape, count in _shapes(level.shape, level.unit_shape)
        ]
        for level in plan.levels
    ]


def requests_of(units: Iterable[UnitCost]) -> Requests:
    """Of all of them together."""
    total = Requests()
    for unit in units:
        total += Requests(*(getattr(unit.requests, f.name) * unit.count for f in fields(Requests)))
    return total


def _unit(
    plan: RechunkPlan, level: LevelPlan, shape: Shape, count: int, machine: Machine, ratios: Ratios
) -> UnitCost:
    itemsize = plan.dtype.itemsize
    read, gets = _reads(plan, level, shape, ratios)
    written, requests = _uploads(shape, level, itemsize, ratios)
    requests += Requests(get=gets, put=1)
    steps = math.ceil(shape.z / level.chunk_shape.z)
    compute = machine.seconds(shape.voxels * itemsize, _padding(shape, level) * itemsize)
    seconds = _unit_seconds(machine, steps, compute, read, written, requests)
    return UnitCost(count, read, written, steps, requests, seconds)


def _reads(plan: RechunkPlan, level: LevelPlan, shape: Shape, ratios: Ratios) -> tuple[int, int]:
    """Bytes and requests that read what a unit is made from."""
    itemsize = plan.dtype.itemsize
    if level.index == 0:
        # As much more than the unit's own voxels as the plan's reads decode on the whole.
        amplification = level.bytes_to_read / (level.shape.voxels * itemsize)
        read = round(shape.voxels * itemsize * ratios.source * amplification)
        return read, math.ceil(read / PART_BYTES)
    below = plan.levels[level.index - 1]
    # The last unit along an axis may reach half a voxel further than the level below does.
    finer = Shape(*(n * f for n, f in zip(shape, below.factors, strict=True)))
    read = gets = 0
    for shard, count in _shapes(finer, below.shard_shape):
        stored = ratios.of_chunks(shard, below, itemsize)
        read += stored * count
        gets += (1 + math.ceil(stored / PART_BYTES)) * count  # its index, then its chunks
    return read, gets


def _unit_seconds(
    machine: Machine, steps: int, compute: float, read: int, written: int, requests: Requests
) -> float:
    def stage(nbytes: int, count: int) -> float:
        waits = math.ceil(count / steps / machine.connections) * machine.request
        return nbytes / steps / machine.network + waits

    stages = (
        stage(read, requests.get),
        compute / steps,
        stage(written, requests.part + requests.put - 1),
    )
    return sum(stages) + (steps - 1) * max(stages) + 2 * machine.request


def _padding(shape: Shape, level: LevelPlan) -> int:
    """Voxels past `shape` of the chunks that cover it."""
    return grid(shape, level.chunk_shape).voxels * level.chunk_shape.voxels - shape.voxels


def _uploads(shape: Shape, level: LevelPlan, itemsize: int, ratios: Ratios) -> tuple[int, Requests]:
    """Bytes and requests that write a unit's shards: small ones are one PUT, others are sent in parts."""
    written, requests = 0, Requests()
    for shard, count in _shapes(shape, level.shard_shape):
        stored = ratios.of_chunks(shard, level, itemsize)
        parts = math.ceil(stored / PART_BYTES)
        written += stored * count
        requests += Requests(put=count) if parts == 1 else Requests(upload=2 * count, part=parts * count)
    return written, requests


def _publish_requests(objects: int) -> Requests:
    """Everything is listed, copied out of staging and deleted there: object stores cannot rename."""
    return Requests(put=DOCUMENTS, copy=objects, list=math.ceil(objects / LIST_KEYS), delete=objects)


def _shapes(whole: Shape, tile: Shape) -> Iterator[tuple[Shape, int]]:
    """The shapes that tiles clipped to `whole` have, and how many have each: at most two per axis."""
    tiles = grid(whole, tile)
    axes = [
        [(t, count - 1), (n - t * (count - 1), 1)] if count > 1 else [(n, 1)]
        for n, t, count in zip(whole, tile, tiles, strict=True)
    ]
    for z, y, x in product(*axes):
        yield Shape(z[0], y[0], x[0]), z[1] * y[1] * x[1]
