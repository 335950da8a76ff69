"""What the database itself refuses, whoever speaks to it."""

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from em_pipeline.catalog.repository import Catalog
from em_pipeline_tests.catalog.examples import DATASET, version, with_labels

pytestmark = pytest.mark.integration


def run(engine: Engine, *statements: str) -> None:
    """All in one transaction."""
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


COPY_VERSION = """
INSERT INTO versions SELECT (jsonb_populate_record(v, '{changes}')).* FROM versions v WHERE version = 'v1'
"""


def add_version(name: str, passed: bool) -> str:
    """A copy of version v1 that is not published yet."""
    changes = f'{{"version": "{name}", "published_at": null, "report_passed": {str(passed).lower()}}}'
    return COPY_VERSION.replace(":", r"\:").replace("{changes}", changes.replace(":", r"\:"))


ADD_CHECK = """
INSERT INTO validation_results
VALUES ('files-cell', 'v2', {position}, 'c', {passed}, '{severity}', '', '{{}}')
"""
PUBLISH = "UPDATE versions SET published_at = now() WHERE version = 'v2'"
POINT = "UPDATE datasets SET published_version = 'v2'"


def add_check(passed: bool, position: int = 0, severity: str = "blocking") -> str:
    return ADD_CHECK.format(position=position, passed=passed, severity=severity)


@pytest.fixture
def published(catalog: Catalog) -> Engine:
    catalog.publish(with_labels(version(), cells="c" * 64))
    return catalog.engine


REFUSED = {
    "not passed": ([add_version("v2", False), add_check(True), PUBLISH], "published_has_passed"),
    "a check failed": (
        [add_version("v2", True), add_check(True), add_check(False, 1), PUBLISH],
        "did not pass",
    ),
    "no check": ([add_version("v2", True), PUBLISH], "did not pass"),
    "only warnings": ([add_version("v2", True), add_check(True, 0, "warning"), PUBLISH], "did not pass"),
    "published when inserted": (
        [add_version("v2", True).replace("null", '"2026-01-01"')],
        "before its checks",
    ),
    "pointer to an unpublished version": (
        [add_version("v2", True), add_check(True), POINT],
        "is not published",
    ),
    "pointer to nothing": ([POINT], "is not published"),
    "new dataset pointing somewhere": (
        [
            "INSERT INTO datasets (dataset_id, source, status, published_version) "
            "VALUES ('files-b', 'files', 'failed', 'v1')"
        ],
        "is not published",
    ),
    "complete without a version": (
        ["INSERT INTO datasets (dataset_id, source, status) VALUES ('files-b', 'files', 'complete')"],
        "complete_is_published",
    ),
    "unpublish": (["UPDATE versions SET published_at = NULL"], "does not change"),
    "change a version": (["UPDATE versions SET ledger_sha256 = 'x'"], "does not change"),
    "change a block": (["UPDATE blocks SET crc32c = 1 WHERE x = 0"], "blocks do not change"),
    "change a label image": (["UPDATE label_images SET ledger_sha256 = 'x'"], "images do not change"),
    "remove a check": (["DELETE FROM validation_results WHERE position = 0"], "results do not change"),
    "add a check": ([add_check(True, 7).replace("v2", "v1")], "results do not change"),
    "move a check in": (
        [
            add_version("v2", True),
            add_check(True, 7),
            "UPDATE validation_results SET version = 'v1' WHERE version = 'v2'",
        ],
        "results do not change",
    ),
    "drop the published version": (["DELETE FROM versions"], "fk_datasets_published_version"),
}


@pytest.mark.parametrize(("statements", "why"), REFUSED.values(), ids=REFUSED)
def test_refused(published: Engine, statements: list[str], why: str) -> None:
    with pytest.raises(DBAPIError, match=why):
        run(published, *statements)


def test_the_same_by_the_rules_is_allowed(published: Engine, catalog: Catalog) -> None:
    run(published, add_version("v2", True), add_check(True), PUBLISH, POINT)
    assert catalog.published()[0].version == "v2"


def test_deleting_a_dataset_takes_everything_along(published: Engine, catalog: Catalog) -> None:
    run(published, f"DELETE FROM datasets WHERE dataset_id = '{DATASET}'")
    with published.connect() as connection:
        for table in ("versions", "levels", "raw_files", "label_images", "blocks", "validation_results"):
            assert connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) == 0
    assert catalog.all_datasets() == []
