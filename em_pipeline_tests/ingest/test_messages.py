"""What people are told names what they typed, and what they can do."""

from pathlib import Path

import numpy as np
import pytest

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import FORMATS
from em_pipeline.ingest.cuts import image_cut
from em_pipeline.sources.files import spec_for
from em_pipeline_tests.volumes.arrays import ArrayVolume


def test_a_crop_of_absent_voxels_is_drawn_again_with_another_seed() -> None:
    volume = ArrayVolume(np.zeros((4, 4, 4), np.uint8))
    volume.missing = (BoundingBox.of_shape(volume.shape),)
    spec = DatasetSpec(source="files", accession="a")
    with pytest.raises(InputRefused, match="another --seed"):
        image_cut(spec, volume, VoxelSize(z=1, y=1, x=1), "a")


def test_a_shape_is_written_as_people_write_it() -> None:
    assert f"{Shape(33, 192, 256)} voxels" == "33×192×256 voxels"
    assert repr(Shape(1, 2, 3)) == "Shape(z=1, y=2, x=3)"


@pytest.mark.parametrize(
    ("address", "found"),
    [("s3://x", "'x' is no name of a bucket"), ("gs://bucket/a/../b", "it is neither s3://")],
)
def test_an_address_is_refused_as_it_was_typed(address: str, found: str) -> None:
    with pytest.raises(InputRefused, match=f"Read '{address}'.*{found}"):
        spec_for(address)
    assert spec_for("s3://bucket/a.zarr").location == "s3://bucket/a.zarr"


def test_voxels_in_gzip_are_ingested_by_the_options_of_ingest() -> None:
    (gzip,) = (one for one in FORMATS if one.slug == "gzip")
    assert "em ingest --raw-shape" in gzip.to_do
    assert Path("a.gz").suffix in gzip.suffixes
