"""Connecting, and the schema's revision."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from em_pipeline.catalog import engine as engine_module
from em_pipeline.catalog.engine import (
    check_schema,
    create_engine_for,
    current_revision,
    head_revision,
    upgrade,
)
from em_pipeline.catalog.models import BLOCK_STATES, Base
from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.errors import InputRefused, SchemaMismatch, ServiceUnavailable
from em_pipeline.domain.record import Status


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Engine]:
    engine = create_engine_for(empty_database_url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_accepted_urls(scheme: str) -> None:
    assert create_engine_for(f"{scheme}://u:p@h/d").url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize("scheme", ["sqlite", "mysql", "postgres", "postgresql+psycopg2", "nonsense"])
def test_other_urls_are_refused(scheme: str) -> None:
    with pytest.raises(InputRefused, match="EM_DATABASE_URL") as refused:
        create_engine_for(f"{scheme}://user:hunter2@host/db")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("url", ["user:hunter2@host", "postgresql://user:hunter2@host:abc/db"])
def test_what_is_no_url_is_refused_unseen(url: str) -> None:
    with pytest.raises(InputRefused) as refused:
        create_engine_for(url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.integration
def test_no_server() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        engine = create_engine_for(f"postgresql://user:hunter2@127.0.0.1:{port}/db")
        for attempt in (check_schema, upgrade, current_revision, lambda e: Catalog(e).published()):
            with pytest.raises(ServiceUnavailable, match=f"127.0.0.1:{port}") as found:
                attempt(engine)
            assert "hunter2" not in str(found.value)
            assert found.value.to_do


@pytest.mark.integration
def test_wrong_password_and_wrong_database(postgres_server: str) -> None:
    good = sa.make_url(postgres_server)
    for bad in (good.set(password="hunter2"), good.set(database="nowhere")):
        engine = create_engine_for(bad.render_as_string(hide_password=False))
        with pytest.raises(ServiceUnavailable, match=r"password authentication|does not exist") as found:
            check_schema(engine)
        assert "hunter2" not in str(found.value)
        assert str(good.password) not in str(found.value)
        engine.dispose()


@pytest.mark.integration
def test_up_from_empty(empty: Engine) -> None:
    with pytest.raises(SchemaMismatch, match=f"{head_revision()}.*none.*em db upgrade"):
        check_schema(empty)
    with pytest.raises(SchemaMismatch, match="em db upgrade"):
        Catalog(empty).published()
    upgrade(empty)
    check_schema(empty)
    upgrade(empty)
    assert current_revision(empty) == head_revision()
    assert Catalog(empty).published() == []


@pytest.mark.integration
def test_a_newer_database(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    for attempt in (check_schema, upgrade):
        with pytest.raises(SchemaMismatch, match=f"{head_revision()}.*9999.*update em-pipeline") as found:
            attempt(engine)
        assert "em db upgrade" not in str(found.value)


@pytest.mark.integration
def test_upgraders_at_once(empty_database_url: str) -> None:
    def one(_: int) -> None:
        engine = create_engine_for(empty_database_url)
        gate.wait()
        upgrade(engine)
        check_schema(engine)
        engine.dispose()

    gate = threading.Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(4)))


@pytest.mark.integration
def test_models_equal_migrations(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    inspector = sa.inspect(engine)
    for table in Base.metadata.sorted_tables:
        modelled = {c.name for c in table.constraints if isinstance(c, sa.CheckConstraint)}
        migrated = {check["name"] for check in inspector.get_check_constraints(table.name)}
        assert migrated == modelled
    enums = {enum["name"]: tuple(enum["labels"]) for enum in inspector.get_enums()}  # type: ignore[attr-defined]
    assert enums["dataset_status"] == tuple(status.value for status in Status)
    assert enums["block_state"] == BLOCK_STATES


@pytest.mark.integration
def test_going_down_is_refused(engine: Engine) -> None:
    config = engine_module._alembic()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        with pytest.raises(InputRefused, match="Go below"):
            command.downgrade(config, "-1")
    check_schema(engine)


PUBLISHED_IN_0001 = """
INSERT INTO datasets (dataset_id, source, status) VALUES ('files-a', 'files', 'processing');
INSERT INTO versions SELECT (jsonb_populate_record(NULL::versions, '{
    "dataset_id": "files-a", "version": "v1", "revision": "r", "spec": {}, "record": {}, "statistics": {},
    "shape_z": 1, "shape_y": 1, "shape_x": 1, "voxel_size_z": 1, "voxel_size_y": 1, "voxel_size_x": 1,
    "completeness": 0.5, "conflicts": 0, "raw_bytes": 1, "stored_bytes": 1, "ledger_sha256": "x",
    "volume_key": "v", "ledger_key": "l", "writer_version": "0", "report_passed": true,
    "created_at": "2026-01-01"}')).*;
INSERT INTO raw_files VALUES ('files-a', 'v1', 'a.tif', 'https://portal.test/a.tif', 1, 'x', NULL, NULL);
INSERT INTO validation_results VALUES ('files-a', 'v1', 0, 'c', true, 'blocking', '', '{}');
UPDATE versions SET published_at = now();
UPDATE datasets SET published_version = 'v1', status = 'complete';
"""


@pytest.mark.integration
def test_what_the_first_schema_published_stays_published(empty: Engine) -> None:
    config = engine_module._alembic()
    with empty.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql(PUBLISHED_IN_0001)
    with pytest.raises(SchemaMismatch, match="em db upgrade"):
        check_schema(empty)
    upgrade(empty)
    (summary,) = Catalog(empty).published()
    assert (summary.dataset_id, summary.version, summary.coverage) == ("files-a", "v1", 1.0)


@pytest.mark.integration
def test_a_server_that_does_not_give_pgvector(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(sa.text("DROP ROLE IF EXISTS modest"))
        connection.execute(sa.text("CREATE ROLE modest LOGIN PASSWORD 'hunter2'"))
        connection.execute(sa.text("GRANT ALL ON SCHEMA public TO modest"))
    modest = create_engine_for(
        empty.url.set(username="modest", password="hunter2").render_as_string(hide_password=False)
    )
    with pytest.raises(ServiceUnavailable, match="CREATE EXTENSION vector"):
        upgrade(modest)
    with empty.begin() as connection:
        connection.execute(sa.text("CREATE EXTENSION vector"))
    upgrade(modest)
    check_schema(modest)
    modest.dispose()
    with empty.begin() as connection:
        connection.execute(sa.text("DROP OWNED BY modest"))
        connection.execute(sa.text("DROP ROLE modest"))


@pytest.mark.integration
def test_a_lost_connection_is_renewed(engine: Engine) -> None:
    catalog = Catalog(engine)
    assert catalog.published() == []
    with sa.create_engine(engine.url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    assert catalog.published() == []


@pytest.mark.parametrize(
    "damage", ["DELETE FROM alembic_version", "DROP TABLE alembic_version"], ids=["emptied", "dropped"]
)
@pytest.mark.integration
def test_tables_without_their_revision(engine: Engine, damage: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(damage))
    for attempt in (current_revision, check_schema, upgrade):
        with pytest.raises(SchemaMismatch, match=f"datasets.*names no revision.*{head_revision()}"):
            attempt(engine)
