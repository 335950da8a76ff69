"""Runs programs as whole processes, one at a time, in turn."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
TOUCHED_MIB = 2560
"""More than any contender takes besides its input."""
_TOUCH = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]))
if hasattr(mmap, "MADV_HUGEPAGE"):
    memory.madvise(mmap.MADV_HUGEPAGE)
for at in range(0, len(memory), mmap.PAGESIZE):
    memory[at] = 1
"""


@dataclass(frozen=True)
class Run:
    """One run of one contender.

    `seconds` is the wall time of the whole process, or what a limit reports of itself. `rss_bytes` is the
    peak of the largest of its processes (`ru_maxrss`), pages of mapped files included; `cpu_seconds` those of
    all that it waited for. `stored_bytes` and `files` are its output's. `load` is the machine's one-minute
    load before the run. `failure` is empty where it went well.
    """

    seconds: float
    rss_bytes: int
    cpu_seconds: float
    stored_bytes: int
    files: int
    load: float
    failure: str = ""


def run_once(
    command: list[str], output: Path, environment: dict[str, str], *, reports: bool, limit_s: float
) -> Run:
    """Run `command`, which may write to `output`, and delete that again.

    With `reports`, the last line that it prints is JSON with its own `seconds`. Dirty pages of earlier
    runs are flushed before the clock starts.
    """
    os.sync()
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        killer = threading.Timer(limit_s, process.kill)
        killer.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        killer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout, stderr = _text(out), _text(err)
    failure = "" if process.returncode == 0 else _failure(process.returncode, stderr)
    if reports and not failure:
        seconds = float(json.loads(stdout.strip().splitlines()[-1])["seconds"])
    stored, files = tree_size(output)
    remove(output)
    return Run(
        seconds=seconds,
        rss_bytes=usage.ru_maxrss * 1024,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        stored_bytes=stored,
        files=files,
        load=load,
        failure=failure,
    )


def warm(path: Path) -> None:
    """Read every byte below `path`, so that it lies in the page cache."""
    for file in _files(path):
        with file.open("rb", buffering=0) as opened:
            while opened.read(8 * MIB):
                pass


def touch_memory(mib: int = TOUCHED_MIB) -> None:
    """Have the kernel hand out so much memory, and take it back.

    A virtual machine may return free memory to its host (Linux: free page reporting); getting it anew took
    8 s a GiB where this was written, against 0.2 s. Who comes next would pay for it, whoever that is.
    """
    subprocess.run([sys.executable, "-c", _TOUCH, str(mib * MIB)], check=True)


def tree_size(path: Path) -> tuple[int, int]:
    """Bytes and number of the files below `path`; 0 of both where there is nothing."""
    sizes = [file.stat().st_size for file in _files(path)]
    return sum(sizes), len(sizes)


def remove(path: Path) -> None:
    """A file, a folder and all in it, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    name = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": os.uname().release,
    }


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", "replace"))


def _failure(code: int, stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return f"exit {code}: {lines[-1] if lines else 'it said nothing'}"
