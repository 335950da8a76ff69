"""Files that are hashed while they come, in whatever order."""

import hashlib
import os
import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.storage.digests import RunningDigest

PART = 1000
DATA = random.Random(5).randbytes(12 * PART)


@given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=4))
def test_parts_in_any_order_and_some_twice_make_the_same_digest(order: list[int], again: list[int]) -> None:
    path = Path(f"/proc/self/fd/{(descriptor := os.memfd_create('parts'))}")
    try:
        digest, held, late = RunningDigest("md5"), set[int](), 0

        def read(count: int) -> None:
            nonlocal late
            late += count

        for part in order:
            data = DATA[part * PART : (part + 1) * PART]
            for _ in range(2 if part in again else 1):  # what breaks off is written again
                os.pwrite(descriptor, data, part * PART)
                digest.update(part * PART, data)
            held.add(part)
            front = next((n for n in range(12) if n not in held), 12)
            digest.catch_up(descriptor, front * PART)
        assert digest.finish(path, read) == (hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest())
        assert late == 0
    finally:
        os.close(descriptor)
