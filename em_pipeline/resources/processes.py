"""Runs that a process of ours executes itself, and what becomes of them when it is killed.

Nobody tells Dagster that such a process is gone: its run would be shown as running, and counted against
its pools, for ever.
"""

import os
import socket
from pathlib import Path

import dagster as dg

PID_TAG = "em/pid"
HOST_TAG = "em/host"
BEGAN_TAG = "em/began"
UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]


def process_tags() -> dict[str, str]:
    """Tags by which a later process can tell whether this one still lives."""
    return {PID_TAG: str(os.getpid()), HOST_TAG: socket.gethostname(), BEGAN_TAG: _began(os.getpid())}


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark as failed the unfinished runs of this host whose process is gone; gives their ids."""
    closed = []
    wanted = dg.RunsFilter(statuses=UNFINISHED, tags={HOST_TAG: socket.gethostname()})
    for run in instance.get_runs(wanted):
        pid, began = run.tags.get(PID_TAG), run.tags.get(BEGAN_TAG, "")
        if pid is not None and not _lives(int(pid), began):
            instance.report_run_failed(run, "The process that executed this run was killed.")
            closed.append(run.run_id)
    return closed


def _lives(pid: int, began: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _began(pid) == began


def _began(pid: int) -> str:
    """When a process began, in the system's own count; tells it from a later one of the same number.

    Field 22 of /proc/<pid>/stat (proc_pid_stat(5)); empty where there is no /proc.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The second field is the program's name in parentheses and may hold spaces.
    return text.rpartition(")")[2].split()[19]
