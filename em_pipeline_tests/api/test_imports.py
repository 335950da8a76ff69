"""What importing a package brings with it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

HEAVY = ["numpy", "pandas", "sqlalchemy", "dagster", "zarr", "tensorstore", "pyarrow", "fastapi", "httpx"]
RECHUNK = Path(__file__).resolve().parents[2] / "benchmarks" / "rechunking" / "contenders" / "ours.py"
OTHERS = ["em_pipeline", "torch", "dask", "tensorstore", "sqlalchemy"]


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("em_pipeline.domain", HEAVY),
        ("em_client", OTHERS),
        ("em_pipeline.api.server", ["dagster", "torch"]),
        ("em_pipeline.ingest.build", ["distributed"]),
        ("em_pipeline.domain.raw_layout", ["pydantic"]),
    ],
)
def test_imports_stay_light(package: str, unwanted: list[str]) -> None:
    program = f"import sys, {package}; print([m for m in {unwanted!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_rechunk_starts_with_little_and_never_needs_pydantic(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 40, 50), np.uint8))
    arguments = [str(tmp_path / "a.tif"), str(tmp_path / "out"), "2", "600"]
    program = (
        "import runpy, sys; "
        f"main = runpy.run_path({str(RECHUNK)!r})['main']; started = set(sys.modules); "
        f"sys.argv[1:] = {arguments!r}; main(); "
        "print([m for m in ('pydantic', 'pyarrow', 'email', 'ssl', 'importlib.metadata') if m in started]); "
        "print([m for m in ('pydantic', 'pandas', 'pyarrow.compute', 'numpy.ma') if m in sys.modules]); "
        "print('pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "[]", "True", ""]
