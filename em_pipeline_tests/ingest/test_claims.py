"""What the spec adds to a record: where the volume begins, and in which unit its size was given."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tifffile

from em_pipeline.domain.evidence import Claim, Origin
from em_pipeline.domain.files import Manifest
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import open_volume
from em_pipeline.ingest.claims import volume_record, with_statistics
from em_pipeline.sources.claimant import Claimant
from em_pipeline.volumes.statistics import VolumeStatistics, measure

IMAGEJ = {"unit": "\\u00B5m", "spacing": 0.02, "axes": "ZYX"}


@pytest.fixture
def volume(tmp_path: Path) -> LazyVolume:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((4, 6, 8), np.uint8), imagej=True, resolution=(50, 50), metadata=IMAGEJ)
    return open_volume([path], name="a")


def recorded(
    volume: LazyVolume, box: BoundingBox | None = None, portal: Sequence[Claim] = (), **spec: object
) -> DatasetRecord:
    given = DatasetSpec.model_validate({"source": "files", "accession": "a", "bounding_box": box, **spec})
    manifest = Manifest(dataset_id="files-a", revision="r", files=())
    return volume_record(given, manifest, portal, volume, box or BoundingBox.of_shape(volume.shape))


def test_a_whole_volume_begins_at_its_first_voxel(volume: LazyVolume) -> None:
    assert recorded(volume).fields.core.offset.model_dump() == {"z": 0, "y": 0, "x": 0}


def test_a_region_says_where_it_begins(volume: LazyVolume) -> None:
    record = recorded(volume, BoundingBox.at((1, 2, 3), (2, 2, 2)))
    assert record.fields.core.offset.model_dump() == {"z": 1, "y": 2, "x": 3}
    claim = record.kept("core.offset.x")
    assert claim is not None
    assert (claim.evidence.origin, claim.evidence.field) == (Origin.COMPUTED, "bounding_box.start")


def test_the_file_says_axes_channels_and_unit_as_written(volume: LazyVolume) -> None:
    core = recorded(volume).fields.core
    assert (core.axes, core.channels, core.unit) == ("zyx", 1, "\\u00B5m")
    assert core.voxel_size_nm.x == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("given", "unit"),
    [
        (PartialVoxelSize(z=30, y=6, x=6), "nm"),
        (PartialVoxelSize(z=30), "\\u00B5m"),
        (PartialVoxelSize(y=6, x=6), "nm"),
    ],
)
def test_the_unit_is_that_of_the_size_along_x(given: PartialVoxelSize, unit: str, volume: LazyVolume) -> None:
    assert recorded(volume, voxel_size_nm=given).fields.core.unit == unit


def test_a_stack_of_planes_has_its_files_as_z(tmp_path: Path) -> None:
    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.ones((6, 8), np.uint8))
    with open_volume(sorted(tmp_path.iterdir()), name="stack") as stack:
        record = recorded(stack)
    assert record.fields.core.axes == "zyx"
    claim = record.kept("core.axes")
    assert claim is not None
    assert (claim.evidence.field, claim.evidence.raw) == ("one file per plane", "YX")
    assert not record.conflicts


def test_one_size_in_two_units_is_no_conflict(volume: LazyVolume) -> None:
    portal = Claimant("https://portal/entry", "test")
    said = [portal.says("core.voxel_size_nm.x", 20.0, "x", 200.0), portal.says("core.unit", "Å", "x", 200.0)]
    record = recorded(volume, portal=said)
    assert record.fields.core.unit == "\\u00B5m"
    assert not record.conflicts


def test_the_portal_s_unit_goes_with_the_portal_s_size(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 6, 8), np.uint8), photometric="minisblack")
    portal = Claimant("https://portal/entry", "test")
    said = [portal.says("core.voxel_size_nm.x", 20.0, "x", 200.0), portal.says("core.unit", "Å", "x", 200.0)]
    with open_volume([tmp_path / "a.tif"], name="a") as bare:
        assert recorded(bare, portal=said).fields.core.unit == "Å"


def test_a_box_keeps_what_is_disputed_of_the_whole(volume: LazyVolume) -> None:
    other = Claimant("https://portal/other", "test")
    said = [other.says("core.volume_shape.x", 9, "size", 9), other.says("core.volume_shape.y", 6, "size", 6)]
    record = recorded(volume, BoundingBox.at((1, 2, 3), (2, 2, 2)), portal=said)
    voxels = np.ones((2, 2, 2), np.uint8)
    summary, histogram = measure(voxels)
    statistics = VolumeStatistics(**asdict(summary), dtype=voxels.dtype, histogram=histogram)
    measured = with_statistics(record, statistics, "ledger")
    for stage in (record, measured, DatasetRecord.model_validate_json(measured.model_dump_json())):
        assert stage.fields.core.volume_shape.model_dump() == {"z": 2, "y": 2, "x": 2}
        (conflict,) = stage.conflicts
        assert conflict.field == "core.volume_shape.x of the whole volume"
        assert (conflict.kept.value, conflict.rejected.value) == (8, 9)
        assert conflict.rejected.evidence.where == "https://portal/other"
    assert [one.field for one in recorded(volume, portal=said).conflicts] == ["core.volume_shape.x"]
