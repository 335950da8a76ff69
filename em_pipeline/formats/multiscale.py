"""Images in containers, local or remote: the levels of one, and the label images beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from em_pipeline.domain.errors import NotFound
from em_pipeline.formats import n5
from em_pipeline.formats.arrays import (
    ArrayLayout,
    Calibration,
    Documents,
    Fetch,
    StoredArray,
    damaged,
    joined,
    lay_out,
    spatial_axes,
    understood,
)
from em_pipeline.formats.ngff import Multiscale, read_ngff
from em_pipeline.formats.zarr_arrays import read_zarr_array, zarr_attributes

Node = tuple[str, dict[str, Any]]


def read_multiscale(
    fetch: Fetch, path: str = "", *, at: Mapping[str, int] | None = None
) -> tuple[ArrayLayout, ...]:
    """The levels of the image at `path` of a container, finest first as listed.

    OME-Zarr 0.1–0.5, N5 multiscales, and single zarr or N5 arrays, which are one level. A single array that
    the group above lists as a level is given that level's number, voxel size and translation. Levels that
    are listed and not there are left out, and noted in the others' `metadata`. `at` picks an index along
    axes other than z, y, x that are longer than 1.
    Raises `NotFound` where there is no image at `path`, and `UnsupportedFormat` for images not read.
    """
    documents, path, at = Documents(fetch), joined(path), at or {}
    levels = _image(documents, path, at) or _level_of_parent(documents, path, at)
    if not levels:
        alone = read_zarr_array(documents, path) or n5.read_n5_array(documents, path)
        levels = [_alone(documents, alone, at)] if alone else []
    if not levels:
        raise NotFound(
            f"Read the image at {path or '/'!r}", "there is neither a multiscale image nor an array",
            "Name the path of an image inside the container",
        )  # fmt: skip
    return tuple(replace(layout, documents=documents.found) for layout in levels)


def list_labels(fetch: Fetch, path: str = "") -> tuple[str, ...]:
    """Names of the label images that the image at `path` lists in its `labels` group; they lie at
    `path`/labels/name. Empty where it lists none. Raises `UnsupportedFormat` for a damaged list."""
    documents, where = Documents(fetch), joined(path, "labels")
    found = zarr_attributes(documents, where)
    if found is None:
        return ()
    key, attributes = found
    with understood(key):
        names = attributes.get("ome", attributes).get("labels") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise damaged(key, f"its labels are {names!r}")
    return tuple(joined(name) for name in names)


def _image(documents: Documents, path: str, at: Mapping[str, int]) -> list[ArrayLayout]:
    """Levels of the multiscale image at `path`; none where there is no such image."""
    zarr = zarr_attributes(documents, path)
    ngff = read_ngff(*zarr) if zarr else None
    if ngff:
        return _levels(documents, path, ngff, at)
    if read_zarr_array(documents, path):
        return []
    group = n5.n5_attributes(documents, path)
    if group and "dimensions" in group[1]:
        return []
    if group and _is_ngff(group[1]):
        exported = read_ngff(*group)
        return _levels(documents, path, exported, at) if exported else []
    return _n5_levels(documents, path, group, at)


def _levels(documents: Documents, path: str, image: Multiscale, at: Mapping[str, int]) -> list[ArrayLayout]:
    """Levels of an OME-Zarr image, or of one whose writer put the same metadata into N5."""
    found, absent = [], []
    for number, (name, calibration) in enumerate(image.levels):
        where = joined(path, name)
        array = read_zarr_array(documents, where) or n5.read_n5_array(documents, where)
        if array is None:
            absent.append(name)
            continue
        axes = image.axes_of(len(array.shape))
        # The list of axes runs from the slowest, as in numpy; N5 stores the fastest first.
        axes = axes[::-1] if array.driver == "n5" else axes
        named = replace(array, file_format=_ome(image, array))
        layout = lay_out(named, number, name, axes, calibration, at, image.notes)
        found.append(replace(layout, metadata={**layout.metadata, **image.said_labels}))
    return _noted(path, found, absent)


def _n5_levels(
    documents: Documents, path: str, group: Node | None, at: Mapping[str, int]
) -> list[ArrayLayout]:
    """Levels that an N5 group lists, or that are called s0, s1 … as its viewers expect."""
    listed = n5.listed_levels(*group) if group else None
    found, absent = [], []
    for number in count():
        if listed is not None and number >= len(listed):
            break
        name, told = listed[number] if listed is not None else (f"s{number}", None)
        array = n5.read_n5_array(documents, joined(path, name))
        if array is None and listed is None:
            break
        if array is None:
            absent.append(name)
            continue
        # The list that all viewers of the portal use is believed before the level's own attributes.
        calibration = told or n5.calibration(array, group, number)
        found.append(lay_out(array, number, name, _plain_axes(array), calibration, at))
    return _noted(path, found, absent)


def _noted(path: str, found: Sequence[ArrayLayout], absent: Sequence[str]) -> list[ArrayLayout]:
    if absent and not found:
        raise NotFound(
            f"Read the image at {path or '/'!r}", f"none of its levels {', '.join(absent)} is there"
        )
    notes = [f"level {name} is listed and not there" for name in absent]
    return [
        replace(it, absent=tuple(absent), metadata={**it.metadata, "notes": [*it.metadata["notes"], *notes]})
        for it in found
    ]


def _level_of_parent(documents: Documents, path: str, at: Mapping[str, int]) -> list[ArrayLayout]:
    """The array at `path` as the level that the group above says it is."""
    parent, _, name = path.rpartition("/")
    if not name or not (read_zarr_array(documents, path) or n5.read_n5_array(documents, path)):
        return []
    return [replace(it, absent=()) for it in _image(documents, parent, at) if it.path == path]


def _alone(documents: Documents, array: StoredArray, at: Mapping[str, int]) -> ArrayLayout:
    calibration: Calibration | None = None
    if array.driver == "n5":
        calibration = n5.calibration(array, None, 0)
    elif array.driver == "zarr":
        found = zarr_attributes(documents, array.path)
        names = found[1].get("_ARRAY_DIMENSIONS") if found else None  # as xarray names them
        array = replace(array, axis_names=tuple(map(str, names)) if isinstance(names, list) else None)
    return lay_out(array, 0, array.path.rpartition("/")[2], _plain_axes(array), calibration, at)


def _plain_axes(array: StoredArray) -> tuple[str, ...]:
    """Axes of an array that no multiscale describes: its own names, or z, y, x from the slowest."""
    names = tuple(name.lower() for name in array.axis_names or ())
    if {"y", "x"} <= set(names):
        return names
    if array.driver == "n5":
        return spatial_axes(array.shape[::-1])[::-1]
    return spatial_axes(array.shape)


def _is_ngff(attributes: Mapping[str, Any]) -> bool:
    multiscales = attributes.get("multiscales")
    first = multiscales[0] if isinstance(multiscales, list) and multiscales else None
    return isinstance(first, dict) and "axes" in first


def _ome(image: Multiscale, array: StoredArray) -> str:
    return array.file_format if array.driver == "n5" else f"OME-Zarr {image.version}"
