"""Cores and memory of a process, in made-up trees of control groups."""

import os
from pathlib import Path

import pytest

from em_pipeline import settings
from em_pipeline.limits import available_cores, available_memory

MEMINFO = {"proc/meminfo": "MemTotal:       24000000 kB\nMemFree: 1 kB\n"}
TOTAL = 24_000_000 << 10


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {**MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)


V2 = {"proc/self/cgroup": "0::/pod/box\n", "sys/fs/cgroup/cgroup.controllers": "cpu memory\n"}
V1 = {"proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n"}


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, 16, TOTAL),
        (V2, 16, TOTAL),
        ({**V2, "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n"}, 16, TOTAL),
        ({**V2, "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n"}, 2, TOTAL),
        ({**V2, "sys/fs/cgroup/pod/box/cpu.max": "1000 100000\n"}, 1, TOTAL),
        ({**V2, "sys/fs/cgroup/pod/box/memory.max": "max\n"}, 16, TOTAL),
        ({**V2, "sys/fs/cgroup/pod/box/memory.max": "3000\n"}, 16, 3000),
        # The group is given more than the one it is in.
        (
            {
                **V2,
                "sys/fs/cgroup/pod/box/memory.max": "9000\n",
                "sys/fs/cgroup/pod/memory.max": "5000\n",
                "sys/fs/cgroup/pod/box/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
            },
            3,
            5000,
        ),
        # A container sees its own group at the mount, whatever its path on the host.
        ({**V2, "sys/fs/cgroup/memory.max": "7000\n", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2, 7000),
        (
            {
                **V1,
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "8000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            4,
            8000,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/docker/cpu.cfs_period_us": "100000\n",
            },
            16,
            TOTAL,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n0::/user\n",
                "sys/fs/cgroup/unified/user/memory.max": "6000\n",
            },
            16,
            6000,
        ),
    ],
)  # fmt: skip
def test_control_groups_limit_what_there_is(
    tmp_path: Path, files: dict[str, str], cores: int, memory: int
) -> None:
    root = tree(tmp_path, files)
    assert (available_cores(root), available_memory(root)) == (cores, memory)


def test_a_machine_that_says_nothing_is_of_unknown_memory(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == 16
    assert available_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("available", "budget"),
    [(None, 1 << 30), (64 << 30, 1 << 30), (1 << 30, 512 << 20), (100 << 20, 256 << 20)],
)
def test_the_budget_is_at_most_half_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, available: int | None, budget: int
) -> None:
    monkeypatch.setattr(settings, "available_memory", lambda: available)
    assert settings.default_memory_budget() == budget
