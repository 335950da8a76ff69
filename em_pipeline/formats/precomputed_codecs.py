"""Stored chunks of precomputed volumes into voxels.

Encodings: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
Every one of them lists voxels with x fastest, so a chunk is a C-ordered z-y-x array.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.geometry import Shape
from em_pipeline.formats.jpeg import decode_jpeg
from em_pipeline.formats.precomputed_gzip import GZIP_MAGIC, gunzip
from em_pipeline.formats.precomputed_info import Scale
from em_pipeline.formats.precomputed_segmentation import decode_compressed_segmentation


def decode_chunk(data: bytes, scale: Scale, shape: Shape, name: str) -> NDArray[Any]:
    """Voxels (z-y-x, native byte order) of a chunk of `shape` as it is stored, gzipped or not.

    Raises `UnsupportedFormat` naming the chunk (`name`) where it is of another size or damaged; of damaged
    JPEG, `decode_jpeg` says what cannot be told.
    """
    try:
        plain = _unpacked(data, scale, shape)
        voxels = _decoded(plain, scale, shape)
    except (ValueError, IndexError, EOFError, RuntimeError) as error:
        raise _damaged(name, scale, str(error) or type(error).__name__) from error
    if voxels.size != shape.voxels or voxels.dtype != scale.dtype:
        found = f"it holds {voxels.shape} voxels of {voxels.dtype}, not {tuple(shape)} of {scale.dtype}"
        raise _damaged(name, scale, found)
    return voxels.reshape(shape)


def decoding_bytes(scale: Scale) -> int:
    """Bytes that decoding one chunk takes at most: it as stored, unpacked and decoded.

    Labels are looked up by the number of bits of their block, with positions of 8 bytes.
    """
    positions = 40 if scale.encoding == "compressed_segmentation" else 0
    return scale.chunk.voxels * (4 * scale.dtype.itemsize + positions) + 65536


def _unpacked(data: bytes, scale: Scale, shape: Shape) -> bytes:
    """`data` without gzip around them, which sharding, web servers and cloud-volume each may add.

    Raw voxels may begin like gzip, and gzip may have the length of raw voxels; but voxels that are a whole
    gzip stream, checksum and all, do not happen.
    """
    if not data.startswith(GZIP_MAGIC):
        return data
    size = shape.voxels * scale.dtype.itemsize
    try:
        # No encoding doubles voxels, so that more than this is no chunk but a bomb.
        return gunzip(data, 2 * size + 65536)
    except ValueError:
        if scale.encoding == "raw" and len(data) == size:
            return data
        raise


def _decoded(data: bytes, scale: Scale, shape: Shape) -> NDArray[Any]:
    if scale.encoding == "raw":
        if len(data) != shape.voxels * scale.dtype.itemsize:
            raise ValueError(f"it has {len(data):,} bytes")
        return np.frombuffer(data, scale.dtype.newbyteorder("<")).astype(scale.dtype, copy=False)
    if scale.encoding == "compressed_segmentation":
        return decode_compressed_segmentation(data, shape, scale.dtype, scale.block_size)
    if scale.encoding == "compresso":
        return _compresso(data, shape)
    return _picture(data, scale.encoding, shape.voxels)


def _picture(data: bytes, encoding: str, voxels: int) -> NDArray[Any]:
    """The grey values of an image of any width and height, row by row: voxels in order."""
    if encoding == "jpeg":
        return decode_jpeg(data, voxels)
    import imagecodecs

    picture: NDArray[Any] = imagecodecs.png_decode(data)
    if picture.ndim != 2:
        raise ValueError(f"its image has {picture.shape[-1]} channels")
    return picture


def _compresso(data: bytes, shape: Shape) -> NDArray[Any]:
    """The header is checked first: the library trusts it when it takes memory and when it reads."""
    import compresso

    header = compresso.header(data)
    stored = Shape(header["sz"], header["sy"], header["sx"])
    if stored != shape:
        raise ValueError(f"it holds {tuple(stored)} voxels, not {tuple(shape)}")
    windows = header["value_size"] * -(-header["xstep"] * header["ystep"] * header["zstep"] // 8)
    if len(data) < (header["id_size"] + header["location_size"]) * header["data_width"] + windows:
        raise ValueError(f"it ends after {len(data):,} bytes, before its own tables do")
    try:
        voxels: NDArray[Any] = compresso.decompress(data)
    except compresso.DecodeError as error:
        raise ValueError(str(error)) from error
    return voxels.transpose(2, 1, 0)


def _damaged(name: str, scale: Scale, found: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"Decode the {scale.encoding} chunk {name}", found, "It is damaged: download it again"
    )
