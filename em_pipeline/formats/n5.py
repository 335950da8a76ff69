"""N5 arrays and what their writers say of voxel sizes. All N5 lists run x, y, z; axes are returned reversed.

Format: https://github.com/saalfeldlab/n5#file-system-specification. Attributes: `transform` and `multiscales`
of OpenOrganelle (https://github.com/janelia-cellmap/schemas), `pixelResolution` and `downsamplingFactors` of
https://github.com/saalfeldlab/n5-viewer#readme, `resolution` and `offset` of
https://github.com/saalfeldlab/paintera#readme.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.formats.arrays import (
    LONGEST_AXIS,
    Calibration,
    Documents,
    StoredArray,
    damaged,
    joined,
    lengths_of,
    understood,
)

ATTRIBUTES = "attributes.json"
DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64")
MULTISET = "isLabelMultiset"
# Blocks of variable length, and of Java objects; 0 are voxels.
LIST_MODES = (1, 2)
# Mode, number of axes, and the lengths of up to seven axes.
HEAD_BYTES = 32


def n5_attributes(documents: Documents, path: str) -> tuple[str, dict[str, Any]] | None:
    """Key and content of the attributes of the N5 node at `path`; None where there are none."""
    key = joined(path, ATTRIBUTES)
    document = documents.json(key)
    return None if document is None else (key, document)


def read_n5_array(documents: Documents, path: str) -> StoredArray | None:
    """The N5 array at `path`, its axes in stored order (x first); None where there is none.

    Raises `UnsupportedFormat` for label multisets, arrays without end, unknown voxel types and damaged
    documents.
    """
    found = n5_attributes(documents, path)
    if found is None or "dimensions" not in found[1]:
        return None
    key, document = found
    with understood(key):
        shape, block = lengths_of(document["dimensions"], 0), lengths_of(document["blockSize"], 1)
        written, compression = document["dataType"], document.get("compression", {"type": "raw"})
        codec = str(compression["type"])
        if codec == "blosc":
            codec = f"blosc-{compression.get('cname', 'lz4')}"
    tried = f"Read the N5 array {path or '/'!r}"
    if document.get(MULTISET):
        raise UnsupportedFormat(
            tried, "it holds label multisets (lists of labels per voxel), as Paintera writes them",
            "Export the labels as plain numbers from Paintera",
        )  # fmt: skip
    if max(shape, default=0) >= LONGEST_AXIS:
        raise UnsupportedFormat(
            tried, f"its dimensions are {list(shape)}: a table of variable-length blocks, not an image"
        )
    if written not in DTYPES:
        raise UnsupportedFormat(tried, f"its voxels are {written!r}", f"Read are {', '.join(DTYPES)}")
    if len(shape) != len(block):
        raise damaged(key, f"dimensions {list(shape)}, blockSize {list(block)}")
    return StoredArray(
        driver="n5", path=path, document=key, file_format="N5", shape=shape, chunk=block, stored=block,
        dtype=np.dtype(written), prefix="", separator="/", compression="none" if codec == "raw" else codec,
        axis_names=_axis_names(document.get("axes"), len(shape)), attributes=document,
    )  # fmt: skip


def listed_levels(key: str, attributes: Mapping[str, Any]) -> list[tuple[str, Calibration | None]] | None:
    """Paths and calibrations of the levels in OpenOrganelle's `multiscales`; None where there are none."""
    multiscales = attributes.get("multiscales")
    if not isinstance(multiscales, list) or not multiscales or not isinstance(multiscales[0], dict):
        return None
    with understood(key):
        return [
            (
                str(entry["path"]),
                _transform(key, f"multiscales[0].datasets[{number}].transform", entry.get("transform")),
            )
            for number, entry in enumerate(multiscales[0]["datasets"])
        ]


def calibration(
    array: StoredArray, group: tuple[str, Mapping[str, Any]] | None, level: int
) -> Calibration | None:
    """What the array, or else its group, says of the voxel size: the most explicit attribute is believed.

    `transform`; then the array's `pixelResolution`, times its `downsamplingFactors`; then the group's
    `pixelResolution` or `resolution`, times the level's factors. Downsampled voxels are centred on the
    voxels they were made from, as in N5-viewer.
    """
    own = array.attributes
    transform = _transform(array.document, "transform", own.get("transform"))
    if transform:
        return transform
    factors = _per_axis(own.get("downsamplingFactors"))
    for key, attributes in ((array.document, own), *([group] if group else [])):
        if factors is None:
            factors = _group_factors(attributes, level)
        size, unit, field = _resolution(attributes)
        if size:
            return _downsampled(key, field, attributes, size, factors or dict.fromkeys(size, 1.0), unit)
    return None


def check_block(key: str, head: bytes, lengths: Sequence[int]) -> tuple[int, ...]:
    """The shape of a block (stored axes), which must hold at least `lengths`.

    `head` are its first `HEAD_BYTES` or more: mode, number of axes, lengths, big-endian. Raises
    `UnsupportedFormat` for a shorter block, and for one of variable length.
    """
    mode, count = struct.unpack(">HH", head[:4]) if len(head) >= 4 else (0, 0)
    if mode in LIST_MODES:
        raise UnsupportedFormat(
            f"Read the N5 block {key!r}",
            f"it is of mode {mode}: lists of variable length, not voxels",
            "Export the image or labels as plain numbers",
        )
    stored = struct.unpack(f">{count}I", head[4 : 4 + 4 * count]) if len(head) >= 4 + 4 * count else ()
    if mode != 0 or len(stored) != len(lengths) or any(a < b for a, b in zip(stored, lengths, strict=True)):
        raise UnsupportedFormat(
            f"Read the N5 block {key!r}",
            f"its header promises {list(stored)} voxels of mode {mode}, the array has {list(lengths)} there",
            "It is truncated or damaged: download or copy it again",
        )
    return stored


def _transform(key: str, field: str, found: Any) -> Calibration | None:
    """OpenOrganelle's `transform`, whose lists run along the axes that it names itself."""
    if not isinstance(found, Mapping) or not isinstance(found.get("axes"), list):
        return None
    with understood(key):
        axes = [str(axis).lower() for axis in found["axes"]]
        units = found.get("units") or [None] * len(axes)
        translation = found.get("translate") or [0.0] * len(axes)
        return Calibration(
            scale=dict(zip(axes, map(float, found["scale"]), strict=True)),
            translation=dict(zip(axes, map(float, translation), strict=True)),
            units=dict(zip(axes, units, strict=True)), document=key, field=field, raw=dict(found),
        )  # fmt: skip


def _resolution(attributes: Mapping[str, Any]) -> tuple[dict[str, float] | None, str | None, str]:
    for field in ("pixelResolution", "resolution"):
        found = attributes.get(field)
        unit = attributes.get("unit")
        if isinstance(found, Mapping):
            unit, found = found.get("unit", unit), found.get("dimensions")
        size = _per_axis(found)
        if size:
            return size, unit if isinstance(unit, str) else None, field
    return None, None, ""


def _group_factors(attributes: Mapping[str, Any], level: int) -> dict[str, float] | None:
    for field in ("downsamplingFactors", "scales"):
        listed = attributes.get(field)
        if isinstance(listed, list) and level < len(listed) and isinstance(listed[level], list):
            return _per_axis(listed[level])
    return None


def _downsampled(
    key: str, field: str, raw: Mapping[str, Any], size: Mapping[str, float], factors: Mapping[str, float],
    unit: str | None,
) -> Calibration:  # fmt: skip
    offset = _per_axis(raw.get("offset")) or {}
    told = {
        name: raw[name] for name in (field, "downsamplingFactors", "scales", "offset", "unit") if name in raw
    }
    return Calibration(
        scale={axis: size[axis] * factors.get(axis, 1.0) for axis in size},
        translation={a: offset.get(a, 0.0) + size[a] * (factors.get(a, 1.0) - 1) / 2 for a in size},
        units=dict.fromkeys(size, unit), document=key, field=field, raw=told,
    )  # fmt: skip


def _per_axis(values: Any) -> dict[str, float] | None:
    if not isinstance(values, list) or len(values) < 2 or not all(isinstance(v, int | float) for v in values):
        return None
    return dict(zip("xyz", map(float, values), strict=False))


def _axis_names(names: Any, count: int) -> tuple[str, ...] | None:
    if not isinstance(names, Sequence) or len(names) != count or not all(isinstance(n, str) for n in names):
        return None
    return tuple(name.lower() for name in names)
