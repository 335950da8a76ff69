"""The files source against a file on a web server."""

from em_pipeline.demo.portal import ARCHIVE, DemoPortal
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.files import FilesSource, spec_for
from em_pipeline_tests.contracts.case import ANY_HTTP, SourceCase


def _file_url(portal: DemoPortal, name: str) -> DatasetSpec:
    return spec_for(f"{portal.url}{ARCHIVE}99001/data/{name}")


CASE = SourceCase(
    portal=DemoPortal,
    make=lambda _: FilesSource(timeout_s=5, retries=0, backoff_s=0),
    spec=lambda portal: _file_url(portal, "cortex_fibsem.mrc"),
    shape=(96, 192, 188),
    troubles=ANY_HTTP,  # it reads no document: what a file holds is for the readers to say
    missing=lambda portal: _file_url(portal, "cortex.mrc"),
    lists=False,
)
