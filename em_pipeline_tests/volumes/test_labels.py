"""Label images inside a volume: their own pyramid, ledger and place, and what outsiders make of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from numpy.typing import NDArray
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.labels import Labels
from pydantic import ValidationError

from em_pipeline.domain.geometry import BoundingBox, VoxelSize
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.conformance import ngff_faults
from em_pipeline.volumes.rechunk import WrittenVolume, rechunk
from em_pipeline.volumes.verify import FaultKind, verify_decoded, verify_stored
from em_pipeline_tests.volumes.arrays import ArrayVolume, FailingVolume
from em_pipeline_tests.volumes.written import (
    hashes,
    places,
    random_voxels,
    reference_pyramid,
    small_plan,
    stored_in,
    write,
)

RAW = random_voxels((13, 20, 33), "uint8")
# Ids that a float64 cannot tell apart, in runs so that modes differ from single voxels.
CELLS = (np.uint64(2**63) + random_voxels((13, 20, 33), "uint64") % np.uint64(5)).astype(np.uint64)
NAMES = ("cells", "nuclei")


def write_label(array: NDArray[Any], folder: Path, label: str, **options: Any) -> WrittenVolume:
    plan = small_plan(array, kind="labels", level_count=len(small_plan(RAW).levels), **options)
    box = BoundingBox.of_shape(array.shape)
    return rechunk(
        ArrayVolume(array), box, plan, LocalBlobs(folder), name=label, progress=Silent(), label=label
    )


def write_all(folder: Path) -> Path:
    write(RAW, folder, labels=NAMES)
    write_label(CELLS, folder, "cells")
    write_label(RAW[::2, ::2, ::2].astype(np.int32), folder, "nuclei", voxel_size=VoxelSize(z=16, y=16, x=16))
    return folder / "volume.ome.zarr"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return write_all(tmp_path)


def models_accept(volume: Path) -> bool:
    try:
        image = Image.from_zarr(zarr.open_group(volume, mode="r", zarr_format=3))
        labels = Labels.from_zarr(zarr.open_group(volume / "labels", mode="r", zarr_format=3))
    except (ValidationError, ValueError, KeyError, RuntimeError):
        return False
    return image.labels is not None and sorted(labels.label_paths) == sorted(NAMES)


def test_outsiders_accept_and_read_them(volume: Path) -> None:
    assert models_accept(volume)
    assert ngff_faults(LocalBlobs(volume)) == []
    levels = reference_pyramid(CELLS, small_plan(CELLS, kind="labels"))
    for level, expected in enumerate(levels):
        path = volume / "labels/cells" / str(level)
        np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], expected)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), expected)
    assert CELLS.max() > 2**53
    label = zarr.open_group(volume / "labels/cells", mode="r").attrs["ome"]["image-label"]
    assert label == {"version": "0.5", "source": {"image": "../../"}}
    assert zarr.open_group(volume / "labels", mode="r").attrs["ome"]["labels"] == list(NAMES)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 3), (40, 50, 60)])
def test_they_have_as_many_levels_as_their_image(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    write(RAW, tmp_path, labels=("cells",))
    written = write_label(np.ones(shape, np.uint8), tmp_path, "cells")
    assert len(written.levels) == len(small_plan(RAW).levels)
    assert ngff_faults(LocalBlobs(tmp_path / "volume.ome.zarr")) == []
    reader = stored_in(tmp_path, "cells")
    assert reader is not None
    assert reader.info.kind == "labels"


def group(volume: Path, *below: str) -> tuple[Path, dict[str, Any]]:
    path = volume.joinpath(*below, "zarr.json")
    return path, json.loads(path.read_text())


def one_not_listed(volume: Path) -> None:
    path, document = group(volume, "labels")
    document["attributes"]["ome"]["labels"] = ["nuclei", "mitochondria"]
    path.write_text(json.dumps(document))


def another_source(volume: Path) -> None:
    path, document = group(volume, "labels", "cells")
    document["attributes"]["ome"]["image-label"]["source"]["image"] = "../other"
    path.write_text(json.dumps(document))


def a_level_too_few(volume: Path) -> None:
    path, document = group(volume, "labels", "cells")
    document["attributes"]["ome"]["multiscales"][0]["datasets"].pop()
    path.write_text(json.dumps(document))


def no_longer_there(volume: Path) -> None:
    (volume / "labels/cells/zarr.json").unlink()


BREAKS = [one_not_listed, another_source, a_level_too_few, no_longer_there]


@pytest.mark.parametrize("change", BREAKS)
def test_what_breaks_the_rules_is_found(volume: Path, change: Callable[[Path], None]) -> None:
    change(volume)
    assert "labels/" in " ".join(ngff_faults(LocalBlobs(volume)))


def test_floats_are_no_labels(volume: Path) -> None:
    for document in (volume / "labels/cells").glob("*/zarr.json"):
        document.write_text(document.read_text().replace('"uint64"', '"float64"').replace(": 0,", ": 0.0,"))
    assert "not integers" in " ".join(ngff_faults(LocalBlobs(volume)))
    assert not models_accept(volume)


@pytest.mark.parametrize("verify", [verify_stored, verify_decoded])
def test_each_is_verified_with_its_own_ledger(tmp_path: Path, verify: Any) -> None:
    volume = write_all(tmp_path)

    def faults(label: str | None = None) -> set[FaultKind]:
        result = verify(*places(tmp_path, label), threads=1, progress=Silent())
        return {fault.kind for fault in result.faults}

    assert faults() == faults("cells") == set()
    shard = volume / "labels/cells/0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (volume / "labels/nobody").mkdir()
    (volume / "labels/nobody/notes.txt").write_text("")
    assert faults() == {FaultKind.UNEXPECTED_FILE}
    assert faults("cells") == {FaultKind.INDEX}
    (volume / "labels/zarr.json").unlink()
    assert FaultKind.DOCUMENT in faults()


def test_the_order_and_interruptions_do_not_show(tmp_path: Path) -> None:
    write_all(tmp_path / "straight")
    other = tmp_path / "other"
    plan = small_plan(CELLS, kind="labels", level_count=len(small_plan(RAW).levels))
    box = BoundingBox.of_shape(CELLS.shape)
    for allowed in (0, 3):
        failing = FailingVolume(CELLS, RuntimeError("unplugged"), reads_allowed=allowed)
        with pytest.raises(RuntimeError):
            rechunk(failing, box, plan, LocalBlobs(other), name="cells", progress=Silent(), label="cells")
    write_label(CELLS, other, "cells", memory_budget=1 << 19, threads=1)
    write_all(other)
    assert hashes(tmp_path / "straight") == hashes(other)


def test_a_volume_begun_anew_takes_its_labels_along(tmp_path: Path) -> None:
    write_all(tmp_path)
    failing = FailingVolume(CELLS, RuntimeError("unplugged"), reads_allowed=0)
    with pytest.raises(RuntimeError):
        rechunk(
            failing,
            BoundingBox.of_shape(CELLS.shape),
            small_plan(CELLS, kind="labels"),
            LocalBlobs(tmp_path),
            name="anew",
            progress=Silent(),
            label="cells",
        )
    write(RAW, tmp_path, labels=("cells",), voxel_size=VoxelSize(z=9, y=9, x=9))
    assert not list(tmp_path.glob("labels.*")) + list(tmp_path.glob("work.*"))
    assert not (tmp_path / "volume.ome.zarr/labels/cells").exists()
    assert stored_in(tmp_path) is not None


def test_a_volume_without_labels_has_no_trace_of_them(tmp_path: Path) -> None:
    write(RAW, tmp_path)
    assert not (tmp_path / "volume.ome.zarr/labels").exists()
