"""HDF5: one dataset of a file as a volume, and what its writer says of voxel sizes.

Conventions: `resolution` and `offset` in nm, z-y-x (CREMI, https://cremi.org/data); `element_size_um`, z-y-x
(ilastik's and the Fiji HDF5 plugin's); dimension scales with units (SVI HDF5, as Odemis writes it); Imaris
(https://imaris.oxinst.com/support/imaris-file-format).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import Shape
from em_pipeline.formats.arrays import SPATIAL, WIDENED, spatial_axes
from em_pipeline.formats.base import ClaimSheet, FileVolume, check_chunk, jsonable
from em_pipeline.formats.gaps import LazyBoxes
from em_pipeline.formats.hdf5_chunks import Hdf5Voxels, never_written, opened_hdf5
from em_pipeline.formats.units import length_nm, place_nm

EXTRACTOR = "formats.hdf5"
IMARIS_FINEST = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data"
IMARIS_SECOND = ("DataSet/ResolutionLevel 0/TimePoint 1", "DataSet/ResolutionLevel 0/TimePoint 0/Channel 1")
# SVI's code for values that nobody set or measured (2 of 5 states): http://www.svi.nl/HDF5.
SVI_UNKNOWN = (111, 112)
# Names that h5py.Dataset.compression does not give.
UNNAMED_FILTER = "other"
MOST_LISTED = 20


def open_hdf5(path: Path, dataset: str | None = None) -> FileVolume:
    """The dataset called `dataset` (its path in the file), or the only image in the file, as z-y-x.

    An image is a 3-D dataset of real numbers; if there is none, a 2-D one. Axes of length 1 besides z, y, x
    are dropped. bool is read as uint8, float16 as float32. `missing` are chunks that were never written.
    Raises `InputRefused` where there are several, naming them; `NotFound` for a dataset that is not there;
    `UnsupportedFormat` for files without an image, for voxels kept in other files, and damaged files.
    """
    with opened_hdf5(path) as file:
        return hdf5_volume(path, file, _chosen(path, file, dataset))


def hdf5_volume(path: Path, file: Any, name: str) -> FileVolume:
    """The dataset `name` of an open `h5py.File`; its voxels are read from `path`. Raises like `open_hdf5`."""
    stored = file[name]
    _refuse_foreign(path, name, stored)
    axes = _axes(path, name, stored)
    lengths = dict(zip(axes, _used(file, name, stored), strict=True))
    shape = Shape(*(lengths.get(axis, 1) for axis in SPATIAL))
    chunks = dict(zip(axes, stored.chunks or _plane(axes, stored.shape), strict=True))
    if stored.chunks:
        check_chunk(f"Read {name!r} of {path.name}", stored.chunks, stored.dtype)
    chunk = Shape(*(min(chunks.get(axis, 1), getattr(shape, axis)) for axis in SPATIAL))
    native = stored.dtype.newbyteorder("=")
    dtype = WIDENED.get(native, native)
    sheet = ClaimSheet(path, EXTRACTOR)
    sheet.layout(shape, dtype, chunk, "HDF5", _compression(stored), name)
    sheet.axes(axes, name, list(axes), channels=lengths.get("c", 1))
    offset = _calibrate(file, name, stored, axes, shape, sheet)
    metadata = _metadata(name, stored, axes)
    piece = math.prod(stored.chunks or stored.shape[-2:]) * stored.dtype.itemsize
    voxels = Hdf5Voxels(path, name, axes, piece)
    missing = LazyBoxes(partial(never_written, path, name, tuple(axes), shape))
    return FileVolume(shape, dtype, chunk, voxels, tuple(sheet.claims), metadata, offset, missing)


def _chosen(path: Path, file: Any, wanted: str | None) -> str:
    import h5py

    found = dict(numeric_datasets(file))
    if wanted is not None:
        name = wanted.strip("/")
        if _is_inside(file, name) and isinstance(file[name], h5py.Dataset):
            return name
        raise NotFound(f"Read {wanted!r} of {path.name}", "there is no such dataset", _offer(found))
    refuse_velox(path, file, found)
    if unnameable := unnameable_images(file):
        listed = ", ".join(unnameable[:MOST_LISTED])
        raise UnsupportedFormat(
            f"Read {path.name}",
            f"it holds images whose names are not UTF-8 (as Latin-1: {listed})",
            _offer(found) or "Rename them, as with h5py: file.move(name_in_bytes, new_name)",
        )
    if IMARIS_FINEST in found and not any(second in file for second in IMARIS_SECOND):
        return IMARIS_FINEST
    for axes in (3, 2):
        images = {name: shape for name, shape in found.items() if _spatial(shape) == axes}
        if len(images) == 1:
            return next(iter(images))
        if images:
            raise InputRefused(
                f"Read {path.name}", f"it holds {len(images)} images, and one makes a volume", _offer(images)
            )
    raise UnsupportedFormat(f"Read {path.name}", "it holds no 3-D or 2-D dataset of numbers", _offer(found))


def refuse_velox(path: Path, file: Any, names: Iterable[str]) -> None:
    """Raise `UnsupportedFormat` for Velox EMD files, which keep frames as the last axis."""
    if "Data/Image" in file and any(name.endswith("/FrameLookupTable") for name in names):
        raise UnsupportedFormat(
            f"Read {path.name}",
            "it is a Velox EMD (HDF5) file, which is not read",
            "Export it as TIFF or MRC",
        )


def _is_inside(file: Any, name: str) -> bool:
    """Whether `name` is reached without a link, which could lead into any file of this machine."""
    import h5py

    parts = name.split("/")
    steps = ["/".join(parts[: number + 1]) for number in range(len(parts))]
    return all(step and isinstance(file.get(step, getlink=True), h5py.HardLink) for step in steps)


def _offer(found: Mapping[str, Sequence[int]]) -> str:
    named = [f"{name} ({'×'.join(map(str, shape))})" for name, shape in found.items() if _spatial(shape)]
    return f"Choose with --image-set: {', '.join(named[:MOST_LISTED])}" if named else ""


def numeric_datasets(file: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name, where it is UTF-8, and shape of every dataset of real numbers that lies in this file itself."""
    return ((name, shape) for name, shape in _numeric(file) if isinstance(name, str))


def unnameable_images(file: Any) -> tuple[str, ...]:
    """What cannot be asked for by name: images whose names are not UTF-8, as Latin-1 has them."""
    found = ((name, shape) for name, shape in _numeric(file) if isinstance(name, bytes))
    return tuple(name.decode("latin-1") for name, shape in found if _spatial(shape))


def _numeric(file: Any) -> Iterator[tuple[str | bytes, tuple[int, ...]]]:
    """Names that are not UTF-8 are bytes to h5py."""
    import h5py

    names: list[str | bytes] = []
    file.visit(names.append)
    for name in names:
        entry = file[name]
        if isinstance(entry, h5py.Dataset) and entry.size and entry.shape and entry.dtype.kind in "buif":
            yield name, entry.shape


def _spatial(shape: Sequence[int]) -> int:
    """How many axes an image of that shape has: tables and lists are no images, however many entries."""
    sides = [length for length in shape if length > 1]
    return len(sides) if len(sides) == 3 or (len(sides) == 2 and min(sides) > 4) else 0


def _refuse_foreign(path: Path, name: str, stored: Any) -> None:
    """Voxels in other files may lie anywhere, and HDF5 reads zeros where those files are missing."""
    if stored.is_virtual or stored.external:
        raise UnsupportedFormat(
            f"Read {name!r} of {path.name}",
            "its voxels lie in other files (virtual or external storage)",
            "Copy it into one file with h5repack",
        )
    if stored.dtype.kind not in "buif" or not stored.shape or 0 in stored.shape:
        raise UnsupportedFormat(
            f"Read {name!r} of {path.name}", f"it holds {stored.dtype} of shape {stored.shape}",
            "Datasets of real numbers are read",
        )  # fmt: skip


def _axes(path: Path, name: str, stored: Any) -> tuple[str, ...]:
    """Names of the stored axes: their labels where these make sense, else z, y, x from the slowest."""
    labels = [str(dim.label).lower() for dim in stored.dims]
    named = len(set(labels)) == len(labels) and {"y", "x"} <= set(labels)
    axes = tuple(labels) if named else spatial_axes(stored.shape)
    more = {axis: n for axis, n in zip(axes, stored.shape, strict=True) if axis not in SPATIAL and n > 1}
    if more or not {"y", "x"} <= set(axes):
        raise UnsupportedFormat(
            f"Read {name!r} of {path.name}", f"its axes are {list(axes)} of lengths {list(stored.shape)}",
            "Images with the axes (z,) y, x are read: export one entry along each other axis",
        )  # fmt: skip
    return axes


def _used(file: Any, name: str, stored: Any) -> tuple[int, ...]:
    """Lengths of the axes; Imaris pads its arrays to whole chunks and says so on the channel."""
    attributes = file[name].parent.attrs
    if not name.startswith("DataSet/ResolutionLevel ") or "ImageSizeZ" not in attributes:
        return tuple(stored.shape)
    sizes = (int(_text(attributes[f"ImageSize{axis}"])) for axis in "ZYX")
    return tuple(min(a, b) for a, b in zip(sizes, stored.shape, strict=True))


def _plane(axes: Sequence[str], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n if axis in ("y", "x") else 1 for axis, n in zip(axes, shape, strict=True))


def _compression(stored: Any) -> str:
    filters = stored.id.get_create_plist().get_nfilters()
    return str(stored.compression) if stored.compression else (UNNAMED_FILTER if filters else "none")


def _calibrate(
    file: Any, name: str, stored: Any, axes: Sequence[str], shape: Shape, sheet: ClaimSheet
) -> tuple[float, float, float]:
    """Claim the voxel size that the first convention found gives; return the first voxel's position, nm."""
    for found in (_attributes(name, stored), _imaris(file, name, shape), _scales(stored, axes)):
        if found:
            for axis, (value, tag, raw, unit) in found.sizes.items():
                sheet.voxel_size(axis, value, tag, raw, unit)
            return found.offset
    return (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Sizes:
    """Voxel size in nm by axis with its tag, what was written, its unit; the first voxel's place, z-y-x."""

    sizes: Mapping[str, tuple[float | None, str, Any, str]]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


def _attributes(name: str, stored: Any) -> Sizes | None:
    for key, unit in (("resolution", "nm"), ("element_size_um", "um")):
        values = np.atleast_1d(stored.attrs.get(key, ()))
        if values.shape == (3,) and values.dtype.kind in "uif":
            sizes = {
                axis: (length_nm(float(v), unit), f"{name}@{key}", values.tolist(), unit)
                for axis, v in zip(SPATIAL, values, strict=True)
            }
            offset = np.atleast_1d(stored.attrs.get("offset", ()))
            if key != "resolution" or offset.shape != (3,) or offset.dtype.kind not in "uif":
                return Sizes(sizes)
            return Sizes(sizes, place_nm(*map(float, offset)))
    return None


def _imaris(file: Any, name: str, shape: Shape) -> Sizes | None:
    """Extent ÷ size: `ExtMin0` … `ExtMax2` run x, y, z."""
    if not name.startswith("DataSet/") or "DataSetInfo/Image" not in file:
        return None
    attributes = file["DataSetInfo/Image"].attrs
    unit = _text(attributes.get("Unit", ""))
    sizes = {}
    for number, axis in enumerate("xyz"):
        if f"ExtMin{number}" not in attributes or f"ExtMax{number}" not in attributes:
            return None
        low, high = (_text(attributes[f"{end}{number}"]) for end in ("ExtMin", "ExtMax"))
        extent = float(high) - float(low)
        tag = f"DataSetInfo/Image@ExtMin{number}, ExtMax{number}, Unit"
        sizes[axis] = (length_nm(extent / getattr(shape, axis), unit), tag, [low, high, unit], unit)
    return Sizes(sizes)


def _scales(stored: Any, axes: Sequence[str]) -> Sizes | None:
    """Scalar dimension scales with a UNIT, unless SVI's `State` says that nobody set them."""
    sizes = {}
    for axis, dim in zip(axes, stored.dims, strict=True):
        if axis not in SPATIAL or not len(dim):
            continue
        scale = dim[0]
        state = int(np.atleast_1d(scale.attrs.get("State", 0))[0])
        if scale.shape == () and scale.dtype.kind in "uif" and state not in SVI_UNKNOWN:
            value, unit = float(scale[()]), _text(scale.attrs.get("UNIT", ""))
            sizes[axis] = (length_nm(value, unit), scale.name.strip("/"), [value, unit], unit)
    return Sizes(sizes) if sizes else None


def _metadata(name: str, stored: Any, axes: Sequence[str]) -> dict[str, Any]:
    references = ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME")
    attributes = {key: jsonable(value) for key, value in stored.attrs.items() if key not in references}
    return {"dataset": name, "axes": list(axes), "attributes": attributes, "notes": []}


def _text(value: Any) -> str:
    """Imaris writes text as arrays of single characters."""
    if isinstance(value, np.ndarray):
        return b"".join(np.atleast_1d(value).astype("S").tolist()).decode("latin-1").strip("\0 ")
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
