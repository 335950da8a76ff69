"""tensorstore writing level 0 alone: `with_tensorstore.py INPUT OUTPUT THREADS sharded|unsharded`.

Zarr v3, zstd level 1, chunks of 128³, one file each or in shards of 512³. Slabs are whole shards deep, so
that nothing is written twice. tensorstore flushes each file itself (`file_io_sync`).
"""

import json
import sys
from pathlib import Path
from typing import Any

import tensorstore

CHUNK, SHARD = 128, 512


def main() -> None:
    source, output, threads, layout = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    limits = {"data_copy_concurrency": {"limit": threads}, "file_io_concurrency": {"limit": threads}}
    context = tensorstore.Context(limits)
    voxels = _opened(source, context)
    written = _created(output, voxels.shape, str(voxels.dtype.name), layout, context)
    depth = SHARD if layout == "sharded" else CHUNK
    for z in range(0, voxels.shape[0], depth):
        stop = min(z + depth, voxels.shape[0])
        written[z:stop].write(voxels[z:stop]).result()


def _opened(source: Path, context: Any) -> Any:
    """The voxels: of a TIFF mapped into memory, which costs no copy, or of a zarr v2 array."""
    if source.is_file():
        import tifffile

        return tifffile.memmap(source, mode="r")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{source.resolve()}/"}}
    return tensorstore.open(spec, context=context, open=True, read=True).result()


def _created(output: Path, shape: tuple[int, ...], dtype: str, layout: str, context: Any) -> Any:
    encode: list[dict[str, Any]] = [
        {"name": "bytes"},
        {"name": "zstd", "configuration": {"level": 1}},
    ]
    edges = [min(SHARD, -(-n // CHUNK) * CHUNK) for n in shape] if layout == "sharded" else [CHUNK] * 3
    sharding = {"chunk_shape": [CHUNK] * 3, "codecs": encode, "index_codecs": json.loads(_INDEX)}
    codecs = [{"name": "sharding_indexed", "configuration": sharding}] if layout == "sharded" else encode
    metadata = {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": edges}},
        "codecs": codecs,
    }
    kvstore = {"driver": "file", "path": f"{output.resolve()}/0/"}
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}
    return tensorstore.open(spec, context=context).result()


_INDEX = '[{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]'


if __name__ == "__main__":
    main()
