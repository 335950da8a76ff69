"""One Dagster backfill over every source: all datasets are published, and no two runs ask one institution's
servers at once."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.catalog.repository import Catalog
from em_pipeline.demo.portal import DemoPortal
from em_pipeline.demo.stack import write_tiff_stack
from em_pipeline.domain.geometry import PartialVoxelSize
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import Source
from em_pipeline.sources.files import spec_for
from em_pipeline.sources.registry import load_sources
from em_pipeline_tests.commands import em
from em_pipeline_tests.contracts.cases import CASES
from em_pipeline_tests.dagster_services import Dagster, dagster_running, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WAIT_S = 400.0
SOURCES = load_sources()
LAUNCH = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
BACKFILL = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status error { message } } }
}
"""
ASSETS = ("record", "raw_files", "ome_zarr", "validation_report", "catalog_entry")


@dataclass(frozen=True)
class Offered:
    """Every dataset of the backfill, and the environment that points the sources at their replays."""

    specs: tuple[DatasetSpec, ...]
    environment: dict[str, str]


@pytest.fixture
def offered(tmp_path: Path, environment: dict[str, str], portal: DemoPortal) -> Iterator[Offered]:
    """One dataset of each source's replay, and more of EMPIAR's and of local files."""
    stack = write_tiff_stack(tmp_path / "stack")
    voxel_size = PartialVoxelSize(z=30, y=6, x=6)
    specs = [
        *(DatasetSpec(source="empiar", accession=one.accession) for one in portal.entries),
        spec_for(str(stack), name="demo-stack").model_copy(update={"voxel_size_nm": voxel_size}),
    ]
    with ExitStack() as running:
        for slug in sorted(SOURCES.keys() - {"empiar", "files"}):
            replay = running.enter_context(CASES[slug].portal(tmp_path / slug))
            specs.append(CASES[slug].spec(replay))
            environment |= pointing(slug, SOURCES[slug], replay)
        yield Offered(tuple(specs), environment)


def pointing(slug: str, source: Source, replay: Any) -> dict[str, str]:
    """Settings for the options that the source has: a source of any URL has none."""
    taken = inspect.signature(type(source)).parameters
    return {
        f"EM_SOURCES__{slug.upper()}__{option.upper()}": str(value)
        for option, value in replay.options.items()
        if option in taken
    }


def backfill(dagster: Dagster, specs: tuple[DatasetSpec, ...]) -> str:
    """Launch all assets of all the datasets at once; gives the backfill's id."""
    by_source: dict[str, list[str]] = {}
    for spec in specs:
        by_source.setdefault(spec.source, []).append(spec.dataset_id)
    by_assets = [
        {
            "assetKey": {"path": [slug, asset]},
            "partitions": {"ranges": [{"start": one, "end": one} for one in ids]},
        }
        for slug, ids in by_source.items()
        for asset in ASSETS
    ]
    launched = dagster.ask(LAUNCH, params={"partitionsByAssets": by_assets})["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    return str(launched["backfillId"])


def ended(dagster: Dagster, backfill_id: str) -> str:
    """The backfill's status once it has one of its last ones."""
    found = dagster.ask(BACKFILL, id=backfill_id)["partitionBackfillOrError"]
    over = found["status"] not in ("REQUESTED", "CANCELING", "FAILING")
    return str(found["status"]) if over else ""


def test_all_datasets_of_all_sources_in_one_backfill(offered: Offered) -> None:
    engine = create_engine_for(offered.environment["EM_DATABASE_URL"])
    for spec in offered.specs:
        Catalog(engine).save_spec(spec)
    engine.dispose()
    ids = sorted(spec.dataset_id for spec in offered.specs)
    for spec in offered.specs:
        em(offered.environment, "register", spec.dataset_id)
    with dagster_running(offered.environment) as dagster:
        backfill_id = backfill(dagster, offered.specs)
        assert until(lambda: ended(dagster, backfill_id), WAIT_S) == "COMPLETED_SUCCESS"
        runs = dagster.runs(**{"dagster/backfill": backfill_id})
    assert sorted(row["dataset_id"] for row in em(offered.environment, "ls")) == ids
    assert sorted(partition(run) for run in runs) == ids
    assert_no_two_at_once(runs, offered.specs)


def partition(run: dict[str, Any]) -> str:
    return next(str(tag["value"]) for tag in run["tags"] if tag["key"] == "dagster/partition")


def assert_no_two_at_once(runs: list[dict[str, Any]], specs: tuple[DatasetSpec, ...]) -> None:
    """Runs whose sources have one institution follow each other."""
    institutions = {spec.dataset_id: SOURCES[spec.source].institution for spec in specs}
    for institution in set(institutions.values()):
        times = sorted(
            (run["startTime"], run["endTime"]) for run in runs if institutions[partition(run)] == institution
        )
        for (_, end), (start, _) in pairwise(times):
            assert end <= start, f"two runs at {institution} at once: {times}"
