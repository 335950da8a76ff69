"""Voxels."""

import io
import zlib
from collections import Counter
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Query, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from em_pipeline.api.errors import BlockTooLarge, documented
from em_pipeline.api.images import png_of_plane
from em_pipeline.api.services import ServicesDep
from em_pipeline.catalog.entries import LevelRow, PublishedVersion
from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.identity import short_hash
from em_pipeline.volumes.reader import Block

router = APIRouter(prefix="/api/v1", tags=["blocks"])

LARGEST_BLOCK = 64 * 2**20
YEAR_S = 365 * 24 * 3600


class BlockFormat(StrEnum):
    """How the voxels are written into the answer's body."""

    RAW = "raw"
    NPY = "npy"
    PNG = "png"


MEDIA_TYPES = {
    BlockFormat.RAW: "application/octet-stream",
    BlockFormat.NPY: "application/x-npy",
    BlockFormat.PNG: "image/png",
}


class BlockQuery(BaseModel):
    """Parameters of a block. An unknown one is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid")

    dataset_id: str = Field(description="`<source>-<accession>`", examples=["empiar-11759"], max_length=200)
    z: int = Field(ge=0, description="First voxel along z, in voxels of `level`", examples=[0])
    y: int = Field(ge=0, description="First voxel along y, in voxels of `level`", examples=[128])
    x: int = Field(ge=0, description="First voxel along x, in voxels of `level`", examples=[256])
    level: int = Field(0, ge=0, description="Pyramid level, 0 = full")
    size: str = Field(
        "128,128,128",
        pattern=r"^[0-9]{1,9},[0-9]{1,9},[0-9]{1,9}$",
        description="Voxels along z,y,x; what lies beyond the volume's far edges is cut off",
    )
    format: BlockFormat = Field(
        BlockFormat.RAW,
        description="`raw`: little-endian voxels in C order. `npy`: a NumPy file. `png`: the middle z plane "
        "of the block, 8-bit grey, contrast from the volume's 1st and 99th percentile",
    )
    label: str | None = Field(
        None, max_length=200, description="Read this label image; the metadata lists them", examples=["cells"]
    )
    version: str | None = Field(
        None, description="Insist on this published version; the answer may then be cached for ever"
    )

    def box(self) -> BoundingBox:
        """The box asked for, before clipping. Raises `InputRefused` for a size of 0."""
        depth, height, width = (int(part) for part in self.size.split(","))
        if 0 in (depth, height, width):
            raise InputRefused(f"Read size {self.size}", "a block has at least one voxel along each axis")
        return BoundingBox.at((self.z, self.y, self.x), (depth, height, width))


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The voxels. The body's CRC-32 is in `X-EM-CRC32`.",
        "content": {media: {} for media in MEDIA_TYPES.values()},
        "headers": {
            "X-EM-Shape": {"description": "z,y,x after clipping", "schema": {"type": "string"}},
            "X-EM-Dtype": {"description": "NumPy name, such as uint16", "schema": {"type": "string"}},
            "X-EM-Box": {
                "description": "z0:z1,y0:y1,x0:x1 in voxels of the level",
                "schema": {"type": "string"},
            },
            "X-EM-Level": {"schema": {"type": "integer"}},
            "X-EM-Version": {"schema": {"type": "string"}},
            "X-EM-Voxel-Size-Nm": {"description": "z,y,x of the level", "schema": {"type": "string"}},
            "X-EM-Valid-Fraction": {
                "description": "Share of the box's voxels that the source holds; the others are 0",
                "schema": {"type": "number"},
            },
            "X-EM-States": {
                "description": "Chunks touched by ledger state: data=7,absent=1. Of `absent` ones the source "
                "holds nothing: their zeros are no data",
                "schema": {"type": "string"},
            },
            "X-EM-CRC32": {
                "description": "Of the body as in zlib, 8 hexadecimal digits",
                "schema": {"type": "string"},
            },
        },
    },
    304: {"description": "The client's copy (If-None-Match) is still right."},
    **documented(404, 413, 422, 500, 503),
}


@router.get("/block", response_class=Response, responses=ANSWERS)
def block(
    query: Annotated[BlockQuery, Query()],
    services: ServicesDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Voxels of one box of one level, cut off at the volume's far edges.

    A chunk that is damaged or missing is a `chunk-corrupt` problem naming it: voxels are never made up.
    """
    wanted = query.box()
    published = services.published(query.dataset_id, query.version)
    if query.label is not None:
        published = published.label(query.label)
    level = _level(published, query.level)
    box = _clip(wanted, query, level)
    etag = f'"{short_hash(published.ledger_sha256, str(level.level), _header_box(box), query.format)}"'
    caching = f"public, max-age={YEAR_S}, immutable" if query.version else "no-cache"
    headers = {"ETag": etag, "Cache-Control": caching, "X-EM-Version": published.version}
    if if_none_match is not None and _matches(etag, if_none_match):
        return Response(status_code=304, headers=headers)
    with services.readers.lease(published) as reader:
        _check_size(box, reader.levels[level.level].dtype)
        found = reader.read_block(level.level, box)
    body = _encode(query.format, found.data, published)
    headers |= _describe(found, level) | {"X-EM-CRC32": f"{zlib.crc32(body):08x}"}
    return Response(body, headers=headers, media_type=MEDIA_TYPES[query.format])


def _level(published: PublishedVersion, index: int) -> LevelRow:
    for level in published.levels:
        if level.level == index:
            return level
    raise NotFound(
        f"Read level {index} of {published.dataset_id}",
        f"it has levels 0 to {len(published.levels) - 1}",
    )


def _clip(wanted: BoundingBox, query: BlockQuery, level: LevelRow) -> BoundingBox:
    """What is read: clipped to the level, one plane for a picture. Raises `NotFound`."""
    box = wanted.clipped(level.shape)
    if box is None:
        raise NotFound(
            f"Read a block at {query.z}, {query.y}, {query.x} of level {level.level} of {query.dataset_id}",
            f"it begins outside the level, which has {tuple(level.shape)} voxels (z, y, x)",
            "z, y, x are voxels of the level asked for",
        )
    if query.format is BlockFormat.PNG:
        middle = box.start.z + box.shape.z // 2
        box = BoundingBox.at((middle, box.start.y, box.start.x), (1, box.shape.y, box.shape.x))
    return box


def _check_size(box: BoundingBox, dtype: np.dtype[Any]) -> None:
    size = box.shape.voxels * dtype.itemsize
    if size > LARGEST_BLOCK:
        raise BlockTooLarge(
            f"Read a block of {' × '.join(map(str, box.shape))} voxels of {dtype.name}",
            f"{size} bytes, where one answer has at most {LARGEST_BLOCK}",
            "Ask for several smaller blocks",
        )


def _header_box(box: BoundingBox) -> str:
    return ",".join(f"{a}:{b}" for a, b in zip(box.start, box.stop, strict=True))


def _matches(etag: str, if_none_match: str) -> bool:
    """RFC 9110 §13.1.2: any of the listed tags, compared weakly, or `*`."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in tags or "*" in tags


def _encode(encoding: BlockFormat, data: NDArray[Any], published: PublishedVersion) -> bytes | memoryview:
    if encoding is BlockFormat.PNG:
        return png_of_plane(data[0], published.statistics)
    voxels = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))
    if encoding is BlockFormat.NPY:
        target = io.BytesIO()
        np.save(target, voxels, allow_pickle=False)
        return target.getvalue()
    return voxels.data.cast("B")


def _describe(found: Block, level: LevelRow) -> dict[str, str]:
    states = Counter(found.states.values())
    return {
        "X-EM-Shape": ",".join(map(str, found.data.shape)),
        "X-EM-Dtype": found.data.dtype.name,
        "X-EM-Box": _header_box(found.box),
        "X-EM-Level": str(level.level),
        "X-EM-Voxel-Size-Nm": ",".join(map(repr, map(float, level.voxel_size_nm))),
        "X-EM-Valid-Fraction": repr(float(found.valid_fraction)),
        "X-EM-States": ",".join(f"{state}={count}" for state, count in states.items()),
    }
