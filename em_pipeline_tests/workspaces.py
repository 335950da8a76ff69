"""A workspace on a temporary store and database, with a local portal behind the source empiar.

Fixtures for every package of tests; `environment` gives the same to a process of its own.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.catalog.repository import Catalog
from em_pipeline.demo.portal import DemoPortal
from em_pipeline.domain.progress import Silent
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.registry import load_sources
from em_pipeline.storage.download import DownloadPolicy
from em_pipeline.storage.store import LocalStore

RETINA = (16, 110, 99)


@pytest.fixture(scope="session")
def portal_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the portal's generated files, made once."""
    folder = tmp_path_factory.mktemp("portal")
    with DemoPortal(folder, retina_shape=RETINA):
        return folder


@pytest.fixture
def portal(portal_files: Path) -> Iterator[DemoPortal]:
    with DemoPortal(portal_files, retina_shape=RETINA) as portal:
        yield portal


@pytest.fixture
def workspace(tmp_path: Path, database_url: str, portal: DemoPortal) -> Iterator[Workspace]:
    engine = create_engine_for(database_url)
    options = {"empiar": {**portal.options, "retries": "1", "backoff_s": "0.01"}}
    yield Workspace(
        store=LocalStore(tmp_path / "store"),
        spool=tmp_path / "spool",
        catalog=Catalog(engine),
        sources=load_sources(options),
        policy=DownloadPolicy(read_timeout_s=20.0, retries=2),
        memory_budget=512 << 20,
        threads=2,
        progress=Silent(),
    )
    engine.dispose()


@pytest.fixture
def environment(tmp_path: Path, database_url: str, portal: DemoPortal) -> dict[str, str]:
    """Environment of a process that works on a fresh home, the test's database and the local portal."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("EM_", "DAGSTER_"))
    }
    sources = {f"EM_SOURCES__EMPIAR__{option.upper()}": base for option, base in portal.options.items()}
    return {
        **inherited,
        **sources,
        "EM_HOME": str(tmp_path / "home"),
        "EM_DATABASE_URL": database_url,
        "EM_DOWNLOAD_TIMEOUT_S": "20",
        "EM_DOWNLOAD_RETRIES": "2",
        "COLUMNS": "200",
    }
