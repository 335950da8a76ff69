"""Whether a volume is an image, whose pyramid has means, or labels, whose pyramid has ids that there are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.lazy_volume import SAID_LABELS, Kind
from em_pipeline.domain.spec import DatasetSpec

_REST = {
    "image": "a coarser voxel is the mean of its cell",
    "labels": "a coarser voxel is the most frequent id of its cell",
}


class Chosen(NamedTuple):
    """A kind, and what decided it; empty where nothing did, which makes an image."""

    kind: Kind
    because: str = ""

    def __str__(self) -> str:
        return f"kept as {self.kind}, {_REST[self.kind]}: {self.because or 'nothing says labels'}"


AN_IMAGE = Chosen("image")


def kind_of(spec: DatasetSpec, dtype: np.dtype[Any], metadata: Mapping[str, Any]) -> Chosen:
    """The spec's word, else the source's (`SAID_LABELS` of its metadata), else the data type's.

    Integers of 64 bits are ids: no microscope measures so finely. Raises `InputRefused` where a person calls
    floats labels.
    """
    integers = dtype.kind in "iu"
    if spec.kind == "labels" and not integers:
        raise InputRefused(
            f"Take {spec.dataset_id} as labels",
            f"its voxels are {dtype.name}, not integer ids",
            "Leave --kind labels (`kind` in the spec) out",
        )
    if spec.kind is not None:
        return Chosen(spec.kind, "said with --kind (`kind` in the spec)")
    if integers and SAID_LABELS in metadata:
        return Chosen("labels", str(metadata[SAID_LABELS]))
    if integers and dtype.itemsize == 8:
        return Chosen("labels", f"{dtype.name} is a type of ids; --kind image if these are grey values")
    return AN_IMAGE
