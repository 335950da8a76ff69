"""The datasets of an HDF5 file that need not be here."""

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.formats.hdf5 import hdf5_volume, numeric_datasets, refuse_velox, unnameable_images
from em_pipeline.formats.headers import ImageHeaders, of_volume


def hdf5_headers(file: BinaryIO, path: Path) -> tuple[ImageHeaders, ...]:
    """Every dataset that can be read as an image, in the order of their names.

    Raises `UnsupportedFormat` where the file is damaged or holds none, saying why.
    """
    import h5py

    found: list[ImageHeaders] = []
    refusals: list[str] = []
    try:
        with h5py.File(file, "r") as opened:
            datasets = dict(numeric_datasets(opened))
            refuse_velox(path, opened, datasets)
            for name, shape in datasets.items():
                try:
                    volume = hdf5_volume(path, opened, name)
                    found.append(replace(of_volume(volume), name=name))
                except UnsupportedFormat as error:
                    refusals.append(f"{name} {shape}: {error.found}")
            refusals += (f"{name} (Latin-1): its name is not UTF-8" for name in unnameable_images(opened))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UnsupportedFormat(
            f"Read the headers of {path.name} as HDF5", str(error), "The file may be truncated or damaged"
        ) from error
    if not found:
        raise UnsupportedFormat(f"Inspect {path.name}", "; ".join(refusals) or "it holds no dataset", "")
    return tuple(found)
