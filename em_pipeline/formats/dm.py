"""Gatan DigitalMicrograph DM3 and DM4.

Only the tags are parsed, once; voxels are then read straight from the offset the tags give.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import Shape
from em_pipeline.formats.base import ClaimSheet, FileVolume, RawVoxels, jsonable, opened, truncated
from em_pipeline.formats.dm_claims import claim_acquisition, claim_voxel_size, origin_nm
from em_pipeline.formats.dm_tags import Tags, read_tags

EXTRACTOR = "formats.dm"
# DataType of ImageData, by the scripting documentation of DigitalMicrograph (RealImage and friends).
DTYPES = {1: "i2", 2: "f4", 6: "u1", 7: "i4", 9: "i1", 10: "u2", 11: "u4", 12: "f8", 14: "u1"}
NOT_GREY = {3: "complex", 5: "complex", 8: "RGB", 13: "complex", 23: "RGB", 27: "complex", 28: "complex"}
# What tags of other types or names than they have by the format end in.
BROKEN = (KeyError, ValueError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Image:
    """One entry of ImageList: its index in it, tags, and dimensions as z-y-x."""

    index: int
    tags: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.tags["ImageData"]
        return data

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Slowest axis first; DM counts from the fastest."""
        return tuple(int(n) for n in self.data["Dimensions"].values())[::-1]

    def refusal(self) -> str | None:
        """Why this is no grey image or volume, or None where it is one."""
        kind = int(self.data["DataType"])
        meaning = self.tags.get("ImageTags", {}).get("Meta Data", {})
        what = str(meaning.get("Format", "")) if isinstance(meaning, dict) else ""
        units = [calibration.get("Units") for calibration in _entries(self.data, "Calibrations", "Dimension")]
        if kind not in DTYPES:
            return f"{NOT_GREY.get(kind, 'unknown')} data (DataType {kind})"
        if len(self.dimensions) == 1 or what == "Spectrum":
            return "a spectrum"
        if what == "Spectrum image" or any(unit in ("eV", "keV") for unit in units):
            return "a spectrum image (one axis is an energy)"
        if len(self.dimensions) not in (2, 3) or min(self.dimensions) < 1:
            return f"an array of {len(self.dimensions)} dimensions {self.dimensions}"
        return None


@dataclass(frozen=True)
class Stored:
    """The grey image of a file and where its voxels lie; `others` names the images not read."""

    image: Image
    voxels: RawVoxels
    tags: Tags
    others: tuple[str, ...]

    @property
    def root(self) -> str:
        return f"ImageList.{self.image.index}"

    @property
    def file_format(self) -> str:
        return f"DM{self.tags.version}"

    def volume(self, claims: Sequence[Claim], metadata: dict[str, Any]) -> FileVolume:
        shape = self.voxels.shape
        dtype, plane = self.voxels.dtype.newbyteorder("="), Shape(1, shape.y, shape.x)
        origin = origin_nm(self.image.tags, len(self.image.dimensions))
        return FileVolume(shape, dtype, plane, self.voxels, tuple(claims), metadata, origin)


def open_dm(path: Path) -> FileVolume:
    """The image of a DM3 or DM4 file: one plane where it is 2-D, a volume where it is 3-D.

    Thumbnails are passed over; where the document shows several images, the first grey one is read and
    the others are named in `metadata["notes"]`. The voxel size comes from the calibrations, z of a 2-D
    image from the slice thickness that serial block-face microscopes record.
    Raises `UnsupportedFormat` for spectra, spectrum images, RGB, complex data and truncated files.
    """
    with opened(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        return dm_volume(path, file, path.stat().st_size)


def open_dm_plane(path: Path) -> FileVolume:
    """Like `open_dm`, with no more claims and metadata than planes of a stack are compared by."""
    with opened(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        return _described(path, file, path.stat().st_size, _as_plane)


def dm_volume(path: Path, file: BinaryIO, size: int) -> FileVolume:
    """The image whose tags are in `file`, of `size` bytes; its voxels are read from `path`.

    Raises like `open_dm`.
    """
    return _described(path, file, size, _in_full)


def _described(
    path: Path, file: BinaryIO, size: int, describe: Callable[[Path, Stored], FileVolume]
) -> FileVolume:
    try:
        return describe(path, _stored(path, read_tags(file), size))
    except BROKEN as error:
        raise UnsupportedFormat(
            f"Read the tags of {path.name} as DM3/DM4",
            f"{type(error).__name__}: {error}",
            "The file is truncated or damaged: download or copy it again",
        ) from error


def _as_plane(path: Path, stored: Stored) -> FileVolume:
    sheet = ClaimSheet(path, EXTRACTOR)
    sheet.file_format(stored.file_format, f"{stored.root}.ImageData")
    claim_voxel_size(sheet, stored.image.tags, stored.root, len(stored.image.dimensions))
    return stored.volume(sheet.claims, {})


def _in_full(path: Path, stored: Stored) -> FileVolume:
    image, shape, tag = stored.image, stored.voxels.shape, stored.root
    sheet = ClaimSheet(path, EXTRACTOR)
    dtype, plane = stored.voxels.dtype.newbyteorder("="), Shape(1, shape.y, shape.x)
    sheet.layout(shape, dtype, plane, stored.file_format, "none", f"{tag}.ImageData")
    rank = len(image.dimensions)
    sheet.axes("zyx"[3 - rank :], f"{tag}.ImageData.Dimensions", list(image.dimensions)[::-1])
    claim_voxel_size(sheet, image.tags, tag, rank)
    claim_acquisition(sheet, image.tags, tag)
    metadata = {
        "tags": {tag: jsonable(image.tags)},
        "byte_order": stored.tags.byte_order,
        "notes": list(stored.others),
    }
    return stored.volume(sheet.claims, metadata)


def _choose(path: Path, tags: Tags) -> tuple[Image, tuple[str, ...]]:
    """The first grey image, and the names of the others."""
    images = list(_shown(tags.tree))
    refusals = {image.index: image.refusal() for image in images}
    grey = [image for image in images if refusals[image.index] is None]
    if not grey:
        found = ", ".join(f"ImageList.{index}: {why}" for index, why in refusals.items()) or "no image"
        raise UnsupportedFormat(
            f"Read {path.name} as a grey image", f"it holds {found}", "Export the image alone"
        )
    others = (f"ImageList.{image.index} {image.dimensions} not read" for image in images if image != grey[0])
    return grey[0], tuple(others)


def _shown(tags: dict[str, Any]) -> Iterator[Image]:
    """Images that are no thumbnails: those the document shows first, then the rest."""
    images = dict(enumerate(tags["ImageList"].values()))
    thumbnails = {int(entry["ImageIndex"]) for entry in _entries(tags, "Thumbnails")}
    shown = [int(entry["ImageRef"]) for entry in _entries(tags, "ImageSourceList") if "ImageRef" in entry]
    for index in dict.fromkeys([*shown, *images]):
        if index in images and index not in thumbnails and "ImageData" in images[index]:
            yield Image(index, images[index])


def _stored(path: Path, tags: Tags, size: int) -> Stored:
    image, others = _choose(path, tags)
    dimensions = image.dimensions
    shape = Shape(*(1,) * (3 - len(dimensions)), *dimensions)
    dtype = np.dtype(f"{tags.byte_order}{DTYPES[int(image.data['DataType'])]}")
    stored_bytes = int(image.data["Data"]["size_bytes"])
    if stored_bytes < shape.voxels * dtype.itemsize:
        raise UnsupportedFormat(
            f"Read {path.name}",
            f"dimensions {tuple(shape)} of {dtype.name} need {shape.voxels * dtype.itemsize:,} bytes, "
            f"the tags give {stored_bytes:,}",
            "The file is damaged: download or copy it again",
        )
    offset = int(image.data["Data"]["offset"])
    if offset + stored_bytes > size:
        # Before the place of every plane is held: there may be billions of them.
        raise truncated(path, offset + stored_bytes, size)
    return Stored(image, RawVoxels.contiguous(path, offset, shape, dtype), tags, others)


def _entries(tags: dict[str, Any], *path: str) -> list[dict[str, Any]]:
    """The groups of a list of groups; empty where there is no such list."""
    found: Any = tags
    for name in path:
        found = found.get(name, {}) if isinstance(found, dict) else {}
    return [entry for entry in found.values() if isinstance(entry, dict)] if isinstance(found, dict) else []
