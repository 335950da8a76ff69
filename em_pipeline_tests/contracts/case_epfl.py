"""The EPFL source against its replay."""

from em_pipeline.demo.epfl_portal import PART, EpflPortal
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.epfl import EpflSource
from em_pipeline_tests.contracts.case import ANY_DOCUMENT, SourceCase

CASE = SourceCase(
    portal=EpflPortal,
    make=lambda portal: EpflSource(**portal.options, timeout_s=5, retries=0, backoff_s=0),
    spec=lambda _: DatasetSpec(source="epfl", accession="training", label_images=("mitochondria",)),
    shape=PART,
    troubles=ANY_DOCUMENT,
    missing=lambda _: DatasetSpec(source="epfl", accession="validation"),
    label_images=("mitochondria",),
)
