"""Whether a volume is what OME-Zarr 0.5 says, as judged by others' code than the writer's."""

import json
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError


def ngff_faults(volume: Path) -> list[str]:
    """What is wrong with the metadata of a volume, empty where nothing is.

    The group's attributes and its arrays are parsed by ome-zarr-models (the OME-NGFF 0.5 models), the
    arrays opened by zarr-python; level 0 must be the largest and each array's dimensions named z, y, x.
    """
    import zarr
    from ome_zarr_models.v05.image import Image

    try:
        image = Image.from_zarr(zarr.open_group(volume, mode="r", zarr_format=3))
        multiscale = image.attributes.ome.multiscales[0]
        shapes = []
        for dataset in multiscale.datasets:
            array = zarr.open_array(volume / dataset.path, mode="r", zarr_format=3)
            shapes.append(tuple(array.shape))
            names = tuple(array.metadata.dimension_names or ())
            if names != ("z", "y", "x"):
                return [f"dimension names of level {dataset.path} are {names}, not z, y, x"]
    except (ValidationError, ValueError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
        return [f"{type(error).__name__}: {error}"]
    if any(larger < smaller for a, b in pairwise(shapes) for larger, smaller in zip(a, b, strict=True)):
        return [f"levels do not shrink: {shapes}"]
    return []
