import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.volumes.preview import preview_png
from em_pipeline.volumes.rechunk import WrittenVolume
from em_pipeline_tests.volumes.test_absent import sparse, write_sparse
from em_pipeline_tests.volumes.written import open_in, path_of, write


def preview(array: Any, folder: Path, **options: Any) -> Any:
    return picture_of(write(array, folder, **options))


def picture_of(written: WrittenVolume) -> Any:
    with open_in(path_of(written).parent) as reader:
        png = preview_png(reader, written.statistics)
        assert png == preview_png(reader, written.statistics)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_slices_are_in_proportion_and_the_right_way_round(tmp_path: Path) -> None:
    # z 10 × 40 nm, y 20 × 10 nm, x 30 × 10 nm: 400 × 200 × 300 nm; bright where z, y and x are large.
    array = np.zeros((10, 20, 30), np.uint8)
    array[5:] += 60
    array[:, 10:] += 60
    array[..., 15:] += 60
    picture = preview(array, tmp_path, voxel_size=VoxelSize(z=40, y=10, x=10))
    scale = 900 / 700
    width, height, depth = round(300 * scale), round(200 * scale), round(400 * scale)
    xy = picture[16 : 16 + height, 16 : 16 + width, 0].astype(int)
    xz = picture[24 + height : 24 + height + depth, 16 : 16 + width, 0].astype(int)
    zy = picture[16 : 16 + height, 24 + width : 24 + width + depth, 0].astype(int)
    for panel in (xy, xz, zy):
        rows, columns = panel.shape
        quarter, three = (rows // 3, columns // 3), (rows * 2 // 3, columns * 2 // 3)
        assert panel[three] > panel[quarter[0], three[1]] >= panel[quarter]
        assert panel[three] > panel[three[0], quarter[1]] >= panel[quarter]


@pytest.mark.parametrize(
    "array",
    [
        np.full((5, 5, 5), np.nan, np.float32),
        np.full((5, 5, 5), 7, np.uint16),
        np.zeros((1, 1, 1), np.uint8),
        np.arange(125, dtype=np.float32).reshape(5, 5, 5) * 1e30,
        np.array([[[np.inf, 1.0, np.nan]]], np.float32),
        np.linspace(-1, 1, 125).reshape(5, 5, 5) * np.finfo(np.float64).max,
        np.where(np.arange(1331) == 665, 1, -1).reshape(11, 11, 11) * np.finfo(np.float64).max,
    ],
    ids=["nan", "constant", "one voxel", "huge", "not finite", "as huge as can be", "huge and its opposite"],
)
def test_odd_volumes_have_a_picture_too(tmp_path: Path, array: Any) -> None:
    assert preview(array, tmp_path).std() > 0


def test_labels_are_coloured_and_background_is_black(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 8), np.uint64)
    array[:, :, 4:], array[:, 4:, 4:] = 2**40 + 1, 2**40 + 2
    picture = preview(array, tmp_path, kind="labels")
    panel = picture[40:400, 60:420]
    colours = {
        tuple(int(v) for v in panel[row, column]) for row, column in ((100, 60), (100, 330), (330, 330))
    }
    assert (0, 0, 0) in colours
    assert len(colours) == 3


def test_contrast_follows_the_percentiles(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(1000, 1100, (20, 20, 20)).astype(np.uint16)
    picture = preview(array, tmp_path)
    panel = picture[60:400, 60:400, 0]
    assert panel.min() < 30
    assert panel.max() > 225


XY = (slice(60, 440), slice(60, 440))  # within the panel of a cube's xy slice, 446 pixels wide


def colourful(panel: Any) -> Any:
    return panel.max(axis=-1).astype(int) - panel.min(axis=-1) > 10


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_absent_voxels_are_hatched_and_take_no_part_in_the_contrast(tmp_path: Path, kind: Any) -> None:
    array = np.random.default_rng(0).integers(5000, 5100, (32, 32, 32)).astype(np.uint16)
    half = sparse(array, [BoundingBox.at((0, 0, 0), (32, 32, 16))])
    panel = picture_of(write_sparse(half, tmp_path, kind=kind))[XY]
    absent, held = panel[:, :150], panel[:, 200:]
    assert len(np.unique(absent.reshape(-1, 3), axis=0)) == 2
    assert colourful(absent).all()
    if kind == "image":
        assert not colourful(held).any()
        assert (held.min() < 30, held.max() > 225) == (True, True)


def test_slices_go_where_there_is_something_to_see(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(5000, 5100, (32, 32, 32)).astype(np.uint16)
    missing = [
        BoundingBox.at((0, 0, 0), (28, 32, 32)),
        BoundingBox(start=Shape(28, 0, 0), stop=Shape(32, 32, 4)),
    ]
    panel = picture_of(write_sparse(sparse(array, missing), tmp_path))[XY]
    assert not colourful(panel[:, 60:]).any()
    assert panel[:, 60:].std() > 30


def test_no_level_is_read_of_which_a_pixel_shows_several_voxels(tmp_path: Path) -> None:
    written = write(np.ones((2, 1600, 8), np.uint8), tmp_path)
    shutil.rmtree(path_of(written) / "0" / "c")
    assert picture_of(written).std() > 0
