"""An image of the demonstration IDR as OME-Zarr: zarr v2, version 0.4, a channel axis of length one."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

AXES = ("c", "z", "y", "x")
CHUNK = 64


def write_ome_zarr(root: Path, volume: NDArray[np.uint8], voxel_um: float, levels: int = 2) -> None:
    """Write a z-y-x `volume` of cubic voxels and its halvings below `root`, one channel, in micrometres."""
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in AXES[1:]]
    datasets = []
    for level in range(levels):
        step = 2**level
        _write_array(root / str(level), volume[None, ::step, ::step, ::step])
        scale = [1.0, *[voxel_um * step] * 3]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    multiscale = {"version": "0.4", "name": "", "axes": axes, "datasets": datasets}
    (root / ".zgroup").write_text(json.dumps({"zarr_format": 2}), encoding="utf-8")
    (root / ".zattrs").write_text(json.dumps({"multiscales": [multiscale]}), encoding="utf-8")


def _write_array(folder: Path, voxels: NDArray[np.uint8]) -> None:
    import tensorstore

    metadata = {
        "shape": list(voxels.shape),
        "chunks": [1, CHUNK, CHUNK, CHUNK],
        "dtype": "|u1",
        "fill_value": 0,
        "order": "C",
        "filters": None,
        "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
        "dimension_separator": "/",
    }
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{folder.resolve()}/"},
        "metadata": metadata,
        "create": True,
    }
    tensorstore.open(spec).result()[...] = voxels
