"""The demonstration portal, generated once for the session and healthy for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.sources.empiar import EmpiarSource


@pytest.fixture
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoPortal]:
    with DemoPortal(tmp_path_factory.getbasetemp() / "demo-portal") as portal:
        yield portal


@pytest.fixture
def empiar(portal: DemoPortal) -> EmpiarSource:
    """EMPIAR at the demonstration portal, without patience."""
    return EmpiarSource(**portal.options, timeout_s=5, retries=0, backoff_s=0)


@pytest.fixture
def recordings(shared_data: Path) -> Path:
    """Answers recorded from the live portals."""
    return shared_data.parent / "sources"
