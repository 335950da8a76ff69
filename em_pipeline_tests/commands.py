"""Running the installed commands as a person would."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
TIMEOUT_S = 240.0


def run(
    environment: Mapping[str, str], *command: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `em …` or `dagster …` of this environment; output is captured."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        env=dict(environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def em(environment: Mapping[str, str], *arguments: str) -> Any:
    """The JSON document of a command that must succeed."""
    done = run(environment, "em", *arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def materialize_command(slug: str, dataset_id: str) -> list[str]:
    return [
        *("dagster", "asset", "materialize", "-m", "em_pipeline.definitions"),
        *("--select", f"group:{slug}", "--partition", dataset_id),
    ]
