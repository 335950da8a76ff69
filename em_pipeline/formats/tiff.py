"""TIFF: classic and Big, ImageJ and OME, strips and tiles, plain or compressed; grey volumes and planes.

tifffile parses the headers, once and in one thread (its pages are not thread-safe). Reads then use the
offsets alone: plain planes row by row, others by the strips or tiles that the box meets.
"""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from defusedxml.ElementTree import ParseError, fromstring
from numpy.typing import NDArray

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import Shape
from em_pipeline.formats.base import ClaimSheet, FileVolume, RawVoxels, Voxels, jsonable, reading, truncated
from em_pipeline.formats.tiff_claims import claim_acquisition, claim_voxel_size
from em_pipeline.formats.tiff_jpeg import JPEG
from em_pipeline.formats.tiff_segments import (
    BROKEN,
    ByTifffile,
    CodedSegments,
    SegmentDecoder,
    SegmentVoxels,
)

EXTRACTOR = "formats.tiff"
FILE_FORMAT = "TIFF"
Z_AXES = "ZIQ"  # tifffile names an axis I or Q where the file does not say what it is
AXES = {"C": "several channels", "S": "several samples per pixel (RGB)", "T": "several time points"}
READ_AS: dict[Any, np.dtype[Any]] = {
    np.dtype(bool): np.dtype(np.uint8),
    np.dtype(np.float16): np.dtype(np.float32),
}


@dataclass(frozen=True)
class Stored:
    """The one grey series of a file: its shape (z, y, x), what it is read as, and where its voxels lie.

    `chunk` is a strip, tile or plain plane (z, y, x).
    """

    series: Any
    shape: Shape
    dtype: np.dtype[Any]
    voxels: Voxels
    chunk: Shape

    def tag(self, tif: tifffile.TiffFile) -> str:
        """Which part of the file's headers tells of it."""
        return f"IFD 0, series {tif.series.index(self.series)} ({self.series.kind})"

    def volume(self, claims: Sequence[Claim], metadata: dict[str, Any]) -> FileVolume:
        return FileVolume(self.shape, self.dtype, self.chunk, self.voxels, tuple(claims), metadata)


def open_tiff(path: Path) -> FileVolume:
    """The grey image or volume of a TIFF file: one plane where it is 2-D.

    Integers and floats of 8 to 64 bits keep their dtype; 1-bit images are read as uint8 0 and 1, float16
    as float32. Values are as stored: an inverted or coloured display is named in `metadata["notes"]`.
    Raises `UnsupportedFormat` for RGB, several channels or time points, several images of different
    shape, missing strips, unknown compression, OME-TIFF whose planes are in other files, truncation;
    `StorageFailed` where the system does not give the bytes.
    """
    with reading(path), opened_tiff(path, path.name) as tif:
        return tiff_volume(path, tif, path.stat().st_size)


def open_tiff_plane(path: Path) -> FileVolume:
    """Like `open_tiff`, with no more claims and metadata than planes of a stack are compared by."""
    with reading(path), opened_tiff(path, path.name) as tif:
        stored = _stored(path, tif, path.stat().st_size)
        sheet = ClaimSheet(path, EXTRACTOR)
        sheet.file_format(FILE_FORMAT, stored.tag(tif))
        claim_voxel_size(sheet, tif)
        return stored.volume(sheet.claims, {})


@contextmanager
def opened_tiff(file: Path | BinaryIO, name: str) -> Iterator[tifffile.TiffFile]:
    """The headers of a file, which may lie anywhere that can be read and sought; of several only this one's.

    Raises `UnsupportedFormat` where they, or what the caller reads meanwhile, are damaged.
    """
    try:
        tif = tifffile.TiffFile(file, name=name, offset=0)
        if _other_files(tif.ome_metadata):
            # tifffile would open every file of the set for each of its members; take this one's own pages.
            tif.close()
            tif = tifffile.TiffFile(file, name=name, offset=0, is_ome=False)
        with tif:
            yield tif
    except BROKEN as error:
        raise UnsupportedFormat(
            f"Read the headers of {name} as TIFF",
            f"{type(error).__name__}: {error}",
            "The file is truncated or damaged: download or copy it again",
        ) from error


def _other_files(ome_xml: str | None) -> bool:
    """Whether OME-XML says that its planes lie in several files."""
    if not ome_xml or "FileName" not in ome_xml:
        return False
    try:
        names = {element.get("FileName") for element in fromstring(ome_xml).iter()}
    except ParseError:
        return False
    return len(names - {None}) > 1


def tiff_volume(path: Path, tif: tifffile.TiffFile, size: int) -> FileVolume:
    """The volume that the headers of a file of `size` bytes describe; its voxels are read from `path`.

    Raises like `open_tiff`.
    """
    stored = _stored(path, tif, size)
    series, page, tag = stored.series, stored.series.keyframe, stored.tag(tif)
    sheet = ClaimSheet(path, EXTRACTOR)
    sheet.layout(stored.shape, stored.dtype, stored.chunk, FILE_FORMAT, compression_of(page), tag)
    # The axis that counts pages is called I, Q or S by whoever does not know that it is z.
    sheet.axes("yx" if series.axes.startswith("Y") else "zyx", tag, series.axes)
    claim_voxel_size(sheet, tif)
    claim_acquisition(sheet, tif)
    series_facts = {"kind": series.kind, "axes": series.axes, "shape": list(series.shape)}
    metadata = {**headers_of(tif), "series": series_facts, "notes": _notes(page)}
    return stored.volume(sheet.claims, metadata)


def _stored(path: Path, tif: tifffile.TiffFile, size: int) -> Stored:
    _check_last_directory(path, tif, size)
    series = _grey_series(path, tif)
    page = series.keyframe
    y, x = int(page.imagelength), int(page.imagewidth)
    shape = Shape(math.prod(series.shape) // (y * x), y, x)
    _check_promise(path, tif, series, shape, size)
    dtype = READ_AS.get(series.dtype, series.dtype).newbyteorder("=")
    return Stored(series, shape, dtype, *_voxels(path, tif, series, shape, size))


def compression_of(page: tifffile.TiffPage) -> str:
    """How the strips or tiles of a page are compressed, as records name it."""
    name: str = tifffile.COMPRESSION(page.compression).name
    return name.lower().removeprefix("adobe_")


def headers_of(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Tags of the first page, byte order (`<`, `>`) and kind of the file, JSON-ready."""
    return {
        "tags": {tag.name: jsonable(tag.value) for tag in tif.pages.first.tags},
        "byte_order": tif.byteorder,
        "big_tiff": tif.is_bigtiff,
    }


def _grey_series(path: Path, tif: tifffile.TiffFile) -> Any:
    """The one series that is a grey image or volume: its axes of more than one entry are z and the page's."""
    whole = [series for series in tif.series if not series.keyframe.is_reduced] or list(tif.series)
    if len(whole) != 1:
        found = ", ".join(f"{series.shape} {series.axes}" for series in whole) or "no image"
        raise UnsupportedFormat(
            f"Read {path.name} as one volume", f"it holds {found}", "Split it into one file per image"
        )
    series = whole[0]
    page = series.keyframe
    if 0 in series.shape:
        raise UnsupportedFormat(
            f"Read {path.name}",
            f"its shape is {tuple(series.shape)}",
            "The file is damaged: download it again",
        )
    # tifffile makes up names for axes of one entry, which may stand anywhere.
    long = [(axis, int(n)) for axis, n in zip(series.axes, series.shape, strict=True) if n > 1]
    of_page = [(axis, int(n)) for axis, n in (("Y", page.imagelength), ("X", page.imagewidth)) if n > 1]
    planes = long[: len(long) - len(of_page)]
    extra = "".join(axis for axis, _ in planes)
    if long != [*planes, *of_page] or len(extra) > 1 or (extra and extra not in Z_AXES):
        extra = "".join(axis for axis, _ in long)
        meanings = [AXES[axis] for axis in extra if axis in AXES] or ["axes that are not z, y, x"]
        raise UnsupportedFormat(
            f"Read {path.name} as a grey volume",
            f"its shape {tuple(series.shape)} ({series.axes}) has {' and '.join(meanings)}",
            "Save one grey channel and time point as a z-stack (in ImageJ: Image > Properties, set slices)",
        )
    if page.samplesperpixel != 1 or page.imagedepth != 1 or series.dtype is None or series.dtype.kind == "c":
        raise UnsupportedFormat(
            f"Read {path.name} as a grey volume",
            f"it has {page.samplesperpixel} samples per pixel of {series.dtype}",
            "Save it as grey integers or floats",
        )
    return series


def _check_last_directory(path: Path, tif: tifffile.TiffFile, size: int) -> None:
    """Refuse a file whose chain of directories leads beyond its end: tifffile reads it as a shorter one."""
    file, offset = tif.filehandle, tif.pages[-1].offset
    count, entry, pointer = ("Q", 20, "Q") if tif.is_bigtiff else ("H", 12, "I")
    file.seek(offset)
    (tags,) = struct.unpack(f"{tif.byteorder}{count}", file.read(struct.calcsize(count)))
    file.seek(offset + struct.calcsize(count) + entry * tags)
    (following,) = struct.unpack(f"{tif.byteorder}{pointer}", file.read(struct.calcsize(pointer)))
    if following:
        raise truncated(path, following, size)


def _check_promise(path: Path, tif: tifffile.TiffFile, series: Any, shape: Shape, size: int) -> None:
    """Refuse an ImageJ or tifffile stack with fewer planes than its description says."""
    promised = 1
    if tif.imagej_metadata:
        said = tif.imagej_metadata
        stack = [int(said.get(name, 1)) for name in ("channels", "slices", "frames")]
        promised = max(int(said.get("images", 1)), math.prod(stack))
    elif tif.shaped_metadata:
        promised = math.prod(tif.shaped_metadata[0].get("shape", ())) // (shape.y * shape.x)
    if shape.z < promised:
        page = series.keyframe
        raise truncated(path, page.dataoffsets[0] + promised * page.nbytes, size)


def _voxels(path: Path, tif: tifffile.TiffFile, series: Any, shape: Shape, size: int) -> tuple[Voxels, Shape]:
    """Where the voxels are, and the z-y-x shape of a strip, tile or plain plane."""
    page = series.keyframe
    stored = series.dtype.newbyteorder(tif.byteorder)
    offsets = _plain_planes(series, shape, stored)
    if offsets is not None:
        raw = RawVoxels(path, offsets, shape, stored)
        raw.check_size(size)
        return raw, Shape(1, shape.y, shape.x)
    height, width = segment_shape(page)
    pages = list(series.pages)
    if len(pages) != shape.z or any(p is None for p in pages):
        raise UnsupportedFormat(
            f"Read {path.name}",
            f"{shape.z} planes are promised, {sum(p is not None for p in pages)} are in the file",
            "Download the file again, or save all planes into it",
        )
    segments = _segments(path, pages, -(-shape.y // height) * -(-shape.x // width), size)
    decoder: SegmentDecoder | None = CodedSegments.of(page, stored)
    if decoder is None:
        native = READ_AS.get(series.dtype, series.dtype).newbyteorder("=")
        jpeg_bits = page.bitspersample if page.compression in JPEG else None
        decoder = ByTifffile(partial(_page_decoder, path), (height, width), shape, native, jpeg_bits)
    voxels = SegmentVoxels(path, segments, (height, width), page.is_tiled, shape, decoder)
    return voxels, Shape(1, min(height, shape.y), min(width, shape.x))


def _page_decoder(path: Path) -> tuple[Callable[..., Any], bytes | None]:
    """What tifffile decodes the strips or tiles of the file with, and the JPEG tables that go with it."""
    with reading(path), opened_tiff(path, path.name) as tif:
        page = _grey_series(path, tif).keyframe
        return page.decode, page.jpegtables


def segment_shape(page: tifffile.TiffPage) -> tuple[int, int]:
    """Rows and columns of a strip or tile."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _plain_planes(series: Any, shape: Shape, stored: np.dtype[Any]) -> NDArray[np.int64] | None:
    """The byte where each plane begins, where all are stored plainly and in one piece."""
    page = series.keyframe
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled
    if not plain or page.bitspersample != 8 * stored.itemsize:
        return None
    plane_bytes = shape.y * shape.x * stored.itemsize
    if series.dataoffset is not None:
        return int(series.dataoffset) + plane_bytes * np.arange(shape.z, dtype=np.int64)
    if len(series.pages) != shape.z:
        return None
    starts = []
    for plane in series.pages:
        if plane is None or not _in_one_piece(plane.dataoffsets, plane.databytecounts, plane_bytes):
            return None
        starts.append(plane.dataoffsets[0])
    return np.array(starts, np.int64)


def _in_one_piece(offsets: Sequence[int], counts: Sequence[int], needed: int) -> bool:
    ends = [offset + count for offset, count in zip(offsets, counts, strict=False)]
    return bool(offsets) and all(offsets) and ends[:-1] == list(offsets[1:]) and sum(counts) == needed


def _segments(path: Path, pages: Sequence[Any], count: int, size: int) -> NDArray[np.int64]:
    """Offset and length of every strip or tile, as (planes, segments, 2)."""
    table = np.zeros((len(pages), count, 2), np.int64)
    for z, page in enumerate(pages):
        offsets, lengths = page.dataoffsets[:count], page.databytecounts[:count]
        if len(offsets) != count or len(lengths) != count or not all(offsets) or not all(lengths):
            raise UnsupportedFormat(
                f"Read {path.name}",
                f"plane {z} has only {sum(map(bool, lengths))} of {count} strips or tiles",
                "The file was not written completely: download it again",
            )
        table[z, :, 0], table[z, :, 1] = offsets, lengths
    end = int(table.sum(axis=-1).max())
    if end > size:
        raise truncated(path, end, size)
    return table


def _notes(page: Any) -> list[str]:
    notes = {
        tifffile.PHOTOMETRIC.MINISWHITE: "stored with 0 as white; values are as stored",
        tifffile.PHOTOMETRIC.PALETTE: "shown through a colour table; values are as stored",
    }
    return [notes[page.photometric]] if page.photometric in notes else []
