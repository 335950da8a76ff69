"""`em dev`: a run launched through the UI's own API ends in the catalogue; stopping leaves nothing behind."""

import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from em_client import EMClient
from em_pipeline_tests.commands import BIN
from em_pipeline_tests.dagster_services import START_S, free_port, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

RUN_S = 120.0

LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
PARTITIONS = """
query {
  assetNodeOrError(assetKey: {path: ["empiar", "record"]}) {
    ... on AssetNode { partitionKeys }
  }
}
"""


@pytest.fixture
def services(environment: dict[str, str]) -> Iterator[tuple[int, int, subprocess.Popen[bytes]]]:
    ui, api = free_port(), free_port()
    command = [str(BIN / "em"), "dev", "--dagster-port", str(ui), "--api-port", str(api)]
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield ui, api, process
        finally:
            process.terminate()


def test_a_run_from_the_ui_is_served_and_nothing_stays(
    services: tuple[int, int, subprocess.Popen[bytes]],
) -> None:
    ui, api, process = services

    def ask(query: str, **variables: Any) -> Any:
        document = {"query": query, "variables": variables}
        return httpx.post(f"http://127.0.0.1:{ui}/graphql", json=document, timeout=30).json()["data"]

    keys = until(lambda: ask(PARTITIONS)["assetNodeOrError"]["partitionKeys"], START_S)
    assert "empiar-11759" in keys
    params = {
        "selector": {
            "repositoryLocationName": "em_pipeline.definitions",
            "repositoryName": "__repository__",
            "pipelineName": "empiar_ingest",
        },
        "mode": "default",
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "empiar-11759"}]},
    }
    launched = ask(LAUNCH, params=params)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    ended = {"SUCCESS", "FAILURE", "CANCELED"}
    status = until(lambda: next(iter(ended & {ask(STATUS, id=run_id)["runOrError"]["status"]}), None), RUN_S)
    assert status == "SUCCESS"
    with EMClient(f"http://127.0.0.1:{api}") as client:
        assert [dataset.dataset_id for dataset in client.list_datasets()] == ["empiar-11759"]
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3
    process.terminate()
    process.wait(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [child.cmdline() for child in alive] == []
