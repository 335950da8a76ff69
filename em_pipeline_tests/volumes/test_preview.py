import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from em_pipeline.domain.geometry import VoxelSize
from em_pipeline.volumes.preview import preview_png
from em_pipeline_tests.volumes.written import open_in, write


def preview(array: Any, folder: Path, **options: Any) -> Any:
    written = write(array, folder, **options)
    with open_in(folder) as reader:
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
    ],
    ids=["nan", "constant", "one voxel", "huge", "not finite"],
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
