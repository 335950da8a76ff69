"""A sidecar over real parts: written volumes, a real catalogue, a server on loopback, the client."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from em_client import EMClient
from em_pipeline.api.app import create_app
from em_pipeline.api.server import serve_in_thread
from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.catalog.repository import Catalog
from em_pipeline.storage.store import LocalStore
from em_pipeline_tests.api.publishing import Site, publish, write_volume

DATASET = "files-noise"
SPARSE = "files-sparse"
UNPUBLISHED = "files-unpublished"
VERSION = "0123456789ab"

# Uneven on purpose: padded chunks at each far edge, several chunks along each axis, a second level.
SHAPE = (150, 140, 260)


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(11)
    noise = random.integers(0, 2**16, SHAPE, dtype=np.uint16)
    sparse = np.zeros((20, 30, 140), np.uint8)
    sparse[:, :, 130:] = random.integers(1, 255, (20, 30, 10), dtype=np.uint8)
    return {DATASET: noise, SPARSE: sparse, UNPUBLISHED: sparse}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]) -> LocalStore:
    """A store with the volumes of all datasets, not to be changed."""
    store = LocalStore(tmp_path_factory.mktemp("written"))
    for dataset_id, array in arrays.items():
        write_volume(store, dataset_id, VERSION, array, voxel_size=(40.0, 8.25, 8.25))
    return store


@pytest.fixture
def site(
    tmp_path: Path, written: LocalStore, arrays: dict[str, np.ndarray], database_url: str
) -> Iterator[Site]:
    """A running sidecar with two published datasets and one that is only begun; its store may be damaged."""
    store = LocalStore(tmp_path / "store")
    shutil.copytree(written.root, store.root)
    engine = create_engine_for(database_url)
    catalog = Catalog(engine)
    for dataset_id in (DATASET, SPARSE):
        publish(catalog, store, dataset_id, VERSION)
    catalog.begin(UNPUBLISHED, "files", "downloading")
    try:
        with serve_in_thread(create_app(catalog, store)) as url:
            yield Site(url, store, catalog, arrays)
    finally:
        engine.dispose()


@pytest.fixture
def client(site: Site) -> Iterator[EMClient]:
    with EMClient(site.url, timeout_s=20, retries=1) as em:
        yield em


@pytest.fixture
def http(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=20) as plain:
        yield plain
