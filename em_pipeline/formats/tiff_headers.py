"""What the headers of a TIFF say, from as few of its bytes as will do."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from defusedxml.ElementTree import ParseError, fromstring

from em_pipeline.domain.errors import BudgetSpent, UnsupportedFormat
from em_pipeline.formats.base import ClaimSheet
from em_pipeline.formats.headers import ImageHeaders, of_volume
from em_pipeline.formats.tiff import (
    EXTRACTOR,
    READ_AS,
    compression_of,
    headers_of,
    opened_tiff,
    segment_shape,
    tiff_volume,
)
from em_pipeline.formats.tiff_chain import Chain, Directories, survey
from em_pipeline.formats.tiff_claims import claim_acquisition, claim_voxel_size
from em_pipeline.formats.tiff_segments import BROKEN

OME_SIZES = {"z": "SizeZ", "c": "SizeC", "t": "SizeT"}


def tiff_headers(path: Path, file: BinaryIO, size: int) -> ImageHeaders:
    """The image that `file`, of `size` bytes and called `path`, describes.

    Where all directories lie together it is what the reader of whole files says. Else the first page speaks
    for all, and `notes` say how many were compared with it. Raises `UnsupportedFormat` for damaged headers.
    """
    with opened_tiff(file, path.name) as tif:
        first = tif.pages.first
        chain = survey(Directories(file, tif.byteorder, big=tif.is_bigtiff), first.offset, size)
        refused = ""
        if chain.whole:
            try:
                return _with_pages(of_volume(tiff_volume(path, tif, size)), chain)
            except BudgetSpent:
                refused = "its pages were counted, but not all compared: that would take many more bytes"
            except UnsupportedFormat as error:
                refused = f"`em ingest` would refuse it: {error.found}"
            except BROKEN as error:
                refused = f"`em ingest` would refuse it: {type(error).__name__}: {error}"
        return _from_first_page(path, tif, chain, size, refused)


def _with_pages(headers: ImageHeaders, chain: Chain) -> ImageHeaders:
    pages = {"count": chain.count, "read": chain.read}
    return headers.with_metadata(pages=pages)


def _from_first_page(
    path: Path, tif: tifffile.TiffFile, chain: Chain, size: int, refused: str
) -> ImageHeaders:
    page = tif.pages.first
    planes, notes = _planes(tif, chain, size)
    dtype = np.dtype(READ_AS.get(page.dtype, page.dtype)).newbyteorder("=")
    height, width = segment_shape(page)
    sheet = ClaimSheet(path, EXTRACTOR)
    claim_voxel_size(sheet, tif)
    claim_acquisition(sheet, tif)
    samples = [f"{page.samplesperpixel} samples per pixel"] if page.samplesperpixel != 1 else []
    pages = {"count": chain.count, "read": chain.read, "described": _described(tif)}
    plain = _is_plain(page)
    return ImageHeaders(
        file_format="TIFF",
        shape=(planes, page.imagelength, page.imagewidth),
        dtype=dtype.name,
        chunk_shape=(1, page.imagelength, page.imagewidth) if plain else (1, height, width),
        compression=compression_of(page),
        byte_order=tif.byteorder,
        claims=tuple(sheet.claims),
        metadata={**headers_of(tif), "pages": pages},
        notes=tuple(note for note in [*notes, *samples, refused] if note),
        row_by_row=plain,
    )


def _is_plain(page: tifffile.TiffPage) -> bool:
    """Whether its strips lie in one piece, of which the reader of whole files takes rows."""
    return bool(page.compression == 1 and not page.is_tiled and page.is_contiguous)


def _planes(tif: tifffile.TiffFile, chain: Chain, size: int) -> tuple[int | None, list[str]]:
    """How many planes there are along z, where that is certain, and what to say of it."""
    said = _described(tif)
    longer = {axis: n for axis, n in said.items() if n > 1}
    promised = math.prod(longer.values())
    if chain.count is None:
        page = tif.pages.first
        told = f"; its description says {promised} planes" if longer else ""
        room = f"; {size // page.nbytes} would fill the file" if page.compression == 1 and page.nbytes else ""
        unknown = f"at least {chain.read} pages: the chain of pages was not followed to its end"
        return None, [f"{unknown}{told}{room}"]
    notes = []
    if not chain.whole:
        notes.append(
            f"{chain.count} pages, {chain.read} IFDs read: those are alike and at one distance, "
            "the others were not looked at"
        )
    if longer and (set(longer) != {"z"} or promised != chain.count):
        axes = ", ".join(f"{axis}={n}" for axis, n in longer.items())
        return None, [*notes, f"the description says {axes} of {chain.count} pages: no plain stack along z"]
    return chain.count, notes


def _described(tif: tifffile.TiffFile) -> Mapping[str, int]:
    """Lengths by axis (c, z, t) that the first page's description tells; empty where it tells none."""
    if tif.imagej_metadata:
        names = {"c": "channels", "z": "slices", "t": "frames"}
        return {axis: int(tif.imagej_metadata.get(name, 1)) for axis, name in names.items()}
    if tif.is_ome:
        return _ome_sizes(tif.pages.first.description or "")
    return _shaped_sizes(tif.pages.first.shaped_description or "{}")


def _shaped_sizes(description: str) -> Mapping[str, int]:
    """What tifffile writes: `TiffFile.shaped_metadata` would read every page to answer."""
    try:
        leading = json.loads(description).get("shape", ())[:-2]
    except ValueError:
        return {}
    return {"z": math.prod(leading)} if leading else {}


def _ome_sizes(description: str) -> Mapping[str, int]:
    try:
        pixels = [e for e in fromstring(description).iter() if e.tag.rpartition("}")[2] == "Pixels"]
    except ParseError:
        return {}
    found: dict[str, Any] = dict(pixels[0].attrib) if pixels else {}
    return {
        axis: int(found[name]) for axis, name in OME_SIZES.items() if str(found.get(name, "")).isdecimal()
    }
