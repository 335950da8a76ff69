"""Generated volumes that look like electron micrographs of tissue and compress like them.

Smooth random fields make the anatomy: membranes run where two of them change sign, a mitochondrion with
cristae fills the places where a third is high, and a fine one is the grain of the cytoplasm. Noise lies on
top. All sizes are nanometres, so thick sections differ more from plane to plane, as real ones do.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

# Grey values: of the cytoplasm, and how much darker structures are; the noise's standard deviation.
CYTOPLASM, MEMBRANE, MITOCHONDRION, CRISTA, NOISE = 155.0, 80.0, 55.0, 35.0, 5.5
CELL_NM, NEURITE_NM, MITOCHONDRION_NM, GRAIN_NM = 1100.0, 480.0, 380.0, 65.0
# A mitochondrion is where its field is above this.
INSIDE = 1.2


def specimen(
    shape: tuple[int, int, int],
    *,
    seed: int = 0,
    voxel_size_nm: tuple[float, float, float] = (8.0, 8.0, 8.0),
) -> NDArray[np.uint8]:
    """A uint8 volume of `shape` (z-y-x voxels) with voxels of `voxel_size_nm` (z-y-x).

    The same arguments give the same voxels on the same machine.
    """
    volume = np.empty(shape, np.uint8)
    for z, plane in enumerate(planes(shape, seed=seed, voxel_size_nm=voxel_size_nm)):
        volume[z] = plane
    return volume


def planes(
    shape: tuple[int, int, int],
    *,
    seed: int = 0,
    voxel_size_nm: tuple[float, float, float] = (8.0, 8.0, 8.0),
) -> Iterator[NDArray[np.uint8]]:
    """The same volume, one (y, x) plane at a time; memory grows with a plane, not with the volume."""
    rng = np.random.default_rng(seed)
    cells, neurites, mitochondria, grain = (
        _SmoothField(rng, shape, voxel_size_nm, feature)
        for feature in (CELL_NM, NEURITE_NM, MITOCHONDRION_NM, GRAIN_NM)
    )
    for z in range(shape[0]):
        membranes = np.minimum(np.abs(cells.plane(z)), np.float32(0.5) * np.abs(neurites.plane(z)))
        yield _plane(membranes, mitochondria.plane(z), grain.plane(z), rng)


def mitochondria(
    shape: tuple[int, int, int],
    *,
    seed: int = 0,
    voxel_size_nm: tuple[float, float, float] = (8.0, 8.0, 8.0),
) -> NDArray[np.bool_]:
    """Where `specimen` of the same arguments has mitochondria: True in a z-y-x array of `shape`."""
    rng = np.random.default_rng(seed)
    *_, field = (
        _SmoothField(rng, shape, voxel_size_nm, feature)
        for feature in (CELL_NM, NEURITE_NM, MITOCHONDRION_NM)
    )
    return np.stack([field.plane(z) > INSIDE for z in range(shape[0])])


def _plane(
    membranes: Field, mitochondria: Field, grain: Field, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Grey values of one plane: dark membranes and organelles on a lighter, grainy cytoplasm."""
    f4 = np.float32
    grey = grain * f4(8)
    grey += f4(CYTOPLASM)
    inside = np.clip((mitochondria - f4(INSIDE)) * f4(14), 0, 1)
    cristae = np.abs(np.sin(mitochondria * f4(14) + grain * f4(0.7)))
    grey -= inside * (f4(MITOCHONDRION) - f4(CRISTA) * cristae)
    grey -= np.maximum(1 - membranes * f4(16), 0) * f4(MEMBRANE)
    grey += rng.standard_normal(grey.shape, dtype=np.float32) * f4(NOISE)
    clipped: NDArray[np.uint8] = np.clip(grey, 0, 255).astype(np.uint8)
    return clipped


class _SmoothField:
    """A random field of unit variance, smooth over `feature_nm`: a cubic B-spline over random knots."""

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int, int],
        voxel_size_nm: tuple[float, float, float],
        feature_nm: float,
    ) -> None:
        self._weights = [
            _spline_weights(np.arange(n) * (size / feature_nm))
            for n, size in zip(shape, voxel_size_nm, strict=True)
        ]
        knots = rng.standard_normal([weights.shape[1] for weights in self._weights], dtype=np.float32)
        # Along one axis the spline averages knots to 0.48 of their variance or so; three axes compound it.
        self._knots = knots * np.float32(0.48**-1.5)

    def plane(self, z: int) -> Field:
        weights_z, weights_y, weights_x = self._weights
        knots = np.tensordot(weights_z[z], self._knots, axes=1)
        plane: Field = weights_y @ knots @ weights_x.T
        return plane


def _spline_weights(at: NDArray[np.floating[Any]]) -> Field:
    """(points, knots) weights of a uniform cubic B-spline at `at`, in knot spacings from the first point."""
    first = np.floor(at).astype(int)
    t = at - first
    basis = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1)
    weights = np.zeros((len(at), first[-1] + 4), np.float32)
    np.put_along_axis(weights, first[:, None] + np.arange(4), (basis / 6).astype(np.float32), axis=1)
    return weights
