"""A few kilobytes of the real EPFL: the page and the headers of its files."""

import pytest

from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.epfl import EpflSource

pytestmark = pytest.mark.live
WHOLE = DatasetSpec(source="epfl", accession="volumedata")


def test_the_record_and_the_file_are_as_they_were() -> None:
    source = EpflSource()
    record = source.fetch_record(WHOLE)
    (file,) = source.list_files(WHOLE, record)
    assert file.size == 3_353_674_357
    assert record.page is not None
    assert record.page.links_not_on_the_page == ()


def test_ground_truth_is_there() -> None:
    for accession in ("training", "testing"):
        spec = DatasetSpec(source="epfl", accession=accession, label_images=("mitochondria",))
        source = EpflSource()
        sizes = [file.size for file in source.list_files(spec, source.fetch_record(spec))]
        assert sizes == [129_919_357, 129_919_357]
