"""Real services for tests, started once for the session."""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from em_pipeline.catalog.embedded import EmbeddedPostgres
from em_pipeline.catalog.engine import create_engine_for, upgrade

UNSAFE_BUT_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
TEMPLATE = "migrated"

_numbers = count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of the database `em`, without tables, on a server for the whole run; its user may do anything."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # as root, the server runs as another user, who has to pass
        with EmbeddedPostgres(Path(folder) / "postgres", settings=UNSAFE_BUT_FAST) as url:
            yield url


@pytest.fixture(scope="session")
def _migrated(postgres_server: str) -> str:
    url = _create(postgres_server, TEMPLATE, template="template1")
    engine = create_engine_for(url)
    upgrade(engine)
    engine.dispose()
    return TEMPLATE


@pytest.fixture
def database_url(postgres_server: str, _migrated: str) -> Iterator[str]:
    """URL of a fresh database with the catalogue's tables, dropped after the test."""
    name = f"test_{next(_numbers)}"
    yield _create(postgres_server, name, template=_migrated)
    _administer(postgres_server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def empty_database_url(postgres_server: str) -> Iterator[str]:
    """URL of a fresh database without tables, dropped after the test."""
    name = f"test_{next(_numbers)}"
    yield _create(postgres_server, name, template="template1")
    _administer(postgres_server, f'DROP DATABASE "{name}" WITH (FORCE)')


def _create(server: str, name: str, template: str) -> str:
    _administer(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


def _administer(server: str, statement: str) -> None:
    engine: Engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
