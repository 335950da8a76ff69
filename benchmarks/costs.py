"""What a terabyte costs by the model of `em_pipeline/volumes/cost.py`: the figures of docs/costs.md.

    python benchmarks/costs.py

Nothing is written and no store is asked.
"""

from dataclasses import replace
from itertools import pairwise

from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.volumes.cost import Machine, RechunkCost, rechunk_cost
from em_pipeline.volumes.memory import Means
from em_pipeline.volumes.plan import plan_rechunk
from em_pipeline.volumes.scratch_requests import units_by_requests

EDGE = 10_000
USUAL = Machine()
PLAN = plan_rechunk(
    Shape(EDGE, EDGE, EDGE),
    "uint8",
    VoxelSize(z=8, y=8, x=8),
    source_chunk=Shape(64, 64, 64),
    means=Means(1 << 30, threads=USUAL.cores),
)


def lines() -> list[str]:
    """A table of machines, then what does not depend on them."""
    costs = [rechunk_cost(PLAN, USUAL, machines) for machines in (1, 4, 16, 64, 256)]
    rows = [
        "| machines | minutes | machines $ | requests $ | storage $ | GETs/s |",
        "|---|---|---|---|---|---|",
    ]
    return [*rows, *map(_row, costs), "", *_totals(costs[0]), _slow_network()]


def _row(cost: RechunkCost) -> str:
    cells = (
        f"{cost.machines}",
        _minutes(cost),
        f"{cost.machine_dollars:.2f}",
        f"{cost.request_dollars:.2f}",
        f"{cost.storage_dollars:.2f}",
        f"{cost.gets_per_second:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _minutes(cost: RechunkCost) -> str:
    ends = [
        f"{seconds / 60:.{0 if seconds > 600 else 1}f}" for seconds in (cost.seconds_least, cost.seconds_most)
    ]
    return "–".join(dict.fromkeys(ends))


def _totals(cost: RechunkCost) -> list[str]:
    asked, source = cost.requests, PLAN.levels[0].bytes_to_read
    runs = sum(
        gets * count
        for finer, level in pairwise(PLAN.levels)
        for _, gets, count in units_by_requests(level, finer)
    )
    return [
        f"{cost.units:,} units; {asked.get:,} GETs, of which {runs:,} of scratch; {asked.part:,} parts, "
        f"{asked.upload:,} requests that begin and complete uploads, {asked.put:,} PUTs, "
        f"{asked.copy:,} COPYs, {asked.list:,} LISTs, {asked.delete:,} DELETEs",
        f"{cost.bytes_read / 1e12:.2f} TB read ({source / 1e12:.2f} from the source), "
        f"{cost.bytes_written / 1e12:.2f} TB written ({cost.bytes_stored / 1e12:.2f} of volume, "
        f"{cost.scratch_bytes / 1e12:.2f} of scratch), {cost.peak_bytes / 1e12:.2f} TB at most in the store; "
        f"the volume takes ${cost.month_dollars:.1f} a month",
    ]


def _slow_network() -> str:
    slow = replace(USUAL, network=1e9 / 8)
    one, many = (rechunk_cost(PLAN, slow, machines).seconds_most / 60 for machines in (1, 16))
    return f"with 1 Gbit/s: {one / 60:.1f} hours on one machine, {many:.0f} minutes on 16"


if __name__ == "__main__":
    print("\n".join(lines()))
