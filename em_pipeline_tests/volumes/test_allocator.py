"""What was freed is kept for the work that wants it again, and given back after it."""

import json
import subprocess
import sys

import pytest

RUN = """
import json, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from em_pipeline.volumes.allocator import give_freed_memory_back, keep_freed_memory

def resident():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) << 10

def work(_):
    together.wait()
    buffers = [np.ones(1 << 20, np.uint8) for _ in range(12)]
    together.wait()

keep_freed_memory()
found = [resident()]
for _ in range(2):
    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    found.append(resident())
give_freed_memory_back()
print(json.dumps([*found, resident()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, and /proc/self/status of Linux")
def test_freed_memory_stays_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
    before, after, again, given_back = (n / (1 << 20) for n in json.loads(done.stdout))
    assert after > before + 40
    assert again < after + 8  # other threads took what the first ones freed
    assert given_back < before + 8
