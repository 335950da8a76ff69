"""What importing a package brings with it."""

import subprocess
import sys

import pytest

HEAVY = ["numpy", "pandas", "sqlalchemy", "dagster", "zarr", "tensorstore", "pyarrow", "fastapi", "httpx"]
OTHERS = ["em_pipeline", "torch", "dask", "tensorstore", "sqlalchemy"]


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("em_pipeline.domain", HEAVY),
        ("em_client", OTHERS),
        ("em_pipeline.api.server", ["dagster", "torch"]),
        ("em_pipeline.ingest.build", ["distributed"]),
    ],
)
def test_imports_stay_light(package: str, unwanted: list[str]) -> None:
    program = f"import sys, {package}; print([m for m in {unwanted!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
