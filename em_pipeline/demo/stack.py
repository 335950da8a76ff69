"""A folder of TIFF slices on this machine, for the source `files`."""

import os
from pathlib import Path

import tifffile

from em_pipeline.demo.specimen import specimen

SHAPE = (40, 300, 280)


def write_tiff_stack(folder: Path, shape: tuple[int, int, int] = SHAPE, seed: int = 3) -> Path:
    """Write `slice_<z>.tif` for each plane of a specimen of `shape` (z-y-x), unless the folder holds them.

    The files say nothing of the voxel size, as is usual.
    """
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    for z, plane in enumerate(specimen(shape, seed=seed)):
        tifffile.imwrite(temporary / f"slice_{z}.tif", plane, photometric="minisblack", compression="zlib")
    temporary.replace(folder)
    return folder
