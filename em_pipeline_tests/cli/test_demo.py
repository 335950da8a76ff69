"""`make demo`'s command, twice: the second run does no work again."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from em_pipeline.demo.portals import DATASETS
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline.storage.store import Store, open_store
from em_pipeline_tests.buckets import BUCKET

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def demo(home: Path, settings: dict[str, str]) -> str:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("EM_", "DAGSTER_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "em_pipeline.demo"],
        env={**inherited, **settings, "EM_HOME": str(home), "COLUMNS": "150"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def bytes_sent(output: str) -> int:
    found = re.search(r"The portals sent (\d+) bytes", output)
    assert found is not None
    return int(found[1])


def hashes(store: Store) -> dict[str, str]:
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in store.list("volumes")}


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_the_demo_is_complete_and_repeatable(
    tmp_path: Path, kind: str, s3_server: str, s3_credentials: dict[str, str]
) -> None:
    tmp_path.chmod(0o711)  # as root, the embedded server runs as another user, who has to pass
    home = tmp_path / "home"
    where = {"disk": (home / "store").as_uri(), "s3": f"s3://{BUCKET}/demo"}[kind]
    settings = {"EM_STORE_URL": where, "EM_STORE_ENDPOINT": s3_server}
    store = open_store(where, ObjectEndpoints(s3=s3_server))
    first = demo(home, settings)
    for dataset in DATASETS:
        assert re.search(rf"{dataset.dataset_id} +complete", first), first
    assert "lists 5 datasets" in first
    assert "get_block('empiar-11759', 0, 0, 0)" in first
    volumes = hashes(store)
    assert (home / "store").exists() == (kind == "disk")
    second = demo(home, settings)
    assert hashes(store) == volumes
    assert bytes_sent(second) < bytes_sent(first) / 100
