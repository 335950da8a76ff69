"""A catalogue in a fresh database."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.catalog.repository import Catalog


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine_for(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def catalog(engine: Engine) -> Catalog:
    return Catalog(engine)
