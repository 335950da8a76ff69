"""Ours: `ours.py INPUT OUTPUT THREADS MEMORY_MIB`. The only place of the benchmark that knows the engine."""

import sys
from pathlib import Path

from em_pipeline.domain.geometry import BoundingBox, VoxelSize
from em_pipeline.domain.progress import Silent
from em_pipeline.formats.open import open_volume
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.memory import Means, for_voxels
from em_pipeline.volumes.plan import plan_rechunk
from em_pipeline.volumes.rechunk import rechunk


def main() -> None:
    source, output, threads, memory_mib = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
    voxels, threads = for_voxels(memory_mib << 20, threads)
    with open_volume([source]) as volume:
        plan = plan_rechunk(
            volume.shape,
            volume.dtype,
            VoxelSize(z=8, y=8, x=8),
            source_chunk=volume.decode_shape,
            means=Means(voxels, threads, volume.scratch_bytes),
        )
        box = BoundingBox.of_shape(volume.shape)
        rechunk(volume, box, plan, LocalBlobs(output), name="benchmark", progress=Silent())


if __name__ == "__main__":
    main()
