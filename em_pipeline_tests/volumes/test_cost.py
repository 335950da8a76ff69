import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.volumes.cost import (
    Machine,
    Prices,
    Ratios,
    Requests,
    bytes_held,
    least_seconds,
    most_seconds,
    rechunk_cost,
    requests_of,
    unit_costs,
)
from em_pipeline.volumes.memory import Means
from em_pipeline.volumes.plan import RechunkPlan, plan_rechunk
from em_pipeline.volumes.scratch_requests import units_by_requests
from em_pipeline_tests.volumes.cluster import Cluster, ranges_of
from em_pipeline_tests.volumes.planned import plan_with

USUAL = Machine()
MACHINES = {
    "usual": USUAL,
    "slow network": replace(USUAL, network=100e6),
    "slow cores": replace(USUAL, cores=2, core_rate=200e6),
    "far away": replace(USUAL, connections=4, request=0.2),
}
# Simulated latencies vary by half, computing by a fifth; of requests under way together the slowest counts.
BELOW, ABOVE = 0.9, 1.2


def plan(
    *shape: int,
    dtype: str = "uint8",
    nm: tuple[int, int, int] = (8, 8, 8),
    stored: tuple[int, int, int] = (64, 64, 64),
    threads: int = 8,
) -> RechunkPlan:
    return plan_rechunk(
        Shape(*shape),
        dtype,
        VoxelSize(z=nm[0], y=nm[1], x=nm[2]),
        source_chunk=Shape(*stored),
        means=Means(1 << 30, threads=threads),
    )


PLANS = (
    plan(600, 700, 800),
    plan(1000, 3000, 5000),
    plan(300, 2000, 3000, dtype="uint16", nm=(40, 8, 8)),
    plan(4096, 2048, 2048),
    plan(1500, 1024, 1024, stored=(1, 1024, 1024), threads=2),
)


@pytest.mark.parametrize("work", PLANS, ids=lambda each: "×".join(map(str, each.shape)))
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_simulated_cluster_takes_what_the_formula_says(work: RechunkPlan, machine: Machine) -> None:
    levels = unit_costs(work, machine, Ratios())
    for machines in (1, 2, 3, 8, 17, 256):
        cluster = Cluster(work, machine, machines, Ratios(), seed=machines)
        seconds = cluster.run()
        least = sum(least_seconds(level, machines) for level in levels)
        assert BELOW * least <= seconds <= ABOVE * most_seconds(levels, machine, machines), machines
        counted = requests_of(unit for level in levels for unit in level)
        assert cluster.asked == counted
        assert cluster.held == bytes_held(levels)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("losses", [1, 5])
def test_a_cluster_that_loses_machines_stays_below_the_bound(machine: Machine, losses: int) -> None:
    work = PLANS[3]
    levels = unit_costs(work, machine, Ratios())
    for machines in (6, 17):
        whole = Cluster(work, machine, machines, Ratios()).run()
        for seed in range(3):
            deaths = tuple(whole * (0.1 + 0.8 * ((seed + n) % 7) / 7) for n in range(losses))
            cluster = Cluster(work, machine, machines, Ratios(), deaths, seed)
            seconds = cluster.run()
            assert seconds <= ABOVE * most_seconds(levels, machine, machines, losses)
            assert cluster.repeated <= losses


@settings(deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 45)] * 3),
    shard=st.tuples(*[st.integers(1, 4)] * 3),
    nm=st.sampled_from([(8, 8, 8), (40, 8, 8), (8, 40, 40)]),
    stored=st.sampled_from([(1, 1, 64), (1, 64, 64), (4, 4, 4)]),
)
def test_runs_of_scratch_are_those_that_lie_in_the_blobs(
    shape: tuple[int, int, int],
    shard: tuple[int, int, int],
    nm: tuple[int, int, int],
    stored: tuple[int, int, int],
) -> None:
    """Whatever the shards: of three chunks, or as wide as the level, or of one."""
    work = plan_with(
        Shape(*shape), "uint8", VoxelSize(z=nm[0], y=nm[1], x=nm[2]), source_chunk=Shape(*stored),
        memory_budget=1 << 20, threads=1, chunk_shape=Shape(4, 4, 4),
        shard_shape=Shape(*(4 * n for n in shard)),
    )  # fmt: skip
    for finer, level in pairwise(work.levels):
        ranges = ranges_of(finer, 1)
        found = Counter(
            (unit.box.shape, sum(len(ranges[chunk]) for chunk, _ in unit.chunks(level.chunk_shape)))
            for unit in level.units()
        )
        counted: Counter[tuple[Shape, int]] = Counter()
        for extent, gets, count in units_by_requests(level, finer):
            counted[extent, gets] += count
        assert counted == found


def test_few_cores_with_little_memory_do_not_use_all_connections() -> None:
    """Each reads two chunks ahead: eight requests where parts lie by twos, two where all do."""
    two = replace(USUAL, cores=2, connections=100)
    chunk = 2 << 20
    assert two.scratch_at_once(chunk, chunk / 4) == 16
    assert two.scratch_at_once(chunk, chunk) == 4
    assert replace(two, connections=3).scratch_at_once(chunk, chunk) == 3


def test_a_machine_that_dies_at_work_makes_its_unit_be_done_again() -> None:
    cluster = Cluster(plan(1024, 512, 512), USUAL, 2, Ratios(), deaths=(0.2,))
    assert cluster.run() > USUAL.noticed
    assert cluster.repeated == 1


def test_a_slab_held_alone_is_read_and_computed_in_turn() -> None:
    alone = PLANS[-1]
    assert alone.levels[0].slabs_held == 1
    pairs = replace(alone, levels=tuple(replace(level, slabs_held=2) for level in alone.levels))
    slow = replace(USUAL, cores=2, core_rate=200e6, network=400e6)  # as slow to read as to compute
    (first, *_), (second, *_) = (unit_costs(work, slow, Ratios())[0] for work in (alone, pairs))
    assert 1.3 * second.seconds < first.seconds < 2 * second.seconds


def test_more_machines_cost_time_but_hardly_money() -> None:
    work = plan(8192, 8192, 8192)
    costs = [rechunk_cost(work, USUAL, machines) for machines in (1, 4, 16)]
    seconds = [cost.seconds_most for cost in costs]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] / seconds[2] > 10
    assert costs[2].dollars < 1.5 * costs[0].dollars


def test_the_requests_of_one_shard_are_what_one_counts() -> None:
    """512³ voxels: a shard of 97 MiB and 16 MiB of scratch; a chunk grid of 2³ and 2 MiB; one chunk."""
    cost = rechunk_cost(plan(512, 512, 512), USUAL, 1)
    stored = [round(edge**3 * 0.76) for edge in (512, 256, 128)]
    parts = math.ceil(stored[0] / (16 << 20))
    assert cost.requests == Requests(
        # The source's 128 MiB; the parts of 64 chunks by twos, then of 8 in one; each unit's look at the
        # place; the place's at the beginning; the records, those of scratch twice, the documents, the ledger.
        get=8 + 32 + 1 + 3 + 1 + 3 + 2 + 4 + 1,
        # Two small shards, two scratch blobs, three records; where the work begins; a document per level, and
        # three of the volume.
        put=2 + 2 + 3 + 1 + 3 + 3,
        upload=2,
        part=parts,
        copy=3 + 3 + 3,  # shards, a document per level, and three of the volume
        list=4 + 2 * 2 + 2 + 5,  # the place; each level's scratch; the rest of the work; published, staging
        delete=2 + 1 + 2,
    )
    assert cost.bytes_stored == sum(stored)
    assert cost.scratch_bytes == 256**3 + 128**3
    assert cost.bytes_written == cost.bytes_stored + cost.scratch_bytes
    assert cost.bytes_read == 512**3 + 256**3 + 128**3
    assert cost.peak_bytes == 2 * sum(stored)


def test_of_what_shards_compress_well_scratch_is_most() -> None:
    work = plan(512, 512, 512)
    cost = rechunk_cost(work, USUAL, 1, ratios=Ratios(stored=0.01))
    first, second = (round(edge**3 * 0.01) for edge in (512, 256))
    assert cost.peak_bytes == first + second + 256**3 + 128**3


def test_axes_that_wait_leave_more_scratch_in_fewer_parts() -> None:
    thick = plan(512, 512, 512, nm=(40, 8, 8))
    (unit,) = unit_costs(thick, USUAL, Ratios())[0]
    assert unit.scratch_bytes == 512 * 256 * 256
    (coarser,) = unit_costs(thick, USUAL, Ratios())[1]
    assert coarser.requests.get == 32 + 1
    assert coarser.bytes_read == unit.scratch_bytes


def test_money_is_hours_and_requests() -> None:
    prices = Prices(machine_hour=10, put_thousand=1, get_thousand=0.1, storage_gb_month=2, egress_gb=1)
    cost = rechunk_cost(plan(512, 512, 512), USUAL, 3, prices=prices)
    requests = cost.requests
    writes = requests.put + requests.upload + requests.part + requests.copy + requests.list
    assert cost.request_dollars == pytest.approx(writes / 1000 + requests.get * 0.0001)
    assert cost.machine_dollars == pytest.approx(3 * cost.seconds_most / 360)
    assert cost.egress_dollars == pytest.approx(512**3 / 1e9)
    assert cost.month_dollars == pytest.approx(cost.bytes_stored / 1e9 * 2)
    hours = cost.seconds_most / 3600
    assert cost.storage_dollars == pytest.approx(cost.peak_bytes / 1e9 * 2 * hours / 730)
    parts = (cost.machine_dollars, cost.request_dollars, cost.egress_dollars, cost.storage_dollars)
    assert cost.dollars == pytest.approx(sum(parts))


def test_a_source_that_is_decoded_twice_is_paid_twice() -> None:
    once = plan(512, 512, 512)
    level = replace(once.levels[0], bytes_to_read=2 * 512**3)
    twice = replace(once, levels=(level, *once.levels[1:]))
    assert rechunk_cost(twice, USUAL, 1).bytes_read == rechunk_cost(once, USUAL, 1).bytes_read + 512**3


def test_padding_takes_time_and_where_it_is_stored_bytes() -> None:
    (thin,), (whole,) = (
        unit_costs(plan(*shape), USUAL, Ratios(stored=1.0))[0] for shape in ((1, 512, 512), (128, 512, 512))
    )
    assert 1 / 128 < thin.seconds / whole.seconds < 1
    assert thin.bytes_stored == 512 * 512
    (stored,) = unit_costs(plan(1, 512, 512), USUAL, Ratios(stored=1.0, padding=1.0))[0]
    assert stored.bytes_stored == whole.bytes_stored


def test_the_level_that_asks_most_says_how_many_requests_a_second_the_store_must_take() -> None:
    """Level 1 asks for 512 KiB of scratch, level 0 for 16 MiB of the source."""
    work = plan(4096, 4096, 4096)
    cost = rechunk_cost(work, USUAL, 8)
    level = unit_costs(work, USUAL, Ratios())[1]
    assert requests_of(level).get == 32**3 / 2 + sum(unit.count for unit in level)
    assert cost.gets_per_second == requests_of(level).get / least_seconds(level, 8)
    assert cost.gets_per_second > cost.requests.get / cost.seconds_least


def test_no_machine_is_no_estimate() -> None:
    with pytest.raises(InputRefused, match="2 machines of which 2 are lost"):
        rechunk_cost(plan(128, 128, 128), USUAL, 2, losses=2)
