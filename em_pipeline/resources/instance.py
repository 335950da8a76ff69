"""The Dagster instance that belongs to the settings."""

import fcntl
import os
import sqlite3
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef

from em_pipeline.settings import Settings

INSTANCE_FILE = "dagster.yaml"
OPENING = ".em-opening"
# Where Dagster's default storage lays its databases, and what it writes last into each when it makes them.
DATABASES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")
MADE = {"alembic_version", "secondary_indexes"}
BOOKKEEPING = {*MADE, "instance_info"}
LOCKED_SECONDS = 30
# Dagster copies what a step prints with two `tail`s and two Pythons that watch these. A terminal's Ctrl-C
# ends all four, the Pythons with a traceback each; and what a step of `em` prints is on its terminal anyway.
NO_COPIES = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}


def dagster_folder(settings: Settings) -> Path:
    """Where Dagster keeps its runs: the setting, else `DAGSTER_HOME`, else below the pipeline's home."""
    return settings.dagster_folder.absolute()


def prepare_dagster_home(settings: Settings) -> Path:
    """Make the folder, give it our `dagster.yaml` where it has none, and point `DAGSTER_HOME` at it."""
    folder = dagster_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / INSTANCE_FILE).exists():
        temporary = folder / f".{INSTANCE_FILE}.{os.getpid()}"
        temporary.write_text(_shipped_instance_file())
        temporary.replace(folder / INSTANCE_FILE)
    os.environ["DAGSTER_HOME"] = str(folder)
    return folder


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The instance of these settings; the caller closes it.

    It keeps no copies of what steps print, unless its `dagster.yaml` says where (`compute_logs`).
    """
    folder = prepare_dagster_home(settings)
    with (folder / OPENING).open("w") as lock:
        # Dagster makes its SQLite tables when a storage is first touched; two processes that do so at once on
        # a new folder trip over each other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_half_made(folder)
        said = yaml.safe_load((folder / INSTANCE_FILE).read_text(encoding="utf-8")) or {}
        overrides = {} if "compute_logs" in said else NO_COPIES
        instance = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder), overrides=overrides))
        _ = instance.run_storage, instance.event_log_storage, instance.schedule_storage
    return instance


def _remove_half_made(folder: Path) -> None:
    """Let Dagster make those databases anew whose making was cut short: it takes any file for a whole one."""
    for name in DATABASES:
        database = folder / name
        if database.exists() and _is_half_made(database):
            for suffix in ("-journal", "-wal", "-shm", ""):
                database.with_name(database.name + suffix).unlink(missing_ok=True)


def _is_half_made(database: Path) -> bool:
    """Whether it lacks what Dagster writes last and holds nothing else that could be lost."""
    with closing(sqlite3.connect(database, timeout=LOCKED_SECONDS)) as opened:
        tables = [name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        # The names come from the database's own schema.
        one_of = {name: f'SELECT 1 FROM "{name}" LIMIT 1' for name in tables}  # noqa: S608
        filled = {name for name, query in one_of.items() if opened.execute(query).fetchone()}
    return not filled >= MADE and filled <= BOOKKEEPING


def _shipped_instance_file() -> str:
    package = files("em_pipeline")
    packaged = package.joinpath(INSTANCE_FILE)
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    # In a checkout the file lies beside the package; a wheel carries it inside.
    return Path(str(package)).parent.joinpath(INSTANCE_FILE).read_text(encoding="utf-8")
