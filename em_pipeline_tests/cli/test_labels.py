"""Label images and absent voxels as `em` and the sidecar show them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from em_client import EMClient
from em_pipeline.api.app import create_app
from em_pipeline.api.server import serve_in_thread
from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.workspace import Workspace
from em_pipeline_tests.commands import em, run
from em_pipeline_tests.ingest.arrays_source import CELLS, MITO, NAMES, SLUG, labelled, workspace_of
from em_pipeline_tests.ingest.chain import run_chain

pytestmark = pytest.mark.integration

ID = "arrays-a"
ABSENT = BoundingBox.at((0, 0, 0), (20, 128, 128))


@pytest.fixture
def published(tmp_path: Path, environment: dict[str, str], database_url: str) -> Iterator[Workspace]:
    """A dataset with two label images, of which the source lacks a whole chunk of the image."""
    source = labelled(tmp_path)
    source.image.array[ABSENT.slices] = 0
    source.image.missing = (ABSENT,)
    engine = create_engine_for(database_url)
    workspace = workspace_of(source, Path(environment["EM_HOME"]) / "store", engine)
    run_chain(workspace, DatasetSpec(source=SLUG, accession="a", label_images=NAMES))
    yield workspace
    engine.dispose()


def test_em_shows_reads_and_verifies_label_images(
    published: Workspace, environment: dict[str, str], tmp_path: Path
) -> None:
    shown = em(environment, "show", ID)["published"]
    assert [label["name"] for label in shown["labels"]] == list(NAMES)
    text = run(environment, "em", "show", ID).stdout
    assert "labels/cell-seg" in text
    assert "78.019% of the voxels are absent at the source" in text
    out = tmp_path / "block.npy"
    for name in NAMES[0], "cell-seg":
        read = em(environment, "block", ID, "2", "10", "20", "--label", name, "--out", str(out))
        assert read["dtype"] == "uint64"
        np.testing.assert_array_equal(np.load(out), CELLS[2:, 10:138, 20:148])
    refused = run(environment, "em", "block", ID, "0", "0", "0", "--label", "nuclei")
    assert refused.returncode == 7
    assert "it has cell seg, mito" in refused.stderr
    assert em(environment, "verify", ID)["faults"] == []
    (shard,) = published.store.local_path(f"volumes/{ID}").glob("*.ome.zarr/labels/mito/0/c/0/0/0")
    shard.unlink()
    done = run(environment, "em", "verify", ID, "--json")
    assert done.returncode == 5
    assert {fault["image"] for fault in json.loads(done.stdout)["faults"]} == {"labels/mito"}
    assert "labels/mito: missing-shard" in run(environment, "em", "verify", ID).stdout


def test_em_tells_absent_voxels_from_data(published: Workspace, environment: dict[str, str]) -> None:
    absent = em(environment, "block", ID, "0", "0", "0")
    assert (absent["states"], absent["valid_fraction"], absent["min"]) == ({"absent": 1}, 0, None)
    partly = em(environment, "block", ID, "0", "100", "0")
    assert partly["states"] == {"absent": 1, "padded": 1}
    assert partly["valid_fraction"] == 12 / 40
    assert partly["min"] >= 1
    assert "their zeros are no data" in run(environment, "em", "block", ID, "0", "100", "0").stdout


def test_the_sidecar_serves_both(published: Workspace) -> None:
    with serve_in_thread(create_app(published.catalog, published.store)) as url:
        with httpx.Client(base_url=f"{url}/api/v1", timeout=20) as http:

            def get(**query: Any) -> httpx.Response:
                return http.get("/block", params={"dataset_id": ID, "z": 0, "y": 0, "x": 0, **query})

            metadata = http.get("/metadata", params={"dataset_id": ID}).json()
            assert metadata["coverage"] == pytest.approx(1 - 128 * 128 / (140 * 150))
            assert [(label["name"], label["dtype"]) for label in metadata["labels"]] == [
                ("cell seg", "uint64"),
                ("mito", "int32"),
            ]
            block = get(label="mito", format="npy")
            np.testing.assert_array_equal(np.load(io.BytesIO(block.content)), MITO)
            assert block.headers["x-em-voxel-size-nm"] == "16.0,8.0,8.0"
            assert block.headers["etag"] != get(format="npy").headers["etag"]
            assert get(label="mito", format="png").content.startswith(b"\x89PNG")
            unknown = get(label="nuclei")
            assert (unknown.status_code, unknown.json()["slug"]) == (404, "not-found")
        with EMClient(url, timeout_s=20) as client:
            absent = client.get_block(ID, 0, 0, 0)
            assert (absent.valid_fraction, absent.states) == (0.0, {"absent": 1})
