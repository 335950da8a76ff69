"""Containers made on the spot: one array in every layout of keys, and images of several levels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import zarr
from numpy.typing import NDArray

from em_pipeline.formats.arrays import Fetch

CHUNKS = (4, 8, 8)
Write = Callable[[Path, NDArray[Any]], Path]


def _zarr(path: Path, voxels: NDArray[Any], **how: Any) -> Path:
    array = zarr.create_array(path, shape=voxels.shape, dtype=voxels.dtype, **({"chunks": CHUNKS} | how))
    array[...] = voxels
    return path


def zarr2(path: Path, voxels: NDArray[Any], **how: Any) -> Path:
    """Zarr v2, keys `0.1.2`."""
    return _zarr(path, voxels, zarr_format=2, **how)


def zarr2_nested(path: Path, voxels: NDArray[Any]) -> Path:
    """Zarr v2, keys `0/1/2`."""
    return zarr2(path, voxels, chunk_key_encoding={"name": "v2", "separator": "/"})


def zarr3(path: Path, voxels: NDArray[Any], **how: Any) -> Path:
    """Zarr v3, keys `c/0/1/2`."""
    return _zarr(path, voxels, zarr_format=3, **how)


def zarr3_dotted(path: Path, voxels: NDArray[Any]) -> Path:
    """Zarr v3, keys `c.0.1.2`."""
    return zarr3(path, voxels, chunk_key_encoding={"name": "default", "separator": "."})


def zarr3_v2_keys(path: Path, voxels: NDArray[Any]) -> Path:
    """Zarr v3, keys `0.1.2`."""
    return zarr3(path, voxels, chunk_key_encoding={"name": "v2", "separator": "."})


def zarr3_sharded(path: Path, voxels: NDArray[Any]) -> Path:
    """Zarr v3, shards of 2×2×2 chunks."""
    return zarr3(path, voxels, shards=tuple(2 * n for n in CHUNKS))


def n5(path: Path, voxels: NDArray[Any], **metadata: Any) -> Path:
    """N5, whose axes run x, y, z, keys `2/1/0`."""
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": {
            "dimensions": voxels.shape[::-1],
            "blockSize": CHUNKS[::-1],
            "dataType": voxels.dtype.name,
            "compression": {"type": "gzip"},
            **metadata,
        },
    }
    tensorstore.open(spec, create=True).result()[...] = voxels.T
    return path


WRITERS: tuple[Write, ...] = (zarr2, zarr2_nested, zarr3, zarr3_dotted, zarr3_v2_keys, zarr3_sharded, n5)


def dump(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def ngff(
    root: Path, voxels: NDArray[Any], *, version: str = "0.4", unit: str | None = "nanometer", **more: Any
) -> Path:
    """OME-Zarr of two levels, s0 of 4 × 8 × 8 `unit` and s1, every second voxel, half a voxel on."""
    write = zarr3 if version == "0.5" else zarr2_nested
    named = {"type": "space"} | ({"unit": unit} if unit else {})
    multiscale = {
        "axes": [{"name": axis, **named} for axis in "zyx"],
        "datasets": [
            _dataset("s0", [4.0, 8.0, 8.0], [0.0, 0.0, 0.0]),
            _dataset("s1", [8.0, 16.0, 16.0], [2.0, 4.0, 4.0]),
        ],
        **more,
    }
    write(root / "s0", voxels)
    write(root / "s1", voxels[::2, ::2, ::2].copy())
    if version == "0.5":
        attributes = {"ome": {"version": version, "multiscales": [multiscale]}}
        dump(root / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
    else:
        dump(root / ".zgroup", {"zarr_format": 2})
        dump(root / ".zattrs", {"multiscales": [{"version": version, **multiscale}]})
    return root


def _dataset(path: str, scale: list[float], translation: list[float]) -> dict[str, Any]:
    steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
    return {"path": path, "coordinateTransformations": steps}


def fetch_of(documents: dict[str, Any]) -> Fetch:
    """A remote container that holds only these JSON documents."""

    def fetch(key: str) -> bytes | None:
        return json.dumps(documents[key]).encode() if key in documents else None

    return fetch


def zarray(shape: tuple[int, ...], chunks: tuple[int, ...], **changed: Any) -> dict[str, Any]:
    """A `.zarray` document."""
    return {
        "zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": "|u1", "compressor": None,
        "filters": None, "fill_value": 0, "order": "C", "dimension_separator": "/", **changed,
    }  # fmt: skip


def stored_files(root: Path) -> list[Path]:
    """The chunk and shard files below `root`."""
    metadata = ("zarr.json", ".zarray", ".zattrs", ".zgroup", "attributes.json")
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name not in metadata)


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b)
