"""The discovery sensor in this process: what a tick asks Dagster for, and what an outage leaves untouched."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from em_pipeline.assets.partitions import dataset_partitions, register
from em_pipeline.assets.source_graph import ingest_job_name
from em_pipeline.definitions import build_definitions
from em_pipeline.demo.portal import ENTRIES, DemoPortal
from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import EmError
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest import watch
from em_pipeline.ingest.discovery import Cursor
from em_pipeline.ingest.discovery_policy import DiscoveryPolicy
from em_pipeline.ingest.specs import find_spec
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sensors.discovery import build_discovery_sensor, sensor_name
from em_pipeline.settings import load_settings
from em_pipeline.sources.base import WatchedSource
from em_pipeline.sources.empiar import EmpiarSource
from em_pipeline.sources.files import FilesSource
from em_pipeline_tests.ingest.chain import run_chain

pytestmark = pytest.mark.integration

RETINA = "empiar-11759"
ALL = ["empiar-11759", "empiar-99001", "empiar-99002"]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    # One in memory has no reference, without which a tick's partitions are not checked against its runs.
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


class Watcher:
    """The sensor, and what Dagster keeps for it between two ticks."""

    def __init__(self, workspace: Workspace, instance: dg.DagsterInstance, **rules: object) -> None:
        source = workspace.source("empiar")
        assert isinstance(source, WatchedSource)
        self.sensor = build_discovery_sensor(
            source,
            DiscoveryPolicy.model_validate(rules),
            job_name=ingest_job_name("empiar"),
            partitions=dataset_partitions("empiar"),
        )
        self.definitions = build_definitions(
            [source], load_settings(environ={}).settings, {"workspace": workspace}
        )
        self.workspace, self.instance = workspace, instance
        self.cursor: str | None = None

    def tick(self) -> list[str]:
        """One tick as the daemon does it; gives the run keys. The cursor is kept only where it succeeds."""
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self.cursor,
            definitions=self.definitions,
            resources={"workspace": self.workspace},
        ) as context:
            data = self.sensor.evaluate_tick(context)
        for request in data.dynamic_partitions_requests or ():
            assert isinstance(request, dg.AddDynamicPartitionsRequest)
            register(self.instance, "empiar", request.partition_keys)
        self.cursor = data.cursor
        self.skip_message = data.skip_message
        return [str(request.run_key) for request in data.run_requests or ()]

    @property
    def partitions(self) -> list[str]:
        return list(self.instance.get_dynamic_partitions("empiar_datasets"))


@pytest.fixture
def watcher(workspace: Workspace, instance: dg.DagsterInstance) -> Watcher:
    return Watcher(workspace, instance)


def revise(portal: DemoPortal, accession: str, day: str) -> None:
    portal.entries = tuple(
        replace(entry, updated=day) if entry.accession == accession else entry for entry in portal.entries
    )


def test_partitions_and_runs_are_requested_together(watcher: Watcher, workspace: Workspace) -> None:
    keys = watcher.tick()
    assert keys == ["empiar-11759@2024-01-15", "empiar-99001@2025-03-03", "empiar-99002@2025-06-20"]
    assert sorted(watcher.partitions) == ALL
    assert find_spec(workspace.catalog, "empiar-99001").image_set == 0


def test_a_second_tick_says_why_nothing_is_requested(watcher: Watcher) -> None:
    watcher.tick()
    assert watcher.tick() == []
    assert watcher.skip_message == "Nothing new to ingest. 0 skipped"


def test_a_revised_entry_is_run_again_under_another_key(watcher: Watcher, portal: DemoPortal) -> None:
    watcher.tick()
    revise(portal, "99001", "2026-07-01")
    assert watcher.tick() == ["empiar-99001@2026-07-01"]
    assert sorted(watcher.partitions) == ALL


def test_the_cap_bounds_a_tick_and_the_rest_comes_next(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    watcher = Watcher(workspace, instance, cap=2)
    assert [len(watcher.tick()) for _ in range(3)] == [2, 1, 0]
    assert sorted(watcher.partitions) == ALL


def test_why_entries_are_skipped_is_in_the_cursor(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    watcher = Watcher(workspace, instance, methods="FIB-SEM", never="99001")
    assert watcher.tick() == []
    skipped = Cursor.read(watcher.cursor).skipped
    assert skipped == {
        "11759": "imaged by SBF-SEM, which is not asked for",
        "99001": "the list `never` names it",
        "99002": "imaged by ATUM-SEM, which is not asked for",
    }
    assert "11759: imaged by SBF-SEM" in str(watcher.skip_message)
    assert watcher.partitions == []


def test_what_a_person_said_of_a_dataset_stays(watcher: Watcher, workspace: Workspace) -> None:
    theirs = DatasetSpec(source="empiar", accession="99001", include=("*.mrc",))
    workspace.catalog.save_spec(theirs)
    watcher.tick()
    assert find_spec(workspace.catalog, "empiar-99001") == theirs


def test_a_published_dataset_is_not_run_again_after_a_reset(watcher: Watcher, workspace: Workspace) -> None:
    watcher.tick()
    run_chain(workspace, find_spec(workspace.catalog, "empiar-99001"))
    watcher.cursor = None
    assert watcher.tick() == ["empiar-11759@2024-01-15", "empiar-99002@2025-06-20"]


@pytest.mark.parametrize(
    "trouble", [Trouble.RESET, Trouble.UNAVAILABLE, Trouble.HTML, Trouble.CUT, Trouble.MISSING]
)
@pytest.mark.parametrize("where", ["/search", ENTRIES])
def test_an_outage_fails_the_tick_and_changes_nothing(
    where: str, trouble: Trouble, watcher: Watcher, workspace: Workspace, portal: DemoPortal
) -> None:
    portal.trouble(trouble, where)
    portal.trouble(trouble, "/ebisearch/" if where == "/search" else where)
    with pytest.raises(EmError):
        watcher.tick()
    assert (watcher.cursor, watcher.partitions, workspace.catalog.specs()) == (None, [], [])
    portal.heal()
    assert len(watcher.tick()) == 3


def test_an_outage_after_a_tick_forgets_nothing(watcher: Watcher, portal: DemoPortal) -> None:
    watcher.tick()
    kept = watcher.cursor
    portal.trouble(Trouble.UNAVAILABLE)
    with pytest.raises(EmError):
        watcher.tick()
    portal.heal()
    assert (watcher.cursor, watcher.tick()) == (kept, [])
    assert sorted(watcher.partitions) == ALL


def test_biostudies_alone_may_be_down(watcher: Watcher, portal: DemoPortal) -> None:
    portal.trouble(Trouble.UNAVAILABLE, "/biostudies/")
    assert len(watcher.tick()) == 3


def test_a_listing_without_the_control_is_an_outage(watcher: Watcher, portal: DemoPortal) -> None:
    portal.entries = tuple(entry for entry in portal.entries if entry.accession != "11759")
    with pytest.raises(EmError, match="11759, which exists"):
        watcher.tick()


def test_look_ups_stop_in_time_and_go_on_at_the_next_look(
    watcher: Watcher, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BATCH", 1)
    source = workspace.source("empiar")
    assert isinstance(source, WatchedSource)
    ticking = iter(range(0, 10_000, 20))
    found = watch.look(
        workspace, source, Cursor(), DiscoveryPolicy(), registered=(), clock=lambda: float(next(ticking))
    )
    assert (len(found.run_requests), found.waiting) == (1, 2)


def test_one_sensor_per_source_that_lists_and_it_is_off(workspace: Workspace) -> None:
    sources = [EmpiarSource(), FilesSource()]
    definitions = build_definitions(sources, load_settings(environ={}).settings)
    (sensor,) = definitions.sensors or ()
    assert isinstance(sensor, dg.SensorDefinition)
    assert (sensor.name, sensor.name) == (sensor_name("empiar"), "empiar_new_datasets")
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    assert sensor.job_name == "empiar_ingest"


def test_the_cursor_is_small(watcher: Watcher) -> None:
    watcher.tick()
    assert set(json.loads(str(watcher.cursor))) == {"at", "taken"}
