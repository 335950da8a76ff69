"""`make demo`'s command, twice: the second run does no work again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from em_pipeline.demo.portals import DATASETS
from em_pipeline_tests.ingest.chain import hashes

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def demo(home: Path) -> str:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("EM_", "DAGSTER_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "em_pipeline.demo"],
        env={**inherited, "EM_HOME": str(home), "COLUMNS": "150"},
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


def test_the_demo_is_complete_and_repeatable(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)  # as root, the embedded server runs as another user, who has to pass
    first = demo(tmp_path / "home")
    for dataset in DATASETS:
        assert re.search(rf"{dataset.dataset_id} +complete", first), first
    assert "lists 5 datasets" in first
    assert "get_block('empiar-11759', 0, 0, 0)" in first
    volumes = hashes(tmp_path / "home" / "store" / "volumes")
    second = demo(tmp_path / "home")
    assert hashes(tmp_path / "home" / "store" / "volumes") == volumes
    assert bytes_sent(second) < bytes_sent(first) / 100
