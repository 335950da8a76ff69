"""Small volumes, boxes for hypothesis, and what every volume must keep to."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from em_pipeline.domain.evidence import Origin
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.record import DatasetRecord


def ramp(shape: tuple[int, ...], dtype: Any = np.uint8) -> NDArray[Any]:
    """Every voxel differs from its neighbours along each axis; never zero, so that zeros are noticed."""
    values = np.arange(int(np.prod(shape))).reshape(shape) * 7
    return (values % 120 + 1).astype(dtype)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, int, int]) -> BoundingBox:
    start = [draw(st.integers(0, n - 1)) for n in shape]
    size = [draw(st.integers(1, n - a)) for n, a in zip(shape, start, strict=True)]
    return BoundingBox.at((start[0], start[1], start[2]), (size[0], size[1], size[2]))


shapes = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))


def check_volume(volume: LazyVolume, expected: NDArray[Any]) -> None:
    """Whole and in parts, into given arrays and from threads, a volume equals `expected` (z-y-x)."""
    assert isinstance(volume, LazyVolume)
    whole = BoundingBox.of_shape(volume.shape)
    voxels = volume.read(whole)
    assert voxels.dtype == volume.dtype == expected.dtype
    assert voxels.dtype.isnative
    assert voxels.flags.c_contiguous
    np.testing.assert_array_equal(voxels, expected)
    tiles = list(whole.tiles((2, max(1, volume.shape.y // 2 + 1), max(1, volume.shape.x // 3 + 1))))
    slab = np.zeros(volume.shape, volume.dtype)
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda box: volume.read(box, slab[box.slices]), tiles):
            pass
    np.testing.assert_array_equal(slab, expected)
    json.dumps(volume.metadata, allow_nan=False)
    check_claims(volume)


def check_claims(volume: LazyVolume) -> None:
    """Claims resolve to a record, come from files, and name no path of this machine."""
    record = DatasetRecord.resolve("files-test", "r", volume.claims)
    assert tuple(record.fields.core.volume_shape.__dict__.values()) == tuple(volume.shape)
    assert record.fields.core.data_type == volume.dtype.name
    for axis in "zyx":
        assert getattr(record.fields.core.voxel_size_nm, axis) == getattr(volume.voxel_size_nm, axis)
        said = getattr(record.fields.technical.chunk_size, axis)
        assert min(said, getattr(volume.shape, axis)) == getattr(volume.chunk_shape, axis)
    for claim in volume.claims:
        assert claim.evidence.origin is Origin.FILE
        # A file's name, or a document's key inside its container.
        assert not Path(claim.evidence.where).is_absolute()
        assert claim.evidence.extractor.startswith("formats.")
        json.dumps(claim.evidence.raw, allow_nan=False)


def values(volume: LazyVolume) -> dict[str, Any]:
    """Kept value of every field that the volume's claims give."""
    return DatasetRecord.resolve("files-test", "r", volume.claims).values()


def cut(path: Path, count: int) -> Path:
    """Cut `count` bytes off the end of a file."""
    data = path.read_bytes()
    path.write_bytes(data[:-count])
    return path


def calls(work: Callable[[], object]) -> int:
    """Functions called, of Python and of C: what the time goes to, the same on every machine."""
    count = 0

    def called(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count
