"""hemibrain's bucket, generated: precomputed volumes with its names, sizes and shards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.demo.specimen import specimen
from em_pipeline.domain.geometry import BoundingBox, Shape

# Sizes in z, y, x at 8 nm: of the micrographs and of the segmentation, which differ.
EM_SIZE = Shape(41394, 39725, 34427)
LABELS_SIZE = Shape(41408, 39552, 34432)
LEVELS = 9
CHUNK = 64
# The level that is held whole: voxels of 2048 nm, 162×156×135 of them, no multiples of the chunk.
WHOLE = 8
# Of each neurite's cross section, and the first of their ids, which 32 bits cannot hold.
NEURITE = 24
TISSUE = 160
FIRST_ID = 1_002_000_000_000
KEYS = tuple(f"{8.0 * 2**level}x{8.0 * 2**level}x{8.0 * 2**level}" for level in range(LEVELS))


def write_tree(folder: Path, region: BoundingBox) -> None:
    """The bucket below `folder`, and the voxels of `region` (of the finest level) as `grey.npy`."""
    grey = _tissue(region.shape)
    np.save(folder / "grey.npy", grey)
    em, labels = folder / "emdata/clahe_yz/jpeg", folder / "v1.2/segmentation"
    _write(em, EM_SIZE, "image", 0, region, grey)
    for z in range(0, region.shape.z, CHUNK):  # in slabs: uint64 of the whole region would be large
        slab = BoundingBox.at(
            (region.start.z + z, *region.start[1:]),
            (min(CHUNK, region.shape.z - z), *region.shape[1:]),
        )
        _write(labels, LABELS_SIZE, "segmentation", 0, slab, _neurites(slab.shape, z))
    shape = _size(EM_SIZE, WHOLE)
    # The anatomy is that of finer voxels: at 2048 nm there would be little to see.
    _write(em, EM_SIZE, "image", WHOLE, BoundingBox.of_shape(shape), specimen(shape, seed=21))
    shape = _size(LABELS_SIZE, WHOLE)
    _write(labels, LABELS_SIZE, "segmentation", WHOLE, BoundingBox.of_shape(shape), _neurites(shape))
    _write_info(em, EM_SIZE, "image")
    _write_info(labels, LABELS_SIZE, "segmentation")


def _tissue(shape: Shape) -> NDArray[np.uint8]:
    """Grey values; beyond the first `TISSUE` voxels along an axis, mirrored: they take long to make."""
    made = specimen(Shape(*(min(n, TISSUE) for n in shape)), seed=20)
    missing = [(0, n - have) for n, have in zip(shape, made.shape, strict=True)]
    return np.pad(made, missing, mode="symmetric")


def _neurites(shape: Shape, first: int = 0) -> NDArray[np.uint64]:
    """Blocky ids from the plane `first` on; of every ninth, nothing: glia that nobody traced."""
    planes = np.arange(first, first + shape.z, dtype=np.uint64)
    z = planes // np.uint64(NEURITE)
    y, x = (np.arange(n, dtype=np.uint64) // np.uint64(NEURITE) for n in shape[1:])
    ids = z[:, None, None] * np.uint64(97) + y[None, :, None] * np.uint64(13) + x[None, None, :]
    return np.where(ids % np.uint64(9) == 0, np.uint64(0), ids + np.uint64(FIRST_ID))


def _size(finest: Shape, level: int) -> Shape:
    return Shape(*(-(-n // 2**level) for n in finest))


def _scale(finest: Shape, kind: str, level: int) -> dict[str, Any]:
    """One entry of `scales`, in x, y, z, with all that a writer needs."""
    image = kind == "image"
    return {
        "key": KEYS[level],
        "size": list(_size(finest, level)[::-1]),
        "resolution": [8.0 * 2**level] * 3,
        "voxel_offset": [0, 0, 0],
        "chunk_sizes": [[CHUNK] * 3],
        "sharding": {
            "@type": "neuroglancer_uint64_sharded_v1",
            "hash": "identity",
            "preshift_bits": 9,
            "minishard_bits": 6,
            "shard_bits": max(0, 15 - 3 * level),
            "minishard_index_encoding": "gzip",
            "data_encoding": "raw" if image else "gzip",
        },
        **(
            {"encoding": "jpeg"}
            if image
            else {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
        ),
    }


def _write(store: Path, finest: Shape, kind: str, level: int, box: BoundingBox, voxels: NDArray[Any]) -> None:
    """The chunks of `box` of one level, as tensorstore writes them."""
    import tensorstore

    scale = _scale(finest, kind, level)
    scale["chunk_size"] = scale.pop("chunk_sizes")[0]
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{store.resolve()}/"},
        "open": True,
        "create": True,
        "multiscale_metadata": {"data_type": voxels.dtype.name, "num_channels": 1, "type": kind},
        "scale_metadata": scale,
    }
    z, y, x = box.slices
    with tensorstore.Transaction() as transaction:
        tensorstore.open(spec).result().with_transaction(transaction)[x, y, z, 0] = voxels.T


def _write_info(store: Path, finest: Shape, kind: str) -> None:
    """All nine levels; of the micrographs without two keys, as the portal has it."""
    scales = [_scale(finest, kind, level) for level in range(LEVELS)]
    if kind == "image":
        for scale in scales:
            del scale["sharding"]["data_encoding"], scale["voxel_offset"]
    info = {
        "@type": "neuroglancer_multiscale_volume",
        "data_type": "uint8" if kind == "image" else "uint64",
        "num_channels": 1,
        "scales": scales,
        "type": kind,
    }
    (store / "info").write_text(json.dumps(info), encoding="utf-8")
