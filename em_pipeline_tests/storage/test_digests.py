"""Files that are hashed while they come, in whatever order."""

import hashlib
import os
import random
import threading
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


def test_who_is_still_catching_up_never_feeds_what_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(8 << 20))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    for _ in range(10):
        digest = RunningDigest(None)
        with path.open("rb") as file:
            late = threading.Thread(target=digest.catch_up, args=(file.fileno(), path.stat().st_size - 1000))
            late.start()
            found, _other = digest.finish(path, lambda _: None)
            late.join()
        assert found == expected
