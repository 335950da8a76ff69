"""The real bucket: that it still has the layout the source discovers. A few hundred kilobytes."""

from pathlib import Path

import pytest

from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.omezarr import OmeZarrSource
from em_pipeline.sources.openorganelle import OpenOrganelleSource
from em_pipeline_tests.sources.arrays import held_files

pytestmark = pytest.mark.live

SMALLEST = DatasetSpec(source="openorganelle", accession="jrc_mus-nacc-2", level="s8")


def test_the_record_of_nacc_2() -> None:
    record = OpenOrganelleSource().fetch_record(SMALLEST.model_copy(update={"level": "s4"}))
    values = DatasetRecord.resolve(SMALLEST.dataset_id, record.revision, record.claims).values()
    assert [values[f"core.volume_shape.{axis}"] for axis in "zyx"] == [35, 157, 162]
    assert [values[f"core.voxel_size_nm.{axis}"] for axis in "zyx"] == pytest.approx([47.36, 64, 64])
    assert values["core.data_type"] == "int16"


def test_the_coarsest_level_has_voxels(tmp_path: Path) -> None:
    source = OpenOrganelleSource()
    with source.open_volume(SMALLEST, held_files(source, SMALLEST, tmp_path)) as volume:
        assert volume.shape == (2, 9, 10)
        assert volume.read(BoundingBox.of_shape(volume.shape)).any()


def test_many_datasets_are_listed() -> None:
    listed = {ref.accession for ref in OpenOrganelleSource().list_datasets()}
    assert {"jrc_mus-nacc-2", "jrc_hela-2", "jrc_mus-kidney"} <= listed


def test_the_bucket_is_a_generic_ome_zarr_too(tmp_path: Path) -> None:
    location = "s3://janelia-cosem-datasets/jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2/em/fibsem-int16"
    spec = DatasetSpec(source="omezarr", accession="nacc", location=location, level="s8")
    source = OmeZarrSource()
    with source.open_volume(spec, held_files(source, spec, tmp_path)) as volume:
        assert volume.shape == (2, 9, 10)
