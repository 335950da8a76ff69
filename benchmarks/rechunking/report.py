"""Medians, ratios and tables. No clock and no file here."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .measure import MIB, Run
from .rows import OURS, Goal, Row


@dataclass(frozen=True)
class RowResult:
    """What the runs of a row gave: `runs` of each contender in the order of the turns.

    `missing` says why a contender did not run at all. `voxel_bytes` are those of level 0.
    """

    row: Row
    voxel_bytes: int
    runs: Mapping[str, Sequence[Run]]
    missing: Mapping[str, str]

    @property
    def failures(self) -> dict[str, str]:
        """What the first failed run of each contender said."""
        found = {}
        for name, each in self.runs.items():
            if failed := [run.failure for run in each if run.failure]:
                found[name] = failed[0]
        return found

    def seconds(self, name: str) -> list[float]:
        """Of each turn; empty where the contender is missing or failed once."""
        return [] if name in self.failures else [run.seconds for run in self.runs.get(name, ())]


@dataclass(frozen=True)
class Ratio:
    """How a goal came out: the median over the turns of each turn's ratio, the least and the greatest."""

    goal: Goal
    against: str
    median: float
    least: float
    greatest: float

    @property
    def reached(self) -> bool | None:
        """None for a ratio that is only shown."""
        return None if self.goal.at_least is None else self.median >= self.goal.at_least


def ratio(goal: Goal, result: RowResult) -> Ratio | None:
    """Theirs over ours, turn by turn: runs of one turn saw the same machine. None where one did not run."""
    ours = result.seconds(OURS)
    others = {name: result.seconds(name) for name in goal.against}
    if not ours or not any(others.values()) or (goal.together and not all(others.values())):
        return None
    if goal.together:
        name, theirs = " + ".join(others), [sum(turn) for turn in zip(*others.values(), strict=True)]
    else:
        ran = {name: seconds for name, seconds in others.items() if seconds}
        name = min(ran, key=lambda each: statistics.median(ran[each]))
        theirs = ran[name]
    each = [their / our for their, our in zip(theirs, ours, strict=True)]
    return Ratio(goal, name, statistics.median(each), min(each), max(each))


def table(result: RowResult) -> str:
    """A row's result as Markdown."""
    head = f"### {result.row.title}: {result.voxel_bytes / MIB:,.0f} MiB of voxels, n = {_turns(result)}"
    lines = [
        head,
        "",
        "| | median s | range s | MB/s | ours is | peak RSS MB | CPU s | stored | files |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = result.seconds(OURS)
    for contender in result.row.contenders:
        name = contender.name
        if reason := result.missing.get(name) or result.failures.get(name):
            lines.append(f"| {name} | **did not run**: {reason} | | | | | | | |")
            continue
        runs = result.runs[name]
        seconds = [run.seconds for run in runs]
        median = statistics.median(seconds)
        times = statistics.median(t / o for t, o in zip(seconds, ours, strict=True)) if ours else None
        cells = [
            f"{median:.2f}",
            f"{min(seconds):.2f}–{max(seconds):.2f}",
            f"{result.voxel_bytes / median / 1e6:,.0f}",
            "" if name == OURS or times is None else f"{times:.2f}×",
            "" if contender.limit else f"{_peak(runs) / 1e6:,.0f}",
            "" if contender.limit else f"{statistics.median(run.cpu_seconds for run in runs):.1f}",
            "" if contender.limit else f"{runs[-1].stored_bytes / result.voxel_bytes:.2f}",
            "" if contender.limit else f"{runs[-1].files}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_goal_lines(result), ""])


def summary(results: Sequence[RowResult]) -> str:
    """Every goal of every row, reached or not, as one Markdown table."""
    lines = ["| input | ours MB/s | against | goal | found | reached |", "|---|---|---|---|---|---|"]
    for result in results:
        ours = result.seconds(OURS)
        speed = f"{result.voxel_bytes / statistics.median(ours) / 1e6:,.0f}" if ours else "–"
        for goal in result.row.goals:
            found = ratio(goal, result)
            cells = (result.row.title, speed, *_goal_cells(goal, found, result))
            lines.append("| " + " | ".join(cells) + " |")
        if ours:
            peak, most = _peak(result.runs[OURS]), result.row.rss_at_most
            memory = (f"≤ {most / 1e6:,.0f} MB", f"{peak / 1e6:,.0f} MB", _reached(peak <= most))
            lines.append(f"| {result.row.title} | {speed} | peak RSS | " + " | ".join(memory) + " |")
    return "\n".join(lines)


def as_json(result: RowResult) -> dict[str, Any]:
    """A row's result with every run."""
    ratios = [found for goal in result.row.goals if (found := ratio(goal, result))]
    return {
        "row": result.row.name,
        "title": result.row.title,
        "voxel_bytes": result.voxel_bytes,
        "runs": {name: [asdict(run) for run in runs] for name, runs in result.runs.items()},
        "missing": dict(result.missing),
        "ratios": [
            {
                "against": found.against,
                "goal": found.goal.at_least,
                "median": found.median,
                "least": found.least,
                "greatest": found.greatest,
            }
            for found in ratios
        ],
    }


def _goal_lines(result: RowResult) -> list[str]:
    lines = []
    for goal in result.row.goals:
        found = ratio(goal, result)
        name, wanted, got, reached = _goal_cells(goal, found, result)
        lines.append(f"- against {name}: {got}" + (f", goal {wanted}: {reached}" if wanted else ""))
    return lines


def _goal_cells(goal: Goal, found: Ratio | None, result: RowResult) -> tuple[str, str, str, str]:
    names = " + ".join(goal.against) if goal.together else " or ".join(goal.against)
    limit = all(c.limit for c in result.row.contenders if c.name in goal.against)
    wanted = "" if goal.at_least is None else f"≥ {_shown(goal.at_least, limit)}"
    if found is None:
        return names, wanted, "not measured", "–"
    spread = f"{_shown(found.least, limit)}–{_shown(found.greatest, limit)}"
    return found.against, wanted, f"{_shown(found.median, limit)} ({spread})", _reached(found.reached)


def _shown(value: float, limit: bool) -> str:
    return f"{value:.0%}" if limit else f"{value:.2f}×"


def _reached(reached: bool | None) -> str:
    return {None: "", True: "yes", False: "**no**"}[reached]


def _peak(runs: Sequence[Run]) -> int:
    return max(run.rss_bytes for run in runs)


def _turns(result: RowResult) -> int:
    return max((len(runs) for runs in result.runs.values()), default=0)
