"""The sensor in the real daemon, switched on as a person does: entries become partitions and runs."""

from dataclasses import replace
from typing import Any

import pytest

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.demo.replay import Trouble
from em_pipeline_tests.commands import em
from em_pipeline_tests.dagster_services import REPOSITORY, Dagster, dagster_running, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WAIT_S = 180.0
SENSOR = {**REPOSITORY, "sensorName": "empiar_new_datasets"}
START = """
mutation ($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) {
    __typename
    ... on Sensor { sensorState { status } }
    ... on PythonError { message }
  }
}
"""
TICKS = """
query ($sensor: SensorSelector!) {
  sensorOrError(sensorSelector: $sensor) {
    ... on Sensor {
      sensorState { ticks(limit: 50) { status skipReason error { message causes { message } } } }
    }
  }
}
"""
PARTITIONS = """
{ assetNodeOrError(assetKey: {path: ["empiar", "record"]}) { ... on AssetNode { partitionKeys } } }
"""


def ticks(dagster: Dagster, status: str) -> list[dict[str, Any]]:
    state = dagster.ask(TICKS, sensor=SENSOR)["sensorOrError"]["sensorState"]
    return [tick for tick in state["ticks"] if tick["status"] == status]


def finished(dagster: Dagster, dataset_id: str, runs: int = 1) -> list[str]:
    """Statuses of the dataset's runs once there are so many and none is under way."""
    found = [run["status"] for run in dagster.runs(**{"dagster/partition": dataset_id})]
    return found if len(found) == runs and {"SUCCESS", "FAILURE", "CANCELED"}.issuperset(found) else []


def test_entries_become_partitions_and_runs(environment: dict[str, str], portal: DemoPortal) -> None:
    environment |= {
        "EM_DISCOVERY__EMPIAR__INTERVAL_S": "2",
        "EM_DISCOVERY__EMPIAR__CAP": "1",
        "EM_DISCOVERY__EMPIAR__NEVER": "11759",
        "EM_SOURCES__EMPIAR__RETRIES": "0",
    }
    with dagster_running(environment) as dagster:
        assert ticks(dagster, "SUCCESS") == []
        started = dagster.ask(START, sensor=SENSOR)["startSensor"]
        assert started == {"__typename": "Sensor", "sensorState": {"status": "RUNNING"}}, started
        for dataset_id in ("empiar-99001", "empiar-99002"):
            assert until(lambda name=dataset_id: finished(dagster, name), WAIT_S) == ["SUCCESS"]
        assert {"empiar-99001", "empiar-99002"} <= set(
            dagster.ask(PARTITIONS)["assetNodeOrError"]["partitionKeys"]
        )

        skipped = until(lambda: ticks(dagster, "SKIPPED"), WAIT_S)
        assert "11759: the list `never` names it" in skipped[0]["skipReason"]

        portal.trouble(Trouble.UNAVAILABLE)
        failed = until(lambda: ticks(dagster, "FAILURE"), WAIT_S)
        assert "neither BioStudies" in str(failed[0]["error"]["causes"])
        portal.entries = tuple(
            replace(entry, updated="2026-07-01") if entry.accession == "99002" else entry
            for entry in portal.entries
        )
        portal.heal()
        assert until(lambda: finished(dagster, "empiar-99002", runs=2), WAIT_S) == ["SUCCESS", "SUCCESS"]
        assert len(dagster.runs(**{"dagster/sensor_name": "empiar_new_datasets"})) == 3
    assert [row["dataset_id"] for row in em(environment, "ls")] == ["empiar-99001", "empiar-99002"]
