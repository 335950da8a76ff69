"""What a whole `em ingest` takes of memory: the rechunk, but also what comes before and after it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from em_pipeline_tests.commands import TIMEOUT_S

MIB = 1 << 20
# Not ru_maxrss, which a process inherits from the one that started it.
RUN = """
import sys
from pathlib import Path
from em_pipeline.cli import main
try:
    main()
finally:
    print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
@pytest.mark.parametrize(
    ("dtype", "shape", "budget"),
    [("uint8", (128, 512, 512), 256), ("float32", (128, 256, 512), 332)],
)
def test_an_ingest_takes_no_more_than_the_budget(
    environment: dict[str, str], tmp_path: Path, dtype: str, shape: tuple[int, int, int], budget: int
) -> None:
    path = tmp_path / "volume.tif"
    voxels = np.random.default_rng(0).normal(100, 20, shape).astype(dtype)
    tifffile.imwrite(path, voxels, photometric="minisblack", metadata=None)
    done = subprocess.run(
        [sys.executable, "-c", RUN, "ingest", str(path), "--voxel-size", "8,8,8", "--name", "peak"],
        env={**environment, "EM_MEMORY_BUDGET": f"{budget}MiB", "EM_THREADS": "16"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) << 10 <= budget * MIB
