"""The FlyEM source against its replay: a region of hemibrain and its segmentation."""

from pathlib import Path

from em_pipeline.demo.flyem_portal import FlyemPortal
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.flyem import FlyemSource
from em_pipeline_tests.contracts.case import ANY_DOCUMENT, SourceCase


def small_flyem(folder: Path) -> FlyemPortal:
    """Its replay with no more of the finest level than the case needs."""
    return FlyemPortal(folder, region=BoundingBox.at((11968, 10944, 9984), (128, 128, 128)))


CASE = SourceCase(
    portal=small_flyem,
    make=lambda portal: FlyemSource(**portal.options, timeout_s=5, retries=0, backoff_s=0),
    spec=lambda _: DatasetSpec(
        source="flyem",
        accession="hemibrain",
        dataset_id="flyem-hemibrain-test",
        bounding_box=BoundingBox.at((12000, 11000, 10000), (70, 60, 80)),
        label_images=("segmentation",),
    ),
    shape=(41394, 39725, 34427),
    troubles=ANY_DOCUMENT,
    missing=lambda _: DatasetSpec(source="flyem", accession="optic-lobe"),
    lists=False,
    label_images=("segmentation",),
)
