"""The Dagster instance that belongs to the settings."""

import fcntl
import os
from importlib.resources import files
from pathlib import Path

import dagster as dg

from em_pipeline.settings import Settings

INSTANCE_FILE = "dagster.yaml"
OPENING = ".em-opening"


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
    """The instance of these settings; the caller closes it."""
    folder = prepare_dagster_home(settings)
    with (folder / OPENING).open("w") as lock:
        # Dagster makes its SQLite tables when a storage is first touched; two processes that do so at once on
        # a new folder trip over each other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        instance = dg.DagsterInstance.get()
        _ = instance.run_storage, instance.event_log_storage, instance.schedule_storage
    return instance


def _shipped_instance_file() -> str:
    package = files("em_pipeline")
    packaged = package.joinpath(INSTANCE_FILE)
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    # In a checkout the file lies beside the package; a wheel carries it inside.
    return Path(str(package)).parent.joinpath(INSTANCE_FILE).read_text(encoding="utf-8")
