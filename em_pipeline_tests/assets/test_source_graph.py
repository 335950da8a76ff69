"""The Dagster graph in this process: what it runs, shows, retries and stops."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from em_pipeline.assets.failures import reported
from em_pipeline.assets.partitions import DatasetPartitions, dataset_partitions, register
from em_pipeline.assets.source_graph import RECHUNK_POOL, build_source_definitions, host_pool, ingest_job_name
from em_pipeline.cli.launch import run_ingest
from em_pipeline.definitions import build_definitions, defs
from em_pipeline.demo.portal import DemoPortal
from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import InputRefused, NotPublishable, SourceUnavailable
from em_pipeline.domain.record import Status
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.damage import discard
from em_pipeline.ingest.scrape import scrape
from em_pipeline.ingest.specs import find_spec
from em_pipeline.ingest.validate import CHECK_NAMES
from em_pipeline.ingest.versions import VersionFiles
from em_pipeline.ingest.workspace import Workspace, open_catalog
from em_pipeline.settings import load_settings
from em_pipeline.sources.registry import load_sources
from em_pipeline.storage.lock import dataset_lock
from em_pipeline_tests.ingest.chain import volume_of

ID = "empiar-11759"
ASSETS = ("record", "raw_files", "ome_zarr", "validation_report", "catalog_entry")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def run(
    workspace: Workspace, instance: dg.DagsterInstance, *, select: list[str] | None = None
) -> dg.ExecuteInProcessResult:
    settings = load_settings(environ={}).settings
    definitions = build_definitions([workspace.source("empiar")], settings, {"workspace": workspace})
    register(instance, "empiar", [ID])
    return definitions.resolve_job_def(ingest_job_name("empiar")).execute_in_process(
        instance=instance,
        partition_key=ID,
        raise_on_error=False,
        asset_selection=[dg.AssetKey(["empiar", name]) for name in select] if select else None,
    )


def test_the_definitions_load_and_have_five_assets_per_source() -> None:
    loaded = defs()
    dg.Definitions.validate_loadable(loaded)
    keys = {key.to_user_string() for key in loaded.resolve_asset_graph().get_all_asset_keys()}
    for slug in ("empiar", "files"):
        assert {f"{slug}/{name}" for name in ASSETS} <= keys
        assert loaded.resolve_job_def(ingest_job_name(slug))


def test_pools_bound_the_portal_and_the_rechunk(workspace: Workspace) -> None:
    definitions = build_source_definitions(workspace.source("empiar"))
    pools = {
        key.path[-1]: asset.op.pool
        for asset in definitions.assets or ()
        if isinstance(asset, dg.AssetsDefinition)
        for key in asset.keys
    }
    assert pools == {
        "record": "ebi_host",
        "raw_files": "ebi_host",
        "ome_zarr": RECHUNK_POOL,
        "validation_report": RECHUNK_POOL,
        "catalog_entry": None,
    }


def test_portals_on_the_same_servers_share_a_pool() -> None:
    sources = load_sources()
    for slug in sources.keys() & {"empiar", "idr"}:
        assert host_pool(sources[slug]) == "ebi_host", slug
    assert host_pool(sources["files"]) != "ebi_host"


@pytest.mark.integration
def test_one_run_publishes_and_shows_what_a_person_wants(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    result = run(workspace, instance)
    assert result.success
    shown = {name: result.asset_materializations_for_node(f"empiar__{name}")[0].metadata for name in ASSETS}
    assert shown["ome_zarr"]["shape_zyx"].value == "16 × 110 × 99"
    assert str(shown["ome_zarr"]["preview"].value).startswith("![preview")
    assert "5632" in str(shown["record"]["conflicts"].value) or "5632" in str(
        shown["ome_zarr"]["conflicts"].value
    )
    assert shown["raw_files"]["files"].value == 16
    assert {"mb_per_s", "stored_bytes", "voxel_size_nm_zyx"} <= set(shown["ome_zarr"])
    checks = {event.check_name: event.passed for event in result.get_asset_check_evaluations()}
    assert set(checks) == set(CHECK_NAMES)
    assert [summary.dataset_id for summary in workspace.catalog.published()] == [ID]


@pytest.mark.integration
def test_a_failed_check_stops_the_run_before_the_catalogue(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    assert run(workspace, instance, select=list(ASSETS[:3])).success
    spec = find_spec(workspace.catalog, ID)
    shard = volume_of(workspace, spec) / "0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    result = run(workspace, instance)
    assert not result.success
    assert not result.asset_materializations_for_node("empiar__catalog_entry")
    assert workspace.catalog.published() == []


def flip_byte(shard: Path) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])


@pytest.mark.integration
@pytest.mark.slow
def test_an_ingest_that_does_not_pass_names_the_chunk_and_the_next_one_writes_it_anew(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    settings = load_settings(environ={"EM_HOME": str(tmp_path / "home")}).settings
    assert run(workspace, instance, select=list(ASSETS[:3])).success
    spec = find_spec(workspace.catalog, ID)
    flip_byte(volume_of(workspace, spec) / "0/c/0/0/0")
    named = r"stored: chunk: level 0 chunk \(0, 0, 0\) .z, y, x., shard 0/c/0/0/0: .*Run the same again"
    with pytest.raises(NotPublishable, match=named):
        run_ingest(workspace, spec, settings)
    assert workspace.catalog.published() == []
    assert run_ingest(workspace, spec, settings).changed
    # Of one that is published nothing is deleted unasked.
    published = workspace.catalog.published_version(ID)
    assert published is not None
    volume = workspace.store.local_path(published.volume_key)
    flip_byte(volume / "0/c/0/0/0")
    workspace.store.delete(VersionFiles.published(workspace.store, ID, published.version).report)
    with pytest.raises(NotPublishable, match=rf"stored: .*`em verify {ID} --discard`"):
        run_ingest(workspace, spec, settings)
    discard(workspace.catalog, workspace.store, published)
    assert not run_ingest(workspace, spec, settings).changed


@pytest.mark.integration
@pytest.mark.parametrize(("error", "retried"), [(SourceUnavailable, True), (InputRefused, False)])
def test_only_what_can_pass_by_itself_is_retried(
    workspace: Workspace, error: type[SourceUnavailable | InputRefused], retried: bool
) -> None:
    workspace.catalog.begin(ID, "empiar")
    with pytest.raises(dg.Failure) as failure, reported(workspace, ID):
        raise error("Tried it", "found nothing", "do something")
    assert failure.value.allow_retries is retried
    assert failure.value.metadata["to_do"].value == "do something"
    summary = workspace.catalog.dataset(ID).summary
    assert (summary.status, summary.message) == (Status.FAILED, "Tried it: found nothing. do something")


@pytest.mark.integration
def test_what_nobody_foresaw_is_named_and_not_retried(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(workspace.source("empiar"), "fetch_record", broken)
    result = run(workspace, instance, select=["record"])
    assert not result.success
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    summary = workspace.catalog.dataset(ID).summary
    assert (summary.status, summary.message) == (Status.FAILED, "ZeroDivisionError: by nothing")


@pytest.mark.integration
def test_an_interrupt_cancels_and_is_not_retried(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workspace.source("empiar"), "fetch_record", interrupted)
    result = run(workspace, instance, select=["record"])
    assert not result.success
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    assert workspace.catalog.dataset(ID).summary.status is Status.CANCELLED


@pytest.mark.integration
def test_a_dataset_at_work_elsewhere_is_not_shown_as_failed(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    workspace.catalog.begin(ID, "empiar")
    with dataset_lock(workspace.store, ID), pytest.raises(dg.Failure) as failure, reported(workspace, ID):
        scrape(workspace, find_spec(workspace.catalog, ID))
    assert failure.value.metadata["kind"].value == "busy"
    assert workspace.catalog.dataset(ID).summary.status is not Status.FAILED


@pytest.mark.integration
@pytest.mark.slow
def test_a_passing_outage_is_outlived_by_a_retry(
    workspace: Workspace, instance: dg.DagsterInstance, portal: DemoPortal
) -> None:
    # The source asks twice per attempt (see the fixture): the first attempt fails, the retry succeeds.
    portal.trouble(Trouble.SERVER_ERROR, match="/api/entry/", times=2)
    result = run(workspace, instance, select=["record"])
    assert result.success
    assert [event.step_key for event in result.all_events if event.is_step_up_for_retry] == ["empiar__record"]


@pytest.mark.integration
def test_a_dataset_with_a_spec_becomes_a_partition_and_no_other(
    instance: dg.DagsterInstance, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EM_DATABASE_URL", database_url)
    partitions = dataset_partitions("empiar")
    assert not partitions.has_partition_key("empiar-99001", dynamic_partitions_store=instance)
    with open_catalog(load_settings().settings) as catalog:
        catalog.save_spec(DatasetSpec(source="empiar", accession="99001"))
    assert partitions.has_partition_key("empiar-99001", dynamic_partitions_store=instance)
    assert not dataset_partitions("files").has_partition_key(
        "empiar-99001", dynamic_partitions_store=instance
    )
    assert instance.get_dynamic_partitions("empiar_datasets") == ["empiar-99001"]


def test_a_curated_id_becomes_a_partition_when_asked_for(instance: dg.DagsterInstance) -> None:
    partitions = dataset_partitions("empiar")
    assert isinstance(partitions, DatasetPartitions)
    assert not instance.get_dynamic_partitions("empiar_datasets")
    assert partitions.has_partition_key(ID, dynamic_partitions_store=instance)
    assert instance.get_dynamic_partitions("empiar_datasets") == [ID]


def test_registering_twice_adds_once(instance: dg.DagsterInstance) -> None:
    assert register(instance, "empiar", ["empiar-2", "empiar-1"]) == ["empiar-1", "empiar-2"]
    assert register(instance, "empiar", ["empiar-2"]) == []
