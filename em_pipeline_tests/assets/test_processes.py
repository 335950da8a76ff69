"""Runs whose process was killed are closed by the next one."""

import subprocess
import sys

import dagster as dg
import pytest

from em_pipeline.resources.processes import BEGAN_TAG, PID_TAG, close_dead_runs, process_tags


@dg.job
def nothing() -> None: ...


def begin(instance: dg.DagsterInstance, tags: dict[str, str]) -> str:
    run = instance.create_run_for_job(nothing, tags=tags)
    instance.report_run_canceling(run)
    return run.run_id


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_runs_of_dead_processes_are_closed(dead_pid: int) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        mine = begin(instance, process_tags())
        gone = begin(instance, {**process_tags(), PID_TAG: str(dead_pid)})
        reused = begin(instance, {**process_tags(), BEGAN_TAG: "1"})
        launched = begin(instance, {})
        assert set(close_dead_runs(instance)) == {gone, reused}
        statuses = {run.run_id: run.status for run in instance.get_runs()}
        assert statuses[gone] == statuses[reused] == dg.DagsterRunStatus.FAILURE
        assert dg.DagsterRunStatus.FAILURE not in (statuses[mine], statuses[launched])
