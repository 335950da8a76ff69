"""Dagster's webserver and daemon as `em dev` runs them, asked through their own API."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from em_pipeline_tests.commands import BIN

START_S = 120.0
REPOSITORY = {"repositoryLocationName": "em_pipeline.definitions", "repositoryName": "__repository__"}

LOADED = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
RUNS = """
query ($filter: RunsFilter) {
  runsOrError(filter: $filter) {
    ... on Runs { results { runId status startTime endTime jobName tags { key value } } }
  }
}
"""

Found = TypeVar("Found")


class Dagster:
    """A running Dagster."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: Any) -> Any:
        """The data that a GraphQL query is answered with."""
        answer = httpx.post(self._url, json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """Runs with all of these tags, newest first."""
        wanted = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        found: list[dict[str, Any]] = self.ask(RUNS, filter=wanted)["runsOrError"]["results"]
        return found


def until(answer: Callable[[], Found | None], seconds: float) -> Found:
    """The first answer that is not empty; silence, refusals and answers without it are waited out."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = answer()
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, "no answer in time"
        time.sleep(0.5)


@contextmanager
def dagster_running(environment: Mapping[str, str]) -> Iterator[Dagster]:
    """`em dev` on free ports, with its definitions loaded; ended with all it started."""
    ui, api = free_port(), free_port()
    command = [str(BIN / "em"), "dev", "--dagster-port", str(ui), "--api-port", str(api)]
    with subprocess.Popen(command, env=dict(environment)) as process:
        try:
            dagster = Dagster(ui)
            until(lambda: dagster.ask(LOADED)["repositoriesOrError"]["nodes"], START_S)
            yield dagster
        finally:
            process.terminate()


def free_port() -> int:
    """A port that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
