"""The thin parts between Dagster and the layers below."""

import logging
import threading
from pathlib import Path

import dagster as dg
import pytest

from em_pipeline.definitions import prepare_instance
from em_pipeline.domain.progress import Silent
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.resources import progress as progress_module
from em_pipeline.resources.instance import INSTANCE_FILE, dagster_folder, prepare_dagster_home
from em_pipeline.resources.progress import LoggedProgress
from em_pipeline.resources.workspace import workspace_resource
from em_pipeline.settings import load_settings
from em_pipeline.sources.empiar import EmpiarSource
from em_pipeline.sources.files import FilesSource

SOURCES = {"empiar": EmpiarSource(), "files": FilesSource()}


class Counted(Silent):
    def __init__(self) -> None:
        self.amount = 0

    def advance(self, step: str, amount: int) -> None:
        self.amount += amount


def test_progress_is_logged_at_a_pace_and_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "PACE_S", 0.0)
    lines: list[str] = []
    onward = Counted()
    progress = LoggedProgress(lines.append, onward)
    progress.start("download", 4_000_000, "bytes")
    progress.advance("download", 1_000_000)
    progress.note("asked again")
    assert lines[0].startswith("download: 1.0 of 4.0 MB")
    assert lines[1] == "asked again"
    assert onward.amount == 1_000_000


def test_only_the_asset_s_thread_writes_the_log() -> None:
    writers: list[int] = []
    progress = LoggedProgress(lambda _: writers.append(threading.get_ident()), Silent())
    other = threading.Thread(target=progress.note, args=("from elsewhere",))
    other.start()
    other.join()
    assert writers == []
    progress.flush()
    assert writers == [threading.get_ident()]


def test_the_instance_s_file_is_copied_once_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    settings = load_settings(tmp_path, {"EM_HOME": str(tmp_path)}).settings
    folder = prepare_dagster_home(settings)
    assert "granularity: run" in (folder / INSTANCE_FILE).read_text()
    (folder / INSTANCE_FILE).write_text("telemetry: {enabled: false}\n")
    assert prepare_dagster_home(settings) == folder
    assert (folder / INSTANCE_FILE).read_text() == "telemetry: {enabled: false}\n"


def test_dagster_home_of_the_environment_is_kept_unless_a_setting_says_otherwise(
    tmp_path: Path,
) -> None:
    theirs = {"DAGSTER_HOME": str(tmp_path / "theirs")}
    loaded = load_settings(tmp_path, theirs)
    assert dagster_folder(loaded.settings) == tmp_path / "theirs"
    assert ("dagster_home", str(tmp_path / "theirs"), "DAGSTER_HOME in the environment") in loaded.shown()
    both = load_settings(tmp_path, {**theirs, "EM_DAGSTER_HOME": str(tmp_path / "ours")}).settings
    assert dagster_folder(both) == tmp_path / "ours"


def test_curated_datasets_are_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    prepare_instance(SOURCES)
    with dg.DagsterInstance.get() as instance:
        assert "empiar-11759" in instance.get_dynamic_partitions("empiar_datasets")
        instance.delete_dynamic_partition("empiar_datasets", "empiar-11759")
    prepare_instance(SOURCES)
    with dg.DagsterInstance.get() as instance:
        assert not instance.get_dynamic_partitions("empiar_datasets")


def test_pools_are_limited_before_their_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    prepare_dagster_home(load_settings(tmp_path, {"EM_HOME": str(tmp_path)}).settings)
    prepare_instance(SOURCES)
    with dg.DagsterInstance.get() as instance:
        limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    assert limits.items() >= {"ebi_host": 1, "local_host": 1, "rechunk": 1}.items()


@pytest.mark.integration
def test_the_resource_s_own_settings_win(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EM_THREADS", "7")
    monkeypatch.setenv("EM_DATABASE_URL", database_url)
    monkeypatch.setenv("EM_HOME", str(tmp_path))
    seen: list[Workspace] = []

    @dg.asset
    def looks(workspace: dg.ResourceParam[Workspace]) -> None:
        seen.append(workspace)

    resource = workspace_resource.configured({"settings": {"threads": "3"}})
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    assert dg.materialize([looks], resources={"workspace": resource}).success
    assert seen[0].threads == 3
    assert seen[0].store.url == (tmp_path / "store").as_uri()
