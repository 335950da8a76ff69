"""igneous: `with_igneous.py INPUT OUTPUT PROCESSES`, a precomputed volume and its downsampled levels.

cloud-volume writes level 0 slab by slab, igneous's own tasks the levels above, on `PROCESSES` processes, one
level at a time: in one pass over three levels, 1024³ voxels are one task, which one process does. Chunks of
128³ in zstd, which cloud-volume offers; its default is gzip.
"""

import sys
from pathlib import Path

import tifffile
from cloudvolume import CloudVolume
from finish import sync_tree
from igneous.task_creation import create_downsampling_tasks
from taskqueue import LocalTaskQueue

CHUNK = 128


def main() -> None:
    source, output, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    voxels = tifffile.memmap(source, mode="r")
    place = f"precomputed://file://{output.resolve()}"
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="image",
        data_type=voxels.dtype.name,
        encoding="raw",
        resolution=(8, 8, 8),
        voxel_offset=(0, 0, 0),
        volume_size=voxels.shape[::-1],
        chunk_size=(CHUNK, CHUNK, CHUNK),
    )
    volume = CloudVolume(place, info=info, compress="zstd", parallel=processes, progress=False)
    volume.commit_info()
    for z in range(0, voxels.shape[0], CHUNK):
        slab = voxels[z : z + CHUNK]
        volume[:, :, z : z + len(slab)] = slab.T
    levels = max(0, (max(voxels.shape) - 1) // CHUNK).bit_length()
    queue = LocalTaskQueue(parallel=processes, progress=False)
    for level in range(levels):
        if level not in CloudVolume(place).available_mips:
            break  # it makes no level of which an axis is shorter than a chunk
        queue.insert_all(
            create_downsampling_tasks(
                place,
                mip=level,
                num_mips=1,
                factor=(2, 2, 2),
                chunk_size=(CHUNK, CHUNK, CHUNK),
                compress="zstd",
            )
        )
    sync_tree(output)


if __name__ == "__main__":
    main()
