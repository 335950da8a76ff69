"""What every test may ask for."""

import os
from pathlib import Path

import hypothesis
import pytest

from em_pipeline_tests.buckets import (  # noqa: F401 - fixtures, found by name
    gcs_blobs,
    gcs_service,
    s3_blobs,
    s3_credentials,
    s3_server,
)
from em_pipeline_tests.object_stores import (  # noqa: F401 - fixtures, found by name
    bucket,
    gcs_bucket,
    remote,
    s3_bucket,
)
from em_pipeline_tests.services import (  # noqa: F401 - fixtures, found by name
    _migrated,
    database_url,
    empty_database_url,
    postgres_server,
)
from em_pipeline_tests.workspaces import (  # noqa: F401 - fixtures, found by name
    environment,
    portal,
    portal_files,
    workspace,
)

# A busy machine is no failure: how long an example takes is never a test's verdict.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the settings they make, not those of the person who runs them."""
    for name in list(os.environ):
        if name.startswith("EM_") and name != "EM_SHARED_DATA":
            monkeypatch.delenv(name)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real EM files, or a skip that says how to get one."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EM_SHARED_DATA", default))
    if not (folder / "SOURCES.md").exists():
        pytest.skip(f"no real EM files at {folder}: set EM_SHARED_DATA to a folder that holds them")
    return folder
