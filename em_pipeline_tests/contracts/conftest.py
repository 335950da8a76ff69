"""The demonstration portal, generated once for the session and healthy for each test."""

from collections.abc import Iterator

import pytest

from em_pipeline.demo.portal import DemoPortal


@pytest.fixture
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoPortal]:
    with DemoPortal(tmp_path_factory.getbasetemp() / "demo-portal") as portal:
        yield portal
