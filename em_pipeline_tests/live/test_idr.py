"""A few kilobytes of the real IDR: one image, its study, the head of its file, the listing."""

import pytest

from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.idr import IdrSource

pytestmark = pytest.mark.live
CHROMATIN = DatasetSpec(source="idr", accession="9846137")


def test_the_chromatin_is_where_it_was() -> None:
    source = IdrSource()
    record = source.fetch_record(CHROMATIN)
    said = {claim.field: claim.value for claim in record.claims}
    assert [said[f"core.volume_shape.{axis}"] for axis in "zyx"] == [184, 775, 1121]
    assert said["rights.licence"] == "CC-BY-4.0"
    assert said["rights.doi"] == "10.17867/10000141d"
    (file,) = source.list_files(CHROMATIN, record)
    assert file.url.endswith("Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif")
    assert 152 << 20 < (file.size or 0) < 153 << 20


def test_the_listing_has_it() -> None:
    source = IdrSource()
    assert source.control_accession in {ref.accession for ref in source.list_datasets()}
