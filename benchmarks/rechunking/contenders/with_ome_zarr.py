"""ome-zarr-py: `with_ome_zarr.py INPUT OUTPUT THREADS`, a full pyramid by local means, through dask.

The TIFF is mapped into memory, and read in the chunks that are written: the fastest of the ways that its
documentation shows.
"""

import sys
from pathlib import Path

import dask
import dask.array
import tifffile
from finish import sync_tree
from ome_zarr.scale import Methods
from ome_zarr.writer import write_image
from zarr.codecs import ZstdCodec

CHUNK = 128


def main() -> None:
    source, output, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    voxels = tifffile.memmap(source, mode="r")
    levels = max(0, (max(voxels.shape) - 1) // CHUNK).bit_length()
    with dask.config.set(scheduler="threads", num_workers=threads):
        write_image(
            dask.array.from_array(voxels, chunks=(CHUNK, CHUNK, CHUNK)),
            str(output),
            axes="zyx",
            scale_factors=[dict.fromkeys("zyx", 2**level) for level in range(1, levels + 1)],
            method=Methods.LOCAL_MEAN,
            storage_options={"chunks": (CHUNK, CHUNK, CHUNK), "compressors": ZstdCodec(level=1)},
        )
    sync_tree(output)


if __name__ == "__main__":
    main()
