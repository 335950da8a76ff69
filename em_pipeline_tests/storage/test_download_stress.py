"""Connections that share a file, each failing at random: always the same bytes, and not many more of them."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from em_pipeline.domain.files import RemoteFile
from em_pipeline_tests.portals.faulty import Fault, faulty_server
from em_pipeline_tests.storage.downloads import PATIENT, Watcher, hold, leftovers

PART = 4096
DATA = random.Random(12).randbytes(150 * PART + 17)
FAULTS = [
    Fault(stall_after=0),
    Fault(stall_after=3 * PART + 11),
    Fault(reset_after=5 * PART),
    Fault(drop=PART + 1),
    Fault(status=503),
    Fault(delay_s=0.002),
    Fault(chunked=True),
    Fault(headers={"Content-Range": "bytes 1-2/3"}),
]


@pytest.mark.parametrize("seed", range(8))
def test_shares_and_faults_in_any_order_make_the_file(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    policy = replace(
        PATIENT,
        connections=dice.choice([1, 3, 8]),
        read_timeout_s=0.3,
        retries=20,
        part_size=PART,
        request_size=dice.choice([PART, 10 * PART, 1 << 30]),
    )
    with faulty_server({"/a": DATA}) as server:
        server.faults = [dice.choice([None, None, None, *FAULTS]) for _ in range(60)]
        watcher = Watcher()
        file = RemoteFile(url=f"{server.url}/a", path="a", size=len(DATA))
        manifest = hold([file], tmp_path, policy=policy, watcher=watcher)
        assert (tmp_path / "a").read_bytes() == DATA
        assert manifest.files[0].sha256 == hashlib.sha256(DATA).hexdigest()
        assert watcher.done == len(DATA)
        assert not leftovers(tmp_path)
