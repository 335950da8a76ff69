"""The IDR source against its replay."""

from em_pipeline.demo.idr_portal import SHAPE, IdrPortal
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.idr import IdrSource
from em_pipeline_tests.contracts.case import ANY_DOCUMENT, SourceCase

CASE = SourceCase(
    portal=IdrPortal,
    make=lambda portal: IdrSource(**portal.options, timeout_s=5, retries=0, backoff_s=0),
    spec=lambda _: DatasetSpec(source="idr", accession="9846137"),
    shape=SHAPE,
    troubles=ANY_DOCUMENT,
    missing=lambda _: DatasetSpec(source="idr", accession="98461370"),
)
