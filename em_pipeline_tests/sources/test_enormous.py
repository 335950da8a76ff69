"""Volumes of a million voxels along each axis with a few chunks: nothing may count the places without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.files import RawFile
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import open_volume
from em_pipeline.ingest.cuts import box_of
from em_pipeline.ingest.inspection import inspect
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.files import FilesSource, spec_for
from em_pipeline.sources.region_size import MOST_BLOCKS, MOST_PLACES, check_extent
from em_pipeline.storage.local_files import path_of_file_url
from em_pipeline.storage.transport import HttpPolicy
from em_pipeline_tests.formats.helpers import ramp

SIDE = 10**6
CHUNKS = ((0, 0, 0), (0, 0, 1), (5, 7, 9), (15000, 3, 2))
VOXELS = ramp((64, 64, 64))
KINDS = ("zarr nested", "zarr flat", "zarr3", "n5", "precomputed", "sharded")
SHARDING = {
    "@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 3, "minishard_bits": 3,
    "shard_bits": 20, "minishard_index_encoding": "raw", "data_encoding": "raw",
}  # fmt: skip
SPECS: dict[str, dict[str, Any]] = {
    "zarr nested": {"driver": "zarr", "metadata": {"chunks": [64] * 3, "dimension_separator": "/"}},
    "zarr flat": {"driver": "zarr", "metadata": {"chunks": [64] * 3}},
    "zarr3": {
        "driver": "zarr3",
        "metadata": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64] * 3}}},
    },
    "n5": {"driver": "n5", "metadata": {"blockSize": [64] * 3}},
    "precomputed": {"driver": "neuroglancer_precomputed"},
    "sharded": {"driver": "neuroglancer_precomputed"},
}
# Each alone takes well under a second; what asks for every place of the grid takes days.
pytestmark = pytest.mark.timeout(60)


def enormous(kind: str, folder: Path) -> Path:
    """A volume of `SIDE`³ voxels of 8 nm, the chunks `CHUNKS` (z-y-x) of it all `VOXELS`."""
    spec = {**SPECS[kind], "kvstore": {"driver": "file", "path": f"{folder}/"}, "create": True}
    if spec["driver"] != "neuroglancer_precomputed":
        named = "dimensions" if kind == "n5" else "shape"
        typed = {"zarr": "dtype", "zarr3": "data_type", "n5": "dataType"}[spec["driver"]]
        dtype = "|u1" if typed == "dtype" else "uint8"
        compression = {"compression": {"type": "raw"}, "resolution": [8] * 3} if kind == "n5" else {}
        spec["metadata"] = {**spec["metadata"], named: [SIDE] * 3, typed: dtype, **compression}
    else:
        spec["multiscale_metadata"] = {"data_type": "uint8", "num_channels": 1, "type": "image"}
        spec["scale_metadata"] = {
            "size": [SIDE] * 3, "chunk_size": [64] * 3, "resolution": [8] * 3, "encoding": "raw",
            **({"sharding": SHARDING} if kind == "sharded" else {}),
        }  # fmt: skip
    store = tensorstore.open(spec).result()
    first_is_x = kind in ("n5", "precomputed", "sharded")
    store = store[..., 0] if "neuroglancer" in spec["driver"] else store
    for z, y, x in CHUNKS:
        place = tuple(slice(64 * i, 64 * i + 64) for i in ((x, y, z) if first_is_x else (z, y, x)))
        store[place] = VOXELS.T if first_is_x else VOXELS
    return folder


def files_of(path: Path, box: BoundingBox) -> tuple[DatasetSpec, list[HeldFile]]:
    spec = spec_for(path, name="huge").model_copy(update={"bounding_box": box})
    files = FilesSource().list_files(spec, FilesSource().fetch_record(spec))
    held = [
        HeldFile(RawFile(url=f.url, path=f.path, size=f.size or 0, sha256="0" * 64), path_of_file_url(f.url))
        for f in files
    ]
    return spec, held


def at(volume: Any, chunk: tuple[int, int, int]) -> NDArray[Any]:
    found: NDArray[Any] = volume.read(BoundingBox.at(Shape(*(64 * i for i in chunk)), (64, 64, 64)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_is_refused_at_once_and_says_what_to_do(kind: str, tmp_path: Path) -> None:
    spec = spec_for(enormous(kind, tmp_path / "volume"), name="huge")
    with pytest.raises(InputRefused, match=r"476,\d{3},\d{3},\d{3} blocks.*--roi.*--level"):
        FilesSource().fetch_record(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_box_what_is_there_is_listed(kind: str, tmp_path: Path) -> None:
    # A slab of 125,000 places, two of them with a chunk.
    box = BoundingBox.at((0, 0, 0), (64, 512, SIDE))
    spec, held = files_of(enormous(kind, tmp_path / "volume"), box)
    volume = FilesSource().open_volume(spec, held)
    names = [one.path.name for one in held if one.path.name not in (".zarray", "zarr.json", "info")]
    if kind == "sharded":
        assert len(names) == 1
    elif kind != "n5":
        assert len(names) == 2
    np.testing.assert_array_equal(at(volume, (0, 0, 1)), VOXELS)
    assert not at(volume, (0, 0, 2)).any()
    lacking = sum(box.shape.voxels for gap in volume.missing if (box := inside(gap, spec)) is not None)
    assert lacking == box_of(spec, volume).shape.voxels - 2 * 64**3


def inside(gap: BoundingBox, spec: DatasetSpec) -> BoundingBox | None:
    """The part of a gap in the spec's box, which begins at the first voxel."""
    assert spec.bounding_box is not None
    return gap.clipped(spec.bounding_box.stop)


@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_and_knows_what_it_lacks(kind: str, tmp_path: Path) -> None:
    folder = enormous(kind, tmp_path / "volume")
    with open_volume([folder]) as volume:
        assert volume.shape == (SIDE,) * 3
        for chunk in CHUNKS:
            np.testing.assert_array_equal(at(volume, chunk), VOXELS)
        assert sum(gap.shape.voxels for gap in volume.missing) == SIDE**3 - len(CHUNKS) * 64**3
    found = inspect(str(folder), HttpPolicy(), lambda _: None)
    assert found.images[0].shape == (SIDE,) * 3


def test_a_file_of_that_size_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", (SIDE,) * 3, "u1", chunks=(64,) * 3)[:64, :64, :64] = VOXELS
    with (
        open_volume([tmp_path / "a.h5"]) as volume,
        pytest.raises(InputRefused, match=r"blocks of 128³ voxels.*--roi"),
    ):
        box_of(spec_for(tmp_path / "a.h5", name="huge"), volume)


def test_what_is_large_and_can_be_written_is_taken() -> None:
    side = round(MOST_BLOCKS ** (1 / 3)) * 128
    check_extent("files-a", "it", Shape(side, side, side))
    with pytest.raises(InputRefused, match="blocks"):
        check_extent("files-a", "it", Shape(side, side, side + 1))
    row = Shape(1, 1, MOST_PLACES)
    check_extent("files-a", "it", row, Shape(1, 1, 1))
    with pytest.raises(InputRefused, match="chunks"):
        check_extent("files-a", "it", Shape(1, 1, MOST_PLACES + 1), Shape(1, 1, 1))
