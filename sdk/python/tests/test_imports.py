"""Importing the client costs nothing that the import does not need."""

import subprocess
import sys

HEAVY = ["numpy", "httpx", "em_pipeline", "torch", "dask", "tensorstore", "sqlalchemy", "dagster", "pydantic"]


def test_importing_the_client_is_light() -> None:
    program = f"import sys, em_client; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_using_it_needs_numpy_and_httpx_alone() -> None:
    program = f"""
import sys
from em_client import EMClient, ServerUnavailable
from em_client.models import little_endian
little_endian("uint16")
try:
    EMClient("http://127.0.0.1:9", retries=0).health()
except ServerUnavailable:
    pass
print([m for m in {HEAVY!r} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['numpy', 'httpx']"
