"""Voxels as a picture, to look at."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png_of_plane(plane: NDArray[Any], statistics: Mapping[str, Any]) -> bytes:
    """An 8-bit grey PNG of `plane` (y, x), black at the volume's 1st and white at its 99th percentile.

    One contrast for the whole volume keeps pictures of different blocks comparable. Where the statistics
    have no percentiles or they coincide, the plane's own range is used. NaN is black.
    """
    low, high = statistics.get("p01"), statistics.get("p99")
    # A quarter of everything, for the differences of float64 to fit one.
    values = np.nan_to_num(plane.astype(np.float64 if plane.dtype == np.float64 else np.float32)) / 4
    if low is None or high is None or low >= high:
        low, high = float(values.min()), float(values.max())
    else:
        low, high = low / 4, high / 4
    scale = 255.0 / (high - low) if high > low else 0.0
    with np.errstate(over="ignore"):  # far beyond the percentiles is black or white
        grey = np.clip((values - low) * scale, 0, 255).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(grey).save(target, "PNG")
    return target.getvalue()
