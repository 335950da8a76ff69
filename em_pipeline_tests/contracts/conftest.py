"""The replay of each source's portal, generated once for the session and healthy for each test."""

from collections.abc import Iterator

import pytest

from em_pipeline.demo.replay import Replay
from em_pipeline_tests.contracts.cases import CASES


@pytest.fixture
def portal(slug: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    make = CASES[slug].portal
    with make(tmp_path_factory.getbasetemp() / f"portal-{make.__name__}") as portal:
        yield portal
