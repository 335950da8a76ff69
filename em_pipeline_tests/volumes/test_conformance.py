"""Our verdict on metadata, held to that of ome-zarr-models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image
from pydantic import ValidationError

from em_pipeline.domain.errors import ChunkCorrupt
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.conformance import ngff_faults, read_elsewhere
from em_pipeline_tests.volumes.written import write

Document = dict[str, Any]


def models_accept(volume: Path) -> bool:
    try:
        Image.from_zarr(zarr.open_group(volume, mode="r", zarr_format=3))
    except (ValidationError, ValueError, KeyError):
        return False
    return True


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 255, (40, 50, 60), np.uint8)
    write(array, tmp_path / "v")
    return tmp_path / "v" / "volume.ome.zarr"


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (3, 129, 30)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint64"])
def test_what_is_written_satisfies_both(tmp_path: Path, shape: tuple[int, int, int], dtype: str) -> None:
    write(np.ones(shape, dtype), tmp_path / "v")
    volume = tmp_path / "v" / "volume.ome.zarr"
    assert ngff_faults(LocalBlobs(volume)) == []
    assert models_accept(volume)


def without_version(group: Document) -> None:
    del group["attributes"]["ome"]["version"]


def with_another_axis(group: Document) -> None:
    group["attributes"]["ome"]["multiscales"][0]["axes"][0]["name"] = "y"


def without_scale(group: Document) -> None:
    datasets = group["attributes"]["ome"]["multiscales"][0]["datasets"]
    datasets[0]["coordinateTransformations"].pop(0)


def with_a_short_scale(group: Document) -> None:
    datasets = group["attributes"]["ome"]["multiscales"][0]["datasets"]
    datasets[0]["coordinateTransformations"][0]["scale"].pop()


def with_a_level_that_is_not_there(group: Document) -> None:
    group["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = "9"


@pytest.mark.parametrize(
    "change",
    [without_version, with_another_axis, without_scale, with_a_short_scale, with_a_level_that_is_not_there],
)
def test_what_breaks_the_rules_is_found_by_both(volume: Path, change: Callable[[Document], None]) -> None:
    document = json.loads((volume / "zarr.json").read_text())
    change(document)
    (volume / "zarr.json").write_text(json.dumps(document))
    assert ngff_faults(LocalBlobs(volume))
    assert not models_accept(volume)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_document_is_a_fault(volume: Path, text: str) -> None:
    (volume / "zarr.json").write_text(text)
    assert ngff_faults(LocalBlobs(volume))


def test_wrong_dimension_names_are_a_fault(volume: Path) -> None:
    document = json.loads((volume / "0" / "zarr.json").read_text())
    document["dimension_names"] = ["x", "y", "z"]
    (volume / "0" / "zarr.json").write_text(json.dumps(document))
    assert "not z, y, x" in ngff_faults(LocalBlobs(volume))[0]


def test_reading_elsewhere_gives_the_voxels_or_says_why(volume: Path) -> None:
    expected = np.random.default_rng(0).integers(0, 255, (40, 50, 60), np.uint8)
    box = BoundingBox.at((3, 4, 5), (20, 20, 20))
    np.testing.assert_array_equal(read_elsewhere(LocalBlobs(volume), "0", box), expected[box.slices])
    shard = volume / "0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ChunkCorrupt, match="tensorstore"):
        read_elsewhere(LocalBlobs(volume), "0", box)
