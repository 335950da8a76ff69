"""A block of a large file costs about its own bytes, counted by the operating system."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from mrcfile.dtypes import HEADER_DTYPE

from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.formats.open import open_volume

COUNTERS = Path("/proc/self/io")
SHAPE = (200, 4000, 5000)
BLOCK = 128**3

pytestmark = pytest.mark.skipif(not COUNTERS.exists(), reason="the system does not count the bytes read")


def bytes_read() -> int:
    """Bytes this process asked of `read`-like calls so far."""
    return int(COUNTERS.read_text().split("rchar: ")[1].split()[0])


def sparse_tiff(path: Path) -> Path:
    """4 GB of which nothing but the header is on disk: one directory per plane, planes behind each other."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(shape=SHAPE, dtype=np.uint8, photometric="minisblack", metadata=None, contiguous=True,
                     data=None)  # fmt: skip
    return path


def sparse_mrc(path: Path) -> Path:
    header = np.zeros((), HEADER_DTYPE)
    header["nz"], header["ny"], header["nx"] = SHAPE
    header["mode"], header["map"], header["ispg"] = 0, b"MAP ", 1
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.truncate(1024 + int(np.prod(SHAPE)))
    return path


@pytest.mark.parametrize(("name", "write"), [("a.tif", sparse_tiff), ("a.mrc", sparse_mrc)])
def test_a_block_reads_its_own_bytes(tmp_path: Path, name: str, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / name)
    before = bytes_read()
    volume: LazyVolume = open_volume([path])
    opening = bytes_read() - before
    assert volume.shape == SHAPE
    assert opening < 1 << 20
    before = bytes_read()
    block = volume.read(BoundingBox.at((64, 1000, 2000), (128, 128, 128)))
    assert block.shape == (128, 128, 128)
    assert BLOCK <= bytes_read() - before < 1.01 * BLOCK + 100_000
