"""How many cores and how much memory this process may use, as the machine and its control groups say.

Control groups: version 2, https://docs.kernel.org/admin-guide/cgroup-v2.html (`cpu.max`, `memory.max`);
version 1, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html and kernel/sched/core.c
(`cpu.cfs_quota_us`, `memory.limit_in_bytes`). A group is held to the limits of every group it is in.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")


def available_cores(root: Path = ROOT) -> int:
    """Cores this process may run on: those it is pinned to, and no more than its groups give it time on.

    `root` is where /proc and /sys lie. A part of a core counts as one.
    """
    pinned = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _cores_of(folder)) is not None]
    return max(1, min([pinned, *(math.ceil(quota) for quota in quotas)]))


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes of memory that the machine has, or the least that its groups allow; None where none is known."""
    limits = [limit for folder in _groups(root, "memory") if (limit := _bytes_of(folder)) is not None]
    total = _total_memory(root)
    return min([*limits, *([total] if total is not None else [])], default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's groups for a controller, innermost first, those of both versions."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        # hierarchy:controllers:path; version 2 is hierarchy 0, without controllers (cgroups(7)).
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mount = root / "sys/fs/cgroup"
        if controller in controllers.split(","):
            mount /= controllers if (mount / controllers).is_dir() else controller
        elif hierarchy != "0" or controllers:
            continue
        elif not (mount / "cgroup.controllers").exists():
            mount /= "unified"  # where systemd mounts version 2 beside version 1
        # In a container the path may be the host's, while the mount shows the container's own group.
        inside = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(inside), -1, -1):
            yield mount.joinpath(*inside[:depth])


def _cores_of(folder: Path) -> float | None:
    if (text := _text(folder / "cpu.max")) is not None:
        quota, _, period = text.strip().partition(" ")
    else:
        quota, period = (_text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    cores, length = _number(quota), _number(period)
    return cores / length if cores and length else None


def _bytes_of(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (text := _text(folder / name)) is not None:
            return _number(text)
    return None


def _total_memory(root: Path) -> int | None:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            kibibytes = _number(line.split()[1])
            return None if kibibytes is None else kibibytes << 10
    return None


def _number(text: str) -> int | None:
    """A positive number; None for `max`, -1 and whatever else means that there is no limit."""
    text = text.strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
