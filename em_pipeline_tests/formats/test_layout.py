"""What a container's documents say, before a byte of its voxels is there."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from em_pipeline.domain.errors import InputRefused, NotFound, SourceUnavailable, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.arrays import ArrayLayout, choose_level
from em_pipeline.formats.multiscale import list_labels, read_multiscale
from em_pipeline.formats.sparing import Sparing
from em_pipeline_tests.formats.containers import fetch_of, zarray

ZYX = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
WHOLE = (564, 2520, 2596)


def scaled(*values: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(values)}


def moved(*values: float) -> dict[str, Any]:
    return {"type": "translation", "translation": list(values)}


def organelle() -> dict[str, Any]:
    """An image as OpenOrganelle stores it: nested, several levels, half-voxel translations."""
    levels = [
        {"path": "s0", "coordinateTransformations": [scaled(2.96, 4, 4), moved(0, 0, 0)]},
        {"path": "s1", "coordinateTransformations": [scaled(5.92, 8, 8), moved(1.48, 2, 2)]},
    ]
    image = {
        "version": "0.4",
        "axes": ZYX,
        "datasets": levels,
        "coordinateTransformations": [scaled(1, 1, 1)],
    }
    where = "recon-2/em/fibsem-int16"
    return {
        f"{where}/.zattrs": {"multiscales": [image]},
        f"{where}/s0/.zarray": zarray(WHOLE, (64, 64, 64), dtype="<i2"),
        f"{where}/s1/.zarray": zarray((282, 1260, 1298), (64, 64, 64), dtype="<i2"),
    }


def only(documents: dict[str, Any], path: str = "", **how: Any) -> ArrayLayout:
    (layout,) = read_multiscale(fetch_of(documents), path, **how)
    return layout


def test_levels_of_a_remote_image_with_half_voxel_translations() -> None:
    s0, s1 = read_multiscale(fetch_of(organelle()), "recon-2/em/fibsem-int16")
    assert (s0.name, s0.level, s0.path) == ("s0", 0, "recon-2/em/fibsem-int16/s0")
    assert (s0.shape, s0.chunk_shape, s0.dtype) == (WHOLE, (64, 64, 64), np.dtype("int16"))
    assert tuple(s0.voxel_size_nm) == (2.96, 4, 4)
    assert s0.translation_nm == (0, 0, 0)
    assert (s1.name, s1.shape) == ("s1", (282, 1260, 1298))
    assert tuple(s1.voxel_size_nm) == (5.92, 8, 8)
    assert s1.translation_nm == (1.48, 2, 2)


def test_every_document_that_was_read_is_named_so_that_a_mirror_describes_itself() -> None:
    documents = organelle()
    for layout in read_multiscale(fetch_of(documents), "recon-2/em/fibsem-int16"):
        assert set(layout.documents) == set(documents)
        mirrored = read_multiscale(layout.documents.get, "recon-2/em/fibsem-int16")
        assert mirrored[layout.level] == layout


def test_the_objects_of_a_region_are_named_without_listing_the_store() -> None:
    s0 = read_multiscale(fetch_of(organelle()), "recon-2/em/fibsem-int16")[0]
    box = BoundingBox.at((63, 2500, 64), (2, 20, 64))
    found = list(s0.objects(box))
    assert [key for key, _ in found] == [
        "recon-2/em/fibsem-int16/s0/0/39/1",
        "recon-2/em/fibsem-int16/s0/1/39/1",
    ]
    assert found[0][1] == BoundingBox.at((0, 2496, 64), (64, 24, 64))
    with pytest.raises(InputRefused, match="only"):
        next(s0.objects(BoundingBox.at((563, 0, 0), (2, 1, 1))))


def test_a_level_given_by_its_path_is_placed_by_the_image_above_it() -> None:
    layout = only(organelle(), "recon-2/em/fibsem-int16/s1")
    assert (layout.level, layout.name) == (1, "s1")
    assert tuple(layout.voxel_size_nm) == (5.92, 8, 8)


@pytest.mark.parametrize(
    ("level", "name"), [(None, "s0"), (1, "s1"), ("s1", "s1"), ("1", "s1"), ("/s1/", "s1")]
)
def test_a_level_is_chosen_by_number_or_name(level: int | str | None, name: str) -> None:
    assert choose_level(read_multiscale(fetch_of(organelle()), "recon-2/em/fibsem-int16"), level).name == name


def test_an_unknown_level_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"0 \(s0, 564×2520×2596\), 1 \(s1, 282×1260×1298\)"):
        choose_level(read_multiscale(fetch_of(organelle()), "recon-2/em/fibsem-int16"), "s2")


def test_levels_keep_their_numbers_where_one_is_listed_and_not_there() -> None:
    documents = organelle()
    del documents["recon-2/em/fibsem-int16/s0/.zarray"]
    layout = only(documents, "recon-2/em/fibsem-int16")
    assert (layout.level, layout.name) == (1, "s1")
    assert layout.metadata["notes"] == ["level s0 is listed and not there"]
    with pytest.raises(NotFound, match=r"the finest level: the image has the levels 1 \(s1"):
        choose_level([layout], None)
    assert choose_level([layout], 1) is layout
    alone = read_multiscale(fetch_of(documents), "recon-2/em/fibsem-int16/s1")
    assert choose_level(alone, None).name == "s1"
    del documents["recon-2/em/fibsem-int16/s1/.zarray"]
    with pytest.raises(NotFound, match="none of its levels s0, s1 is there"):
        read_multiscale(fetch_of(documents), "recon-2/em/fibsem-int16")


def test_an_outage_is_no_absence() -> None:
    def down(key: str) -> bytes | None:
        raise SourceUnavailable(f"Read {key}", "503", "Try again")

    with pytest.raises(SourceUnavailable):
        read_multiscale(down)


DEEP = b'{"a":' * 100_000


@pytest.mark.parametrize("data", [b"", b"<html>maintenance</html>", b"[1, 2]", b"{", DEEP])
def test_a_document_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match=r"zarr\.json"):
        read_multiscale(lambda key: data if key == "zarr.json" else None)


@pytest.mark.parametrize("key", [".zmetadata", "zarr.json"])
def test_metadata_without_a_floor_consolidates_nothing(key: str) -> None:
    documents = Sparing(lambda asked: DEEP if asked == key else None)
    documents.consolidate()
    documents.fetch("zarr.json")
    assert documents.images == ()


def ome(axes: Any, steps: Any, array: dict[str, Any], **more: Any) -> dict[str, Any]:
    datasets = [{"path": "0"} if steps is None else {"path": "0", "coordinateTransformations": steps}]
    image = {"datasets": datasets, **({} if axes is None else {"axes": axes}), **more}
    return {".zattrs": {"multiscales": [image]}, "0/.zarray": array}


@pytest.mark.parametrize(
    ("unit", "nanometres"),
    [
        ("nanometer", 1),
        ("micrometer", 1e3),
        ("millimeter", 1e6),
        ("meter", 1e9),
        ("angstrom", 0.1),
        ("pixel", None),
        (None, None),
    ],
)
def test_units_of_axes(unit: str | None, nanometres: float | None) -> None:
    axes = [{"name": axis, "type": "space"} | ({"unit": unit} if unit else {}) for axis in "zyx"]
    layout = only(ome(axes, [scaled(2, 3, 4), moved(1, 0, 0)], zarray((9, 9, 9), (3, 3, 3))))
    wanted = tuple(None if nanometres is None else pytest.approx(n * nanometres) for n in (2, 3, 4))
    assert tuple(layout.voxel_size_nm) == wanted
    assert layout.translation_nm == (nanometres or 0, 0, 0)


def test_transformations_of_a_level_and_of_the_whole_are_composed() -> None:
    common = [scaled(10, 10, 10), moved(5, 0, 0)]
    steps = [scaled(1, 2, 2), moved(0.5, 1, 1)]
    documents = ome(ZYX, steps, zarray((9, 9, 9), (3, 3, 3)), coordinateTransformations=common)
    layout = only(documents)
    assert tuple(layout.voxel_size_nm) == (10, 20, 20)
    assert layout.translation_nm == (10, 10, 10)


def test_an_axis_of_zero_scale_has_no_voxel_size() -> None:
    layout = only(ome(ZYX, [scaled(0, 2, 2)], zarray((9, 9, 9), (3, 3, 3))))
    assert tuple(layout.voxel_size_nm) == (None, 2, 2)


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_the_first_versions_have_five_axes_and_no_voxel_size(version: str) -> None:
    array = zarray((1, 1, 6, 7, 8), (1, 1, 4, 4, 4), dimension_separator=".")
    layout = only(ome(None, None, array, version=version))
    assert layout.shape == (6, 7, 8)
    assert layout.axes == ("t", "c", "z", "y", "x")
    assert tuple(layout.voxel_size_nm) == (None, None, None)
    assert [key for key, _ in layout.objects(BoundingBox.at((4, 0, 4), (1, 4, 1)))] == ["0/0.0.1.0.1"]


def test_version_0_3_names_its_axes_without_more() -> None:
    layout = only(ome(["c", "z", "y", "x"], None, zarray((1, 6, 7, 8), (1, 4, 4, 4)), version="0.3"))
    assert (layout.axes, layout.shape) == (("c", "z", "y", "x"), (6, 7, 8))


def test_an_image_without_z_is_one_plane() -> None:
    layout = only(ome(ZYX[1:], [scaled(3, 4)], zarray((7, 8), (4, 4))))
    assert (layout.shape, layout.chunk_shape) == ((1, 7, 8), (1, 4, 4))
    assert tuple(layout.voxel_size_nm) == (None, 3, 4)


def test_channels_are_not_guessed() -> None:
    axes = [{"name": "c", "type": "channel"}, *ZYX]
    documents = ome(axes, [scaled(1, 2, 3, 4)], zarray((3, 9, 9, 9), (2, 3, 3, 3)))
    with pytest.raises(UnsupportedFormat, match="axis c has 3 entries"):
        read_multiscale(fetch_of(documents))
    with pytest.raises(UnsupportedFormat, match="axis c has 3 entries"):
        read_multiscale(fetch_of(documents), at={"c": 3})
    layout = only(documents, at={"c": 2})
    assert [key for key, _ in layout.objects(BoundingBox.at((0, 0, 8), (1, 1, 1)))] == ["0/1/0/0/2"]
    assert layout.grid_index("1/0/0/2") == Shape(0, 0, 2)
    assert layout.grid_index("0/0/0/2") is None


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        (ome(ZYX, [scaled(1, 1, 1)], zarray((9, 9, 9), (3, 3, 3)), version="0.6"), "version is 0.6"),
        (ome(ZYX, [{"type": "affine", "affine": []}], zarray((9, 9, 9), (3, 3, 3))), "affine"),
        (ome(ZYX, [scaled(1, 1)], zarray((9, 9, 9), (3, 3, 3))), "makes no sense"),
        (ome(ZYX, [], zarray((9, 9), (3, 3))), "2 axes are"),
        (ome(ZYX, [], zarray((9, 9, 9), (3, 3, 3), dtype="<c8")), "complex64"),
        (ome(ZYX, [], zarray((9, 9, 9), (3, 3, 3), dtype="|O")), r"\|O"),
        (ome(ZYX, [], zarray((9, 9, 9), (3, 3, 3), dtype=[["r", "|u1"]])), "voxels are"),
        (ome(ZYX, [], zarray((9, 9, 0), (3, 3, 3))), "length 0"),
        ({".zattrs": {"multiscales": [{"datasets": [{"path": "../../etc"}]}]}}, "not a plain path"),
        ({".zarray": {"zarr_format": 2}}, "makes no sense"),
        ({"zarr.json": {"node_type": "array", "shape": [3]}}, "makes no sense"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused(documents: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedFormat, match=says):
        read_multiscale(fetch_of(documents))


def test_an_array_without_an_image_has_the_axes_its_writer_names() -> None:
    named = {".zarray": zarray((7, 8, 9), (3, 3, 3)), ".zattrs": {"_ARRAY_DIMENSIONS": ["x", "y", "z"]}}
    assert only(named).shape == (9, 8, 7)
    assert only({".zarray": zarray((7, 8, 9), (3, 3, 3))}).shape == (7, 8, 9)
    assert only({".zarray": zarray((1, 1, 7, 8, 9), (1, 1, 3, 3, 3))}).shape == (7, 8, 9)
    assert only({".zarray": zarray((7, 8, 9, 1), (3, 3, 3, 1))}).shape == (7, 8, 9)
    with pytest.raises(UnsupportedFormat, match="d0 has 2 entries"):
        only({".zarray": zarray((2, 7, 8, 9), (1, 3, 3, 3))})


def test_bool_and_half_precision_are_widened() -> None:
    assert only({".zarray": zarray((7, 8, 9), (3, 3, 3), dtype="|b1")}).dtype == np.uint8
    assert only({".zarray": zarray((7, 8, 9), (3, 3, 3), dtype=">f2")}).dtype == np.float32


def n5_array(*dimensions: int, **more: Any) -> dict[str, Any]:
    block = [4] * len(dimensions)
    return {
        "dimensions": dimensions,
        "blockSize": block,
        "dataType": "uint8",
        "compression": {"type": "raw"},
    } | more


def test_n5_is_turned_to_z_y_x() -> None:
    layout = only({"attributes.json": n5_array(10, 20, 30)})
    assert (layout.shape, layout.axes) == ((30, 20, 10), ("x", "y", "z"))
    assert [key for key, _ in layout.objects(BoundingBox.at((0, 4, 8), (1, 1, 1)))] == ["2/1/0"]
    assert only({"attributes.json": n5_array(10, 20, 30, 1)}).shape == (30, 20, 10)
    assert next(claim.value for claim in layout.claims if claim.field == "core.axes") == "zyx"


TRANSFORM = {"axes": ["z", "y", "x"], "scale": [5.24, 8, 4], "translate": [1, 2, 3], "units": ["nm"] * 3}
LISTED = {"path": "s0", "transform": TRANSFORM}
RESOLUTION = {"dimensions": [4.0, 8.0, 5.24], "unit": "nm"}


@pytest.mark.parametrize(
    ("group", "own", "size", "place"),
    [
        ({"multiscales": [{"datasets": [LISTED]}]}, {}, (5.24, 8, 4), (1, 2, 3)),
        (None, {"transform": TRANSFORM, "pixelResolution": [1, 1, 1]}, (5.24, 8, 4), (1, 2, 3)),
        (None, {"pixelResolution": RESOLUTION}, (5.24, 8, 4), (0, 0, 0)),
        (None, {"pixelResolution": RESOLUTION, "downsamplingFactors": [2, 2, 1]}, (5.24, 16, 8), (0, 4, 2)),
        ({"pixelResolution": RESOLUTION}, {"downsamplingFactors": [2, 2, 2]}, (10.48, 16, 8), (2.62, 4, 2)),
        ({"pixelResolution": RESOLUTION, "scales": [[1, 1, 1]]}, {}, (5.24, 8, 4), (0, 0, 0)),
        ({"resolution": [4, 8, 40], "unit": "nm", "offset": [1, 2, 3]}, {}, (40, 8, 4), (3, 2, 1)),
        ({"resolution": [4, 8, 40]}, {}, (None, None, None), (0, 0, 0)),
        (None, {}, (None, None, None), (0, 0, 0)),
    ],
)  # fmt: skip
def test_voxel_sizes_of_n5(
    group: dict[str, Any] | None, own: dict[str, Any], size: tuple[float, ...], place: tuple[float, ...]
) -> None:
    documents = {"em/s0/attributes.json": n5_array(10, 20, 30, **own)}
    if group is not None:
        documents["em/attributes.json"] = group
    layout = only(documents, "em")
    assert tuple(layout.voxel_size_nm) == size
    assert layout.translation_nm == pytest.approx(place)


def test_ome_metadata_in_n5_is_in_the_order_of_numpy() -> None:
    """As Fiji and Paintera export it: the lists run z, y, x, the stored dimensions x, y, z."""
    documents = {
        "attributes.json": ome(ZYX, [scaled(40, 8, 4), moved(1, 2, 3)], {})[".zattrs"],
        "0/attributes.json": n5_array(10, 20, 30),
    }
    layout = only(documents)
    assert (layout.axes, layout.shape) == (("x", "y", "z"), (30, 20, 10))
    assert tuple(layout.voxel_size_nm) == (40, 8, 4)
    assert layout.translation_nm == (1, 2, 3)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"isLabelMultiset": True}, "label multisets"),
        ({"dimensions": [2**63 - 1]}, "not an image"),
        ({"dataType": "string"}, "'string'"),
        ({"dataType": "object"}, "'object'"),
        ({"blockSize": [4]}, "blockSize"),
    ],
)
def test_n5_that_is_no_image_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedFormat, match=says):
        only({"attributes.json": n5_array(10, 20, 30, **more)})


def test_labels_are_those_the_image_lists() -> None:
    assert list_labels(fetch_of({"a/labels/.zattrs": {"labels": ["nuc", "mito/all"]}}), "a") == (
        "nuc",
        "mito/all",
    )
    v3 = {"labels/zarr.json": {"node_type": "group", "attributes": {"ome": {"labels": ["nuc"]}}}}
    assert list_labels(fetch_of(v3)) == ("nuc",)
    assert list_labels(fetch_of({})) == ()
    with pytest.raises(UnsupportedFormat, match="labels are"):
        list_labels(fetch_of({"labels/.zattrs": {"labels": "nuc"}}))
    with pytest.raises(UnsupportedFormat, match="not a plain path"):
        list_labels(fetch_of({"labels/.zattrs": {"labels": ["../../secret"]}}))


def test_evidence_names_the_document_and_the_field() -> None:
    layout = read_multiscale(fetch_of(organelle()), "recon-2/em/fibsem-int16")[1]
    claims = {claim.field: claim.evidence for claim in layout.claims}
    size = claims["core.voxel_size_nm.z"]
    assert (size.where, size.field) == (
        "recon-2/em/fibsem-int16/.zattrs",
        "multiscales[0].datasets[1].coordinateTransformations",
    )
    assert claims["core.volume_shape.z"].where == "recon-2/em/fibsem-int16/s1/.zarray"


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of every value in a JSON document."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, dict | list | tuple):
            yield from places(value, (*path, key))


def changed(documents: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(documents))
    holder: Any = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copy


SHARDED = {
    "zarr.json": {
        "zarr_format": 3, "node_type": "array", "shape": [9, 9, 9], "data_type": "uint8", "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 4, 4]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "sharding_indexed", "configuration": {
            "chunk_shape": [2, 2, 2],
            "codecs": [{"name": "bytes"}, {"name": "blosc", "configuration": {}}],
        }}],
        "dimension_names": ["z", "y", "x"],
    }
}  # fmt: skip
N5 = {
    "attributes.json": {"multiscales": [{"datasets": [LISTED]}]},
    "s0/attributes.json": n5_array(9, 9, 9),
}
OLD_N5 = {
    "attributes.json": {"pixelResolution": RESOLUTION, "scales": [[1, 1, 1]]},
    "s0/attributes.json": n5_array(9, 9, 9, downsamplingFactors=[2, 2, 2], offset=[1, 1, 1]),
}
COMPRESSED = zarray((9, 9, 9), (4, 4, 4), compressor={"id": "blosc"}, filters=[{"id": "delta"}])
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    1e400,
    math.nan,
    "x",
    "../..",
    [],
    {},
    [1],
    [None] * 3,
    ["z", "y", "x"],
)


@pytest.mark.parametrize(
    "documents", [ome(ZYX, [scaled(1, 2, 3), moved(1, 2, 3)], COMPRESSED), SHARDED, N5, OLD_N5]
)
def test_no_value_of_the_wrong_kind_does_worse_than_be_refused(documents: dict[str, Any]) -> None:
    """Each value of each document in turn is replaced: all is read as something that can be, or refused."""
    for path in places(documents):
        for wrong in WRONG:
            try:
                levels = read_multiscale(fetch_of(changed(documents, path, wrong)))
            except (UnsupportedFormat, NotFound):
                continue
            for layout in levels:
                assert next(layout.objects(BoundingBox.of_shape((1, 1, 1))))
                assert all(n > 0 for n in (*layout.shape, *layout.chunk_shape))
                assert all(map(math.isfinite, layout.translation_nm))
                json.dumps(layout.metadata, allow_nan=False)
