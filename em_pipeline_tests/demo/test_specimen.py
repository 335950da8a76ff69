"""The generated specimen: deterministic, textured, and of the size asked for."""

import zlib

import numpy as np

from em_pipeline.demo.specimen import planes, specimen


def test_the_same_seed_gives_the_same_voxels() -> None:
    first, again, other = (specimen((4, 40, 50), seed=seed) for seed in (1, 1, 2))
    assert first.shape == (4, 40, 50)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_planes_are_those_of_the_volume() -> None:
    volume = specimen((3, 30, 20), seed=5)
    assert np.array_equal(np.stack(list(planes((3, 30, 20), seed=5))), volume)


def test_it_has_the_contrast_and_the_entropy_of_a_micrograph() -> None:
    volume = specimen((8, 256, 256))
    low, high = np.percentile(volume, (1, 99))
    assert 20 < low < 100 < high < 230
    # Like recorded sections, it shrinks by a fifth to a half: noise sets the limit.
    assert 1.2 < volume.size / len(zlib.compress(volume.tobytes(), 1)) < 2.0


def test_thick_sections_differ_more_than_thin_ones() -> None:
    def step(nm: float) -> float:
        volume = specimen((6, 128, 128), voxel_size_nm=(nm, 8.0, 8.0)).astype(float)
        smooth = volume.reshape(6, 16, 8, 16, 8).mean(axis=(2, 4))
        return float(np.abs(np.diff(smooth, axis=0)).mean())

    assert step(50.0) > 2 * step(5.0)
