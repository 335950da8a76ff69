"""Our rechunk against what else a user could pick, and against what the cores could do at best.

    python benchmarks/rechunk.py [--size-mib 1024] [--repetitions 5] [--only tiff,int16] [--json FILE]

Each contender is a whole process (start-up counts), one at a time, in turns: A B C A B C. Inputs lie in the
page cache, and free memory was in use just before; output goes to the same disk, is flushed to it by every
contender within its time, and deleted.
Peak RSS is the process's own (`wait4`). Without `.venv-peers` (`make bench` builds it) what needs it is named
as missing.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from rechunking.measure import TOUCHED_MIB, Run, machine, remove, run_once, touch_memory, warm
from rechunking.report import RowResult, as_json, summary, table
from rechunking.rows import Contender, Row, chosen, rows

ROOT = Path(__file__).resolve().parents[1]
INPUTS = Path(__file__).parent / "rechunking" / "inputs.py"
PYTHONS = {"ours": Path(sys.executable), "peers": ROOT / ".venv-peers" / "bin" / "python"}


def main() -> int:
    asked = arguments()
    table_of_rows = chosen(rows(asked.memory_mib), asked.only)
    pythons = {**PYTHONS, "peers": asked.peers}
    asked.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{json.dumps(machine())}\n{asked.threads} threads, memory budget {asked.memory_mib} MiB\n",
        flush=True,
    )
    results: list[RowResult] = []
    for row in table_of_rows:
        results.append(measure_row(row, asked, pythons))
        print(table(results[-1]), flush=True)
        if asked.json:
            write_json(asked.json, asked, results)
    for block in asked.folder.glob("block-*.npy"):
        block.unlink()
    print(summary(results))
    return 1 if any(result.failures for result in results) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size-mib", type=int, default=1024, help="of voxels; the int16 input is 6.25 times that"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", type=row_names, default=[], help="names of rows, with commas")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each contender")
    parser.add_argument("--memory-mib", type=int, default=1024, help="our memory budget")
    parser.add_argument("--touch-mib", type=int, default=TOUCHED_MIB, help="of memory before each run")
    parser.add_argument("--folder", type=Path, default=ROOT / ".em" / "bench", help="for inputs and outputs")
    parser.add_argument(
        "--peers", type=Path, default=PYTHONS["peers"], help="Python of the peers' environment"
    )
    parser.add_argument("--json", type=Path, help="write every run here")
    parser.add_argument("--limit-s", type=float, default=1800, help="when a run is ended")
    return parser.parse_args()


def row_names(text: str) -> list[str]:
    """Names with commas between them, all of which are of rows."""
    names = text.split(",")
    try:
        chosen(rows(memory_mib=1024), names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


def measure_row(row: Row, asked: argparse.Namespace, pythons: Mapping[str, Path]) -> RowResult:
    """Make the input, run the contenders in turn, delete both."""
    source, output = asked.folder / row.kind, asked.folder / "output"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_paths())}
    remove(output)
    missing = {c.name: why for c in row.contenders if (why := reason_missing(c, pythons[c.python]))}
    runs: dict[str, list[Run]] = {c.name: [] for c in row.contenders if c.name not in missing}
    try:
        shape, voxel_bytes = make_input(row.kind, source, asked.size_mib, environment)
        for _ in range(asked.repetitions):
            for contender in row.contenders:
                if contender.name in missing:
                    continue
                touch_memory(asked.touch_mib)
                warm(source)
                command = contender.command(pythons[contender.python], source, output, asked.threads)
                reports = bool(contender.limit)
                run = run_once(command, output, environment, reports=reports, limit_s=asked.limit_s)
                runs[contender.name].append(run)
    finally:
        remove(source)
    return RowResult(row.of_shape(shape), voxel_bytes, runs, missing)


def make_input(kind: str, path: Path, size_mib: int, environment: dict[str, str]) -> tuple[list[int], int]:
    """Write the input, in a process of its own; its shape (z, y, x), and bytes of its voxels."""
    remove(path)
    command = [sys.executable, str(INPUTS), kind, str(path), str(size_mib)]
    made = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    said = json.loads(made.stdout.splitlines()[-1])
    z, y, x = said["shape"]
    return [z, y, x], int(z * y * x * (2 if said["dtype"] == "int16" else 1))


def reason_missing(contender: Contender, python: Path) -> str:
    """Why a contender cannot run; empty where it can."""
    if not python.exists():
        return f"there is no {python.parent.parent.name}: `make bench` builds it"
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({contender.needs!r}) is None)"
    found = subprocess.run([str(python), "-c", probe], check=False).returncode == 0
    return "" if found else f"{contender.needs} is not installed in {python.parent.parent.name}"


def write_json(path: Path, asked: argparse.Namespace, results: list[RowResult]) -> None:
    settings = {"threads": asked.threads, "memory_mib": asked.memory_mib, "size_mib": asked.size_mib}
    document = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": settings,
        "rows": [as_json(result) for result in results],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _paths() -> list[str]:
    """This checkout first, so that what is measured is what lies here."""
    return [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


if __name__ == "__main__":
    sys.exit(main())
