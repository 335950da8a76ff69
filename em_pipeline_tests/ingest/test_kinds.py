"""Volumes whose voxels are ids keep ids in every level, wherever it is said that they are ids."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from em_pipeline.cli.options import asked as options
from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import PartialVoxelSize
from em_pipeline.domain.lazy_volume import SAID_LABELS
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.mirror import open_container
from em_pipeline.ingest.asked import Asked, spec_of
from em_pipeline.ingest.kinds import kind_of
from em_pipeline.ingest.planning import Outlook, outlook
from em_pipeline.ingest.validate import validate
from em_pipeline.ingest.workspace import Workspace
from em_pipeline_tests.formats.test_precomputed import written
from em_pipeline_tests.ingest.chain import run_chain, volume_of
from em_pipeline_tests.ingest.test_inspection import ome_zarr
from em_pipeline_tests.portals.folder import Folder

SHAPE = (20, 140, 150)
SPEC = DatasetSpec(source="files", accession="a")
SAID = {SAID_LABELS: "a document"}
IDS = np.random.default_rng(5).choice([3, 1000, 70_000], SHAPE).astype(np.uint32)


def planned(workspace: Workspace, target: object, **said: Any) -> Outlook:
    return outlook(workspace, spec_of(str(target), Asked(**said), {}, workspace.sources))


@pytest.mark.parametrize(
    ("said", "dtype", "metadata", "kind"),
    [
        (None, "uint8", {}, "image"),
        (None, "uint32", SAID, "labels"),
        (None, "float32", SAID, "image"),
        (None, "uint64", {}, "labels"),
        (None, "int64", {}, "labels"),
        (None, "float64", {}, "image"),
        ("image", "uint64", SAID, "image"),
        ("labels", "uint8", {}, "labels"),
    ],
)
def test_a_person_then_the_source_then_the_type_decides(
    said: Any, dtype: str, metadata: dict[str, Any], kind: str
) -> None:
    chosen = kind_of(SPEC.model_copy(update={"kind": said}), np.dtype(dtype), metadata)
    assert chosen.kind == kind
    assert bool(chosen.because) == (said is not None or kind == "labels")


def test_floats_are_no_ids() -> None:
    with pytest.raises(InputRefused, match="float32"):
        kind_of(SPEC.model_copy(update={"kind": "labels"}), np.dtype("float32"), {})


def test_only_a_kind_that_is_said_makes_another_version() -> None:
    assert "kind" not in SPEC.canonical_json()
    said = dict.fromkeys(
        ("voxel_size", "name", "include", "level", "roi", "random_crop", "seed", "label", "image_set",
         "raw_shape", "raw_dtype", "codec")
    )  # fmt: skip
    asked = options(**said, kind="labels")  # type: ignore[arg-type] # every one is None
    assert spec_of(str(Path(__file__)), asked, {}, {}).kind == "labels"


@pytest.mark.integration
def test_every_level_of_a_segmentation_holds_only_ids_of_the_finest(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder = written(tmp_path / "seg", IDS, kind="segmentation", chunk_size=[64, 64, 64])
    spec = spec_of(str(folder), Asked(name="seg"), {}, workspace.sources)
    run_chain(workspace, spec)
    report = {check.name: check for check in validate(workspace, spec).checks}
    assert report["pyramid"].passed
    assert "labels" in report["contrast"].message
    volume = volume_of(workspace, spec)
    ome = json.loads((volume / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["multiscales"][0]["type"] == "mode"
    # Only a label image that lies in an image has one that it belongs to.
    assert ome["image-label"] == {"version": "0.5"}
    levels = [zarr.open_array(volume / path, mode="r") for path in "01"]
    assert set(np.unique(levels[1][:])) <= {3, 1000, 70_000}  # type: ignore[arg-type]
    assert levels[0].compressors[0].to_dict()["configuration"]["level"] == 3  # type: ignore[union-attr]


@pytest.mark.integration
def test_a_plan_says_what_is_kept_and_why(workspace: Workspace, tmp_path: Path) -> None:
    written(tmp_path / "seg", IDS, kind="segmentation")
    found = [planned(workspace, tmp_path / "seg")]
    with Folder(tmp_path) as folder:
        found.append(planned(workspace, f"{folder.url}/seg"))
    for plan in found:
        assert (plan.images[0][1].kind, plan.images[0][1].codec) == ("labels", "zstd-3")
        assert any("kept as labels" in note and "type: segmentation" in note for note in plan.notes)
    tifffile.imwrite(tmp_path / "a.tif", IDS.astype(np.uint8), photometric="minisblack")
    size = PartialVoxelSize(z=1, y=1, x=1)
    plan = planned(workspace, tmp_path / "a.tif", kind="labels", voxel_size=size)
    assert plan.images[0][1].kind == "labels"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_ome_zarr_says_labels_by_its_image_label(tmp_path: Path, zarr_format: int) -> None:
    root = ome_zarr(tmp_path / "a.zarr", zarr_format, 1)
    assert SAID_LABELS not in open_container(root).metadata
    group = zarr.open_group(root, mode="r+")
    if zarr_format == 2:
        group.attrs["image-label"] = {"version": "0.4"}
    else:
        group.attrs["ome"] = {**group.attrs["ome"], "image-label": {}}  # type: ignore[dict-item]
    assert "image-label" in open_container(root).metadata[SAID_LABELS]
