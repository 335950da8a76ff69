"""The EMPIAR source against its replay."""

from em_pipeline.demo.portal import ARCHIVE, DemoPortal
from em_pipeline.domain.files import RawFile, RemoteFile
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.empiar import EmpiarSource
from em_pipeline_tests.contracts.case import ANY_DOCUMENT, SourceCase


def held(portal: DemoPortal, file: RemoteFile) -> HeldFile:
    """A served file as a download would leave it."""
    below = file.url.removeprefix(f"{portal.url}{ARCHIVE}").replace("%20", " ")
    path = portal.tree / below
    return HeldFile(RawFile(url=file.url, path=file.path, size=path.stat().st_size, sha256="0" * 64), path)


CASE = SourceCase(
    portal=DemoPortal,
    make=lambda portal: EmpiarSource(**portal.options, timeout_s=5, retries=0, backoff_s=0),
    spec=lambda _: DatasetSpec(source="empiar", accession="11759"),
    shape=(16, 550, 549),
    troubles=ANY_DOCUMENT,
    missing=lambda _: DatasetSpec(source="empiar", accession="98765"),
)
