"""Connecting to the catalogue's database, and its schema's revision."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, ProgrammingError

from em_pipeline.domain.errors import InputRefused, SchemaMismatch, ServiceUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

CONNECT_TIMEOUT_S = 10
# Any constant of our own; upgraders of one database wait for each other on it.
UPGRADE_LOCK = 0x656D5F7570
# SQLSTATEs (PostgreSQL manual, appendix A): connections refused, lost, too many, or shut down.
UNREACHABLE = ("08", "53300", "57P")
UNDEFINED_TABLE = "42P01"
EXTENSION_MISSING = ("0A000", "58P01")
NOT_ALLOWED = "42501"


def create_engine_for(url: str) -> Engine:
    """An engine for `postgresql://…` or `postgresql+psycopg://…`, over psycopg 3; it connects when used.

    Raises `InputRefused` for anything else. No message ever holds the password.
    """
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise InputRefused("Read the database URL", "it is not a URL", _url_form()) from None
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise InputRefused(
            f"Use the database {parsed.render_as_string(hide_password=True)}",
            f"{parsed.drivername} is not PostgreSQL over psycopg",
            _url_form(),
        )
    return sa.create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "em-pipeline"},
    )


def _url_form() -> str:
    return "Write EM_DATABASE_URL as postgresql://<user>:<password>@<host>:<port>/<database>"


@contextmanager
def answering(engine: Engine) -> Iterator[None]:
    """Turn "the server does not answer" and "the tables are not there" into our own errors."""
    try:
        yield
    except (OperationalError, psycopg.OperationalError) as error:
        cause = _cause(error)
        state = getattr(cause, "sqlstate", None)
        if state and not state.startswith(UNREACHABLE):
            raise
        url = engine.url
        raise ServiceUnavailable(
            f"Reach PostgreSQL at {url.host or 'its local socket'}:{url.port or 5432}",
            _said(cause, url.password),
            "Start the server, or correct EM_DATABASE_URL",
        ) from None
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != UNDEFINED_TABLE:
            raise
        raise _mismatch(None) from error


def _cause(error: Exception) -> BaseException:
    """The driver's own error: COPY raises it bare, everything else inside SQLAlchemy's."""
    return (error.orig or error) if isinstance(error, DBAPIError) else error


def _said(error: BaseException, password: object) -> str:
    text = " ".join(str(error).split())
    return text.replace(str(password), "***") if password else text


def current_revision(engine: Engine) -> str | None:
    """The schema revision of the database, None for one without tables of ours.

    Raises `SchemaMismatch` where the tables are there and their revision is not.
    """
    with answering(engine), engine.connect() as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    from em_pipeline.catalog.models import Base

    revision: str | None = None
    if connection.scalar(sa.text("SELECT to_regclass('alembic_version')")) is not None:
        revision = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    if revision is None:
        ours = sorted(set(Base.metadata.tables) & set(sa.inspect(connection).get_table_names()))
        if ours:
            raise SchemaMismatch(
                f"Read the schema revision of the database {connection.engine.url.database}",
                f"it has the tables {', '.join(ours)}, but its table alembic_version names no revision",
                "Restore the database from a backup; or, where this em-pipeline made the tables, put the one "
                f"row {head_revision()!r} into alembic_version (version_num varchar(32))",
            )
    return revision


def head_revision() -> str:
    """The schema revision this code is written for."""
    from alembic.script import ScriptDirectory

    return str(ScriptDirectory.from_config(_alembic()).get_current_head())


def check_schema(engine: Engine) -> None:
    """Raise `SchemaMismatch` unless the database is at `head_revision`, `ServiceUnavailable` without one."""
    current = current_revision(engine)
    if current != head_revision():
        raise _mismatch(current)


def _mismatch(current: str | None) -> SchemaMismatch:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}
    return SchemaMismatch(
        f"Use the catalogue at schema revision {head_revision()}",
        f"the database is at {current or 'none: it has no tables yet'}",
        "Run `em db upgrade`"
        if current is None or current in known
        else "This em-pipeline does not know that revision, a newer one made it: update em-pipeline",
    )


def upgrade(engine: Engine) -> None:
    """Bring the schema to `head_revision`, in one transaction. Several at once are safe: they queue.

    Raises `ServiceUnavailable` where the server does not answer or cannot give us pgvector, and
    `SchemaMismatch` for a database that is newer than this code or does not tell its revision.
    """
    from alembic import command
    from alembic.util import CommandError

    config = _alembic()
    with answering(engine), engine.begin() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
        _revision(connection)
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise _mismatch(_revision(connection)) from error
        except DBAPIError as error:
            raise _without_pgvector(engine, error) or error from error


def _alembic() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _without_pgvector(engine: Engine, error: DBAPIError) -> ServiceUnavailable | None:
    state = getattr(error.orig, "sqlstate", None)
    if "CREATE EXTENSION" not in str(error.statement) or state not in (*EXTENSION_MISSING, NOT_ALLOWED):
        return None
    return ServiceUnavailable(
        f"Create the extension pgvector in the database {engine.url.database}",
        _said(_cause(error), engine.url.password),
        "Install pgvector on the server and, as its administrator, run `CREATE EXTENSION vector` there",
    )
