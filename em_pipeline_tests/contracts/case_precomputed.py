"""The precomputed source against a coarse level of a volume in Google's store, taken whole."""

from em_pipeline.demo.flyem_portal import BUCKET
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.precomputed import PrecomputedSource
from em_pipeline_tests.contracts.case import ANY_DOCUMENT, SourceCase
from em_pipeline_tests.contracts.case_flyem import small_flyem


def _spec(path: str) -> DatasetSpec:
    return DatasetSpec(
        source="precomputed",
        accession="hemibrain",
        location=f"precomputed://gs://{BUCKET}/{path}",
        level=8,
        label_images=(f"bodies=gs://{BUCKET}/v1.2/segmentation",),
    )


CASE = SourceCase(
    portal=small_flyem,
    make=lambda portal: PrecomputedSource(gs=portal.url, timeout_s=5, retries=0, backoff_s=0),
    spec=lambda _: _spec("emdata/raw/jpeg"),
    shape=(162, 156, 135),
    troubles=ANY_DOCUMENT,
    missing=lambda _: _spec("emdata/none/jpeg"),
    lists=False,
    label_images=("bodies",),
)
