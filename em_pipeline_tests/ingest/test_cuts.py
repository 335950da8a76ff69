"""Which voxels of a label image go with a box of the image, and where they then lie."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.cuts import Cut, image_cut, label_cut
from em_pipeline.storage.keys import label_folders
from em_pipeline_tests.volumes.arrays import ArrayVolume

VOXEL = 8.0


def volume(extent: int, voxel: float | None, first: float, dtype: str = "uint8") -> ArrayVolume:
    """The same along every axis; `first` is the centre of the first voxel, nm."""
    size = None if voxel is None else (voxel, voxel, voxel)
    array = np.zeros((extent, extent, extent), dtype)
    return ArrayVolume(array, voxel_size=size, translation_nm=(first, first, first))


def cut(extent: int, start: int, stop: int, *, first: float = 0.0, known: float = VOXEL) -> Cut:
    box = BoundingBox(start=Shape(start, start, start), stop=Shape(stop, stop, stop))
    spec = DatasetSpec(source="arrays", accession="a", bounding_box=box)
    return image_cut(spec, volume(extent, VOXEL, first), VoxelSize(z=known, y=known, x=known), "image")


def labels(image: Cut, label: ArrayVolume) -> Cut:
    return label_cut(image, "cells", "cells", label)


@given(
    box=st.tuples(st.integers(0, 20), st.integers(1, 20)),
    ratio=st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 4.0]),
    extent=st.integers(1, 40),
    shift=st.integers(-12, 12),
    first=st.sampled_from([0.0, 4.0, -100.0, 1234.5]),
)
def test_every_voxel_that_meets_the_box_and_no_other(
    box: tuple[int, int], ratio: float, extent: int, shift: int, first: float
) -> None:
    image = cut(40, box[0], box[0] + box[1], first=first)
    size = ratio * VOXEL
    # The label image's edge lies `shift` voxels of the image from the image's edge.
    edge = first - VOXEL / 2 + shift * VOXEL
    label = volume(extent, size, edge + size / 2)
    low, high = first + (box[0] - 0.5) * VOXEL, first + (sum(box) - 0.5) * VOXEL
    meeting = [i for i in range(extent) if edge + i * size < high and edge + (i + 1) * size > low]
    if not meeting:
        with pytest.raises(InputRefused, match="meets the box"):
            labels(image, label)
        return
    found = labels(image, label)
    assert (found.box.start.x, found.box.stop.x) == (meeting[0], meeting[-1] + 1)
    assert found.voxel_size == VoxelSize(z=size, y=size, x=size)
    assert found.translation_nm[2] == pytest.approx(edge + (meeting[0] + 0.5) * size)
    covered = edge <= low and edge + extent * size >= high
    assert found.whole == covered


@pytest.mark.parametrize("first", [0.0, 12.5])
def test_the_same_grid_is_cut_by_the_same_voxels(first: float) -> None:
    image = cut(40, 7, 19, first=first)
    found = labels(image, volume(40, VOXEL, first))
    assert (found.box, found.voxel_size, found.translation_nm, found.whole) == (
        image.box,
        image.voxel_size,
        image.translation_nm,
        True,
    )


def test_a_correction_of_the_image_holds_for_its_labels() -> None:
    image = cut(40, 10, 20, known=10.0)
    same, coarse = labels(image, volume(40, VOXEL, 0.0)), labels(image, volume(20, 2 * VOXEL, VOXEL / 2))
    assert (same.box, same.voxel_size, same.translation_nm) == (
        image.box,
        image.voxel_size,
        image.translation_nm,
    )
    assert tuple(coarse.voxel_size) == (20, 20, 20)
    assert coarse.translation_nm == (105.0, 105.0, 105.0)


def test_a_label_image_that_does_not_tell_its_voxel_size_is_the_images_grid_or_refused() -> None:
    image = cut(40, 7, 19)
    assert labels(image, volume(40, None, 0.0)).box == image.box
    with pytest.raises(InputRefused, match=r"nothing says its voxel size along z.* 39 voxels there, .* 40"):
        labels(image, volume(39, None, 0.0))


def test_rounded_sizes_and_translations_are_taken_for_what_they_mean() -> None:
    found = labels(cut(40, 6, 20), volume(40, 8.01, 0.0))
    assert (found.box.start.z, found.box.stop.z, found.voxel_size.z) == (6, 20, VOXEL)
    found = labels(cut(40, 6, 20), volume(20, 16.0, 4.0001))
    assert (found.box.start.z, found.box.stop.z, found.whole) == (3, 10, True)


@pytest.mark.parametrize("voxel", [12.0, 8.5, 3.0, 22.0])
def test_sizes_that_do_not_fit_are_refused(voxel: float) -> None:
    with pytest.raises(InputRefused, match=f"{voxel:g} nm along z, the image's 8 nm.*whole multiple"):
        labels(cut(40, 0, 10), volume(40, voxel, 0.0))


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_only_integers_are_ids(dtype: str) -> None:
    with pytest.raises(InputRefused, match="not integer ids"):
        labels(cut(40, 0, 10), volume(40, VOXEL, 0.0, dtype))


def test_a_box_of_which_the_source_holds_nothing_is_refused() -> None:
    empty = volume(40, VOXEL, 0.0)
    empty.missing = tuple(
        BoundingBox.at((10 * z, 10 * y, 10 * x), (10, 10, 10)) for z, y, x in product(range(2), repeat=3)
    )
    size = VoxelSize(z=VOXEL, y=VOXEL, x=VOXEL)

    def of(box: BoundingBox) -> Cut:
        return image_cut(DatasetSpec(source="arrays", accession="a", bounding_box=box), empty, size, "a")

    with pytest.raises(InputRefused, match="holds no voxel of it"):
        of(BoundingBox.at((3, 3, 3), (17, 17, 17)))
    missing = of(BoundingBox.at((3, 3, 3), (18, 17, 17))).missing
    assert missing is not None
    assert missing.voxels == 17**3


def test_names_become_folders() -> None:
    names = ["cell_seg", "labels/mito é", "A.b-c", "  x  "]
    assert list(label_folders(names).values()) == ["cell_seg", "labels-mito", "A.b-c", "x"]


@pytest.mark.parametrize("names", [["é"], [""], ["a..b"], ["zarr.json"], ["x" * 65], ["..", "."]])
def test_names_that_are_no_folders_are_refused(names: Any) -> None:
    with pytest.raises(InputRefused, match="Keep the label image"):
        label_folders(names)


@pytest.mark.parametrize("names", [("a/b", "a-b"), ("Cells", "cells")])
def test_two_names_for_one_folder_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(InputRefused, match="both would lie in labels/"):
        label_folders(names)
