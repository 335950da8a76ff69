"""One writer per dataset."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from em_pipeline.domain.errors import Busy, InputRefused
from em_pipeline.storage.lock import dataset_lock
from em_pipeline.storage.store import LocalStore

HOLDER = """
import sys, time
from pathlib import Path
from em_pipeline.storage.lock import dataset_lock
from em_pipeline.storage.store import LocalStore
with dataset_lock(LocalStore(Path(sys.argv[1])), "files-a"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_dataset_is_busy_and_others_are_free(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with (
        dataset_lock(store, "files-a"),
        dataset_lock(store, "files-b"),
        pytest.raises(Busy, match=f"process {os.getpid()} on "),
        dataset_lock(store, "files-a"),
    ):
        pytest.fail("held twice")
    with dataset_lock(store, "files-a"):
        pass
    with pytest.raises(InputRefused), dataset_lock(store, "../x"):
        pytest.fail("left the store")


@pytest.mark.integration
def test_a_killed_holder_frees_the_dataset(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(Busy, match=f"process {holder.pid} on "), dataset_lock(store, "files-a"):
            pytest.fail("held twice")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with dataset_lock(store, "files-a"):
            pass
