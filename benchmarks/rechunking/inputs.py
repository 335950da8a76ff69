"""Makes an input of the benchmark: `python inputs.py KIND PATH SIZE_MIB`; prints its shape and type as JSON.

Voxels are those of the demo's specimen, which zstd takes for what micrographs are: entropy, stored at 0.72
to 0.78 of their size. A block of 128 planes of 1024² is generated once, kept beside the inputs, and repeated
with another offset in y and x for every 128 planes. No codec sees the repetition: no chunk or strip that is
compressed on its own is wider or deeper than the block.
"""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import tensorstore
import tifffile
from numpy.typing import NDArray

from em_pipeline.demo.dm3 import Section, write_dm3
from em_pipeline.demo.specimen import specimen

Shape = tuple[int, int, int]
Planes = Iterator[NDArray[Any]]

BLOCK = (128, 1024, 1024)
# Prime to the block's size: no two of the first 1024 repetitions lie alike.
STEP_Y, STEP_X = 37, 91
MIB = 1 << 20
# The size of OpenOrganelle's jrc_mus-nacc-2 but for some of its planes, in int16.
WIDE_Y, WIDE_X = 2520, 2596
WIDE_PLANES_PER_GIB = 512
# int16 micrographs of FIB-SEM use about 5000 to 6000 grey values, the lowest bits of which are noise.
DARKEST, CONTRAST = 5000, 20
SLAB = 128


def shape_of(kind: str, size_mib: int) -> Shape:
    """z-y-x: `size_mib` MiB of 1024² planes, of 256² for small sizes; the int16 volume in proportion."""
    if kind == "int16":
        return max(16, WIDE_PLANES_PER_GIB * size_mib // 1024), WIDE_Y, WIDE_X
    edge = 1024 if size_mib >= 128 else 256
    return max(1, size_mib * MIB // edge**2), edge, edge


def planes(folder: Path, shape: Shape, dtype: str) -> Planes:
    """The planes (y, x) of a volume of `shape` (z-y-x), uint8, int8 or int16; `folder` keeps the block."""
    depth, height, width = (min(a, b) for a, b in zip(BLOCK, shape, strict=True))
    kept = folder / f"block-{depth}-{height}-{width}.npy"
    if not kept.exists():
        np.save(kept, specimen((depth, height, width)))
    block: NDArray[Any] = np.load(kept)
    if dtype == "int8":
        block = (block.astype(np.int16) - 128).astype(np.int8)
    if dtype == "int16":
        noise = np.random.default_rng(1).integers(0, CONTRAST, block.shape, np.int16)
        block = DARKEST + CONTRAST * block.astype(np.int16) + noise
    z, y, x = shape
    for plane in range(z):
        turn = plane // depth
        rows = (np.arange(y) + turn * STEP_Y) % height
        columns = (np.arange(x) + turn * STEP_X) % width
        yield block[plane % depth].take(rows, 0).take(columns, 1)


def slabs(folder: Path, shape: Shape, dtype: str, depth: int = SLAB) -> Iterator[tuple[int, NDArray[Any]]]:
    """(first plane, voxels) of runs of `depth` planes."""
    made = planes(folder, shape, dtype)
    for z in range(0, shape[0], depth):
        yield z, np.stack([next(made) for _ in range(min(depth, shape[0] - z))])


def write_tiff(compression: str | None) -> Callable[[Path, Shape, str], None]:
    def write(path: Path, shape: Shape, dtype: str) -> None:
        tifffile.imwrite(
            path,
            planes(path.parent, shape, dtype),
            shape=shape,
            dtype=dtype,
            bigtiff=True,
            photometric="minisblack",
            compression=compression,
            predictor=False,
        )

    return write


def write_dm3_stack(path: Path, shape: Shape, dtype: str) -> None:
    path.mkdir()
    for z, plane in enumerate(planes(path.parent, shape, dtype)):
        section = Section(f"section_{z}", plane, 8.0, 8.0, datetime(2020, 1, 1, tzinfo=UTC))
        write_dm3(path / f"section_{z:05}.dm3", section)


def write_mrc(path: Path, shape: Shape, dtype: str) -> None:
    mode = {"int8": 0, "int16": 1}[dtype]
    with mrcfile.new_mmap(path, shape, mrc_mode=mode) as file:
        for z, plane in enumerate(planes(path.parent, shape, dtype)):
            file.data[z] = plane
        file.voxel_size = 80.0  # ångström


def write_zarr(chunk: Shape) -> Callable[[Path, Shape, str], None]:
    """Zarr v2, zstd level 1, as OpenOrganelle's."""

    def write(path: Path, shape: Shape, dtype: str) -> None:
        metadata = {
            "shape": shape,
            "chunks": chunk,
            "dtype": np.dtype(dtype).str,
            "compressor": {"id": "zstd", "level": 1},
            "dimension_separator": "/",
        }
        array = _created("zarr", path, metadata=metadata)
        for z, slab in slabs(path.parent, shape, dtype):
            array[z : z + len(slab)] = slab

    return write


def write_n5(path: Path, shape: Shape, dtype: str) -> None:
    """64³ blocks of gzip, as OpenOrganelle's; N5's dimensions are x, y, z."""
    metadata = {
        "dimensions": shape[::-1],
        "blockSize": (64, 64, 64),
        "dataType": dtype,
        "compression": {"type": "gzip", "level": 1},
    }
    array = _created("n5", path, metadata=metadata)
    for z, slab in slabs(path.parent, shape, dtype):
        array[:, :, z : z + len(slab)] = slab.T


def write_jpeg(path: Path, shape: Shape, dtype: str) -> None:
    """Sharded precomputed in jpeg, as hemibrain's, in shards of 512³ voxels."""
    sharding = {
        "@type": "neuroglancer_uint64_sharded_v1",
        "hash": "identity",
        "preshift_bits": 6,
        "minishard_bits": 3,
        "shard_bits": 15,
        "minishard_index_encoding": "gzip",
    }
    scale = {
        "size": shape[::-1],
        "resolution": (8, 8, 8),
        "chunk_size": (64, 64, 64),
        "encoding": "jpeg",
        "jpeg_quality": 80,
        "sharding": sharding,
    }
    multiscale = {"data_type": dtype, "num_channels": 1, "type": "image"}
    array = _created("neuroglancer_precomputed", path, multiscale_metadata=multiscale, scale_metadata=scale)
    for z, slab in slabs(path.parent, shape, dtype, 512):
        array[:, :, z : z + len(slab), 0] = slab.T


def _created(driver: str, path: Path, **fields: Any) -> Any:
    kvstore = {"driver": "file", "path": f"{path.resolve()}/"}
    return tensorstore.open({"driver": driver, "kvstore": kvstore, "create": True, **fields}).result()


WRITERS: dict[str, tuple[str, Callable[[Path, Shape, str], None]]] = {
    "tiff": ("uint8", write_tiff(None)),
    "tiff-lzw": ("uint8", write_tiff("lzw")),
    "tiff-deflate": ("uint8", write_tiff("zlib")),
    "zarr-64": ("uint8", write_zarr((64, 64, 64))),
    "zarr-planes": ("uint8", write_zarr((1, 1024, 1024))),
    "dm3": ("uint8", write_dm3_stack),
    "mrc": ("int8", write_mrc),
    "jpeg": ("uint8", write_jpeg),
    "n5": ("uint8", write_n5),
    "int16": ("int16", write_tiff(None)),
}
"""Data type and writer of each kind of input."""


def main() -> None:
    kind, path, size_mib = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    dtype, write = WRITERS[kind]
    shape = shape_of(kind, size_mib)
    write(path, shape, dtype)
    print(json.dumps({"shape": shape, "dtype": dtype}))


if __name__ == "__main__":
    main()
