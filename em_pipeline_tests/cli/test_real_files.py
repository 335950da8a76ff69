"""Every real file of a format we read goes through `em ingest`, or is refused with what to do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import Result
from typer.testing import CliRunner

from em_pipeline.cli.app import app
from em_pipeline_tests.formats.test_shared_data import (
    FILES,
    READERS,
    REFUSED,
    STACKS,
    STORED_AXES,
)

pytestmark = [pytest.mark.shared_data, pytest.mark.integration, pytest.mark.slow]

# What a person adds where a file does not say: nanometres.
GIVEN = 30.0


def em(environment: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--json"], env=environment)


def expected_voxels(path: Path, name: str) -> np.ndarray[Any, Any]:
    if path.is_dir():
        return np.stack([READERS[file.suffix](file) for file in sorted(path.iterdir())])
    voxels = READERS[path.suffix](path)
    voxels = voxels.reshape((1,) * (3 - voxels.ndim) + voxels.shape)
    return voxels.transpose(STORED_AXES.get(name, (0, 1, 2)))


def stored_voxels(environment: dict[str, str], made: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Level 0 of what an ingest made, as zarr-python reads it."""
    volume = f"store/volumes/{made['dataset_id']}/{made['version']}.ome.zarr"
    stored: np.ndarray[Any, Any] = zarr.open_array(Path(environment["EM_HOME"]) / volume / "0", mode="r")[:]
    return stored


@pytest.mark.parametrize("name", [*FILES, *STACKS])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:mrcfile")
def test_a_real_file_is_ingested(shared_data: Path, environment: dict[str, str], name: str) -> None:
    path = shared_data / name
    known = FILES.get(name, (None, None, None))
    if None in known:
        refused = em(environment, "ingest", str(path), "--name", "real")
        assert refused.exit_code == 2, refused.output
        assert "--voxel-size" in refused.stderr
    given = ",".join(str(GIVEN) if size is None else "" for size in known)
    options = ["--voxel-size", given] if None in known else []
    done = em(environment, "ingest", str(path), "--name", "real", *options)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["voxel_size_nm"] == pytest.approx([GIVEN if s is None else s for s in known], rel=1e-5)
    np.testing.assert_array_equal(stored_voxels(environment, made), expected_voxels(path, name))
    assert em(environment, "verify", "files-real").exit_code == 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused(shared_data: Path, environment: dict[str, str], name: str) -> None:
    done = em(environment, "ingest", str(shared_data / name), "--name", "real", "--voxel-size", "8")
    assert done.exit_code in (2, 3), done.output
    error = json.loads(done.stderr.strip().splitlines()[-1])
    assert error["to_do"]
    assert json.loads(em(environment, "ls").stdout) == []


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("derived/fibsem_v04.ome.zarr", "image"),
        ("derived/fibsem.n5", "image"),
        ("derived/precomputed_seg_compressed_segmentation", "labels"),
        ("derived/precomputed_seg_sharded", "labels"),
    ],
)
def test_a_real_container_is_ingested(
    shared_data: Path, environment: dict[str, str], name: str, array: str
) -> None:
    done = em(environment, "ingest", str(shared_data / name), "--name", "real")
    assert done.exit_code == 0, done.output
    with np.load(shared_data / "derived/truth.npz") as truth:
        np.testing.assert_array_equal(stored_voxels(environment, json.loads(done.stdout)), truth[array])
    assert em(environment, "verify", "files-real").exit_code == 0
