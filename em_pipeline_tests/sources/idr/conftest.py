"""The demonstration's IDR, healthy for each test."""

from collections.abc import Iterator

import pytest

from em_pipeline.demo.idr_portal import IdrPortal
from em_pipeline.sources.idr import IdrSource


@pytest.fixture
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdrPortal]:
    with IdrPortal(tmp_path_factory.getbasetemp() / "idr") as portal:
        yield portal


@pytest.fixture
def idr(portal: IdrPortal) -> IdrSource:
    return IdrSource(**portal.options, timeout_s=5, retries=0, backoff_s=0)
