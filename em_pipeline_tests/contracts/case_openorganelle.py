"""The OpenOrganelle source against its replay."""

from em_pipeline.demo.openorganelle_portal import OpenOrganellePortal
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.openorganelle import OpenOrganelleSource
from em_pipeline_tests.contracts.case import ANY_DOCUMENT, SourceCase

CASE = SourceCase(
    portal=OpenOrganellePortal,
    make=lambda portal: OpenOrganelleSource(**portal.options, timeout_s=5, retries=0, backoff_s=0),
    spec=lambda _: DatasetSpec(
        source="openorganelle", accession="jrc_mus-nacc-2", level="s4", label_images=("nuc",)
    ),
    shape=(35, 157, 162),
    troubles=ANY_DOCUMENT,
    missing=lambda _: DatasetSpec(source="openorganelle", accession="jrc_mus-nacc-9"),
    label_images=("nuc",),
)
