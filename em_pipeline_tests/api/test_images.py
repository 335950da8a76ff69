"""Pictures of planes."""

import io

import numpy as np
import pytest
from PIL import Image

from em_pipeline.api.images import png_of_plane


def grey(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def test_contrast_is_the_volumes() -> None:
    plane = np.array([[0, 1000, 1500, 2000, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(
        grey(png_of_plane(plane, {"p01": 1000.0, "p99": 2000.0})), [[0, 0, 127, 255, 255]]
    )


@pytest.mark.parametrize("unit", [2.0**-664, 2.0**664, 2.0**1022])
def test_float64_beyond_float32_is_told_apart(unit: float) -> None:
    plane = np.array([[-2, -1, 0, 1, 2]]) * unit
    statistics = {"p01": -unit, "p99": unit}
    np.testing.assert_array_equal(grey(png_of_plane(plane, statistics)), [[0, 0, 127, 255, 255]])


def test_rows_are_y() -> None:
    assert grey(png_of_plane(np.zeros((2, 5), np.uint8), {"p01": 0, "p99": 9})).shape == (2, 5)


@pytest.mark.parametrize("statistics", [{}, {"p01": None, "p99": None}, {"p01": 7.0, "p99": 7.0}])
def test_without_percentiles_the_planes_own_range(statistics: dict[str, float | None]) -> None:
    plane = np.array([[-10, 0, 10]], dtype=np.int16)
    np.testing.assert_array_equal(grey(png_of_plane(plane, statistics)), [[0, 127, 255]])


def test_a_uniform_plane_and_nan_are_black() -> None:
    np.testing.assert_array_equal(grey(png_of_plane(np.full((1, 3), 7, np.uint8), {})), [[0, 0, 0]])
    plane = np.array([[np.nan, 0, 1]], dtype=np.float32)
    np.testing.assert_array_equal(grey(png_of_plane(plane, {})), [[0, 0, 255]])
