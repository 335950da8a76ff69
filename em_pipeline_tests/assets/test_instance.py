"""A Dagster home whose making was cut short is whole again when the pipeline opens it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from em_pipeline.assets.partitions import register
from em_pipeline.resources.instance import DATABASES, INSTANCE_FILE, open_instance
from em_pipeline.settings import Settings, load_settings

CUT_SHORT = {
    "before the first table": "",
    "between two tables": "CREATE TABLE event_logs (id); CREATE TABLE runs (id); CREATE TABLE job_ticks (id)",
    "before the stamp": "CREATE TABLE alembic_version (version_num)",
    "before the last marks": "CREATE TABLE alembic_version (version_num); "
    "INSERT INTO alembic_version VALUES ('some revision')",
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("EM_HOME", str(tmp_path))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return load_settings().settings


def schema(settings: Settings) -> dict[str, list[tuple[str, str]]]:
    found = {}
    for name in DATABASES:
        with closing(sqlite3.connect(settings.dagster_folder / name)) as opened:
            found[name] = sorted(opened.execute("SELECT type, name FROM sqlite_master").fetchall())
    return found


@pytest.mark.parametrize("statements", CUT_SHORT.values(), ids=CUT_SHORT)
def test_databases_whose_making_was_cut_short_are_made_anew(settings: Settings, statements: str) -> None:
    with open_instance(settings):
        whole = schema(settings)
    for name in DATABASES:
        (settings.dagster_folder / name).write_bytes(b"")
        with closing(sqlite3.connect(settings.dagster_folder / name)) as opened:
            opened.executescript(statements)
    with open_instance(settings) as instance:
        assert register(instance, "files", ["mine"]) == ["mine"]
    assert schema(settings) == whole


def test_what_steps_print_is_copied_only_where_a_person_said_so(settings: Settings) -> None:
    with open_instance(settings) as instance:
        assert type(instance.compute_log_manager).__name__ == "NoOpComputeLogManager"
    file = settings.dagster_folder / INSTANCE_FILE
    ours = "module: dagster._core.storage.local_compute_log_manager, class: LocalComputeLogManager"
    with file.open("a") as opened:
        opened.write(f"\ncompute_logs: {{{ours}, config: {{base_dir: {settings.dagster_folder}/said}}}}\n")
    with open_instance(settings) as instance:
        assert type(instance.compute_log_manager).__name__ == "LocalComputeLogManager"


def test_a_database_that_holds_something_is_never_removed(settings: Settings) -> None:
    with open_instance(settings) as instance:
        register(instance, "files", ["mine"])
    with closing(sqlite3.connect(settings.dagster_folder / "history/runs/index.db")) as opened, opened:
        opened.execute("DELETE FROM secondary_indexes")
    with open_instance(settings) as instance:
        assert register(instance, "files", ["mine"]) == []
