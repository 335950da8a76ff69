"""Whether a volume is what OME-Zarr 0.5 says, judged apart from the writer's own parser.

Rules of the groups: OME-NGFF 0.5, "multiscales" and "labels" metadata. Arrays are opened by tensorstore,
whose zarr v3 driver refuses what the zarr v3 core specification does not allow. The tests hold this module
and ome-zarr-models to the same verdicts.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChunkCorrupt, NotFound, StorageFailed
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.wording import counted
from em_pipeline.volumes.places import is_remote

if TYPE_CHECKING:
    from numpy.typing import NDArray

AXES = ("z", "y", "x")
_ZARR: Final = {"driver": "zarr3"}
_PIECE: Final = 16 << 20
"""Bytes of a shard that are in memory while it is copied."""


def ngff_faults(volume: Blobs) -> list[str]:
    """What is wrong with the metadata of a volume and its label images, one line each; empty: nothing.

    Raises `StorageFailed` where the storage does not answer.
    """
    try:
        group = json.loads(volume.read("zarr.json"))
        faults = list(_group_faults(volume, group))
        labels = volume.below("labels")
        if next(labels.names(), None) is not None:
            (multiscale,) = group["attributes"]["ome"]["multiscales"]
            faults += _labels_faults(labels, len(multiscale["datasets"]))
    except (NotFound, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return [f"{type(error).__name__}: {error}"]
    return faults


def _labels_faults(labels: Blobs, levels: int) -> Iterator[str]:
    group = json.loads(labels.read("zarr.json"))
    if (group["zarr_format"], group["node_type"]) != (3, "group"):
        yield "labels/zarr.json is not that of a zarr v3 group"
    listed = group["attributes"]["ome"]["labels"]
    there = sorted({name.partition("/")[0] for name in labels.names()} - {"zarr.json"})
    if there != sorted(listed):
        yield f"labels/zarr.json lists {sorted(listed)}, there are {there}"
    for name in there:
        found = ngff_faults(labels.below(name)) or _label_faults(labels.below(name), levels)
        yield from (f"labels/{name}: {fault}" for fault in found)


def _label_faults(label: Blobs, levels: int) -> Iterator[str]:
    ome = json.loads(label.read("zarr.json"))["attributes"]["ome"]
    source = ome.get("image-label", {}).get("source", {}).get("image")
    if source != "../../":
        yield f"the source of its image-label is {source!r}, not the image it lies in"
    datasets = ome["multiscales"][0]["datasets"]
    if len(datasets) != levels:
        yield f"it has {counted(len(datasets), 'level')}, its image {levels}"
    if np.dtype(_open(label, datasets[0]["path"]).dtype.numpy_dtype).kind not in "iu":
        yield "its voxels are not integers"


def read_elsewhere(volume: Blobs, level: str, box: BoundingBox) -> "NDArray[Any]":
    """Voxels of `box` (z-y-x) as tensorstore reads them. Raises `ChunkCorrupt` where it cannot.

    `StorageFailed` where storage refuses. From an object store, the shards that hold them come to a
    temporary folder first.
    """
    try:
        array = _open(volume, level)
        if is_remote(volume):
            return _read_copied(volume.below(level), array, box)
        voxels: NDArray[Any] = array[box.slices].read().result()
    except ValueError as error:
        tried = f"Read {box} of level {level} in {volume.url} with tensorstore"
        raise ChunkCorrupt(tried, str(error)) from error
    return voxels


def _open(volume: Blobs, level: str) -> Any:
    """An array as tensorstore opens it: in place on a disk, else its document from memory.

    Its own drivers for object stores find other credentials and endpoints than ours, or wait for ever.
    """
    import tensorstore

    place = volume.below(level)
    if not is_remote(volume):
        return tensorstore.open(_ZARR | {"kvstore": place.kvstore()}, open=True, read=True).result()
    context = tensorstore.Context()
    memory = tensorstore.KvStore.open({"driver": "memory"}, context=context).result()
    with suppress(NotFound):  # for tensorstore to judge
        memory.write("zarr.json", place.read("zarr.json")).result()
    spec = _ZARR | {"kvstore": {"driver": "memory"}}
    return tensorstore.open(spec, open=True, read=True, context=context).result()


def _read_copied(place: Blobs, array: Any, box: BoundingBox) -> "NDArray[Any]":
    """Voxels of `box` from copies of what holds them, which are too large for memory.

    Raises `StorageFailed` where either place refuses.
    """
    import tensorstore

    try:
        with TemporaryDirectory() as folder:
            for name in ("zarr.json", *_shards(array, box)):
                _copy(place, name, Path(folder, name))
            spec = _ZARR | {"kvstore": {"driver": "file", "path": f"{folder}/"}}
            copied = tensorstore.open(spec, open=True, read=True).result()
            voxels: NDArray[Any] = copied[box.slices].read().result()
    except OSError as error:
        tried = f"Copy shards of {place.url} to a folder below {gettempdir()}"
        to_do = "Make room there, or set TMPDIR to another folder"
        raise StorageFailed(tried, error.strerror or str(error), to_do) from error
    return voxels


def _copy(place: Blobs, name: str, path: Path) -> None:
    """A blob, where there is one: that there is none is for tensorstore to judge, which takes it for fill."""
    size = place.size(name)
    if size is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, _PIECE):
            file.write(place.read_range(name, start, min(_PIECE, size - start)))


def _shards(array: Any, box: BoundingBox) -> Iterator[str]:
    """Names of the shards that `box` meets: zarr v3, default chunk key encoding."""
    sizes = array.chunk_layout.write_chunk.shape
    ranges = (range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, sizes, strict=True))
    for place in product(*ranges):
        yield "/".join(("c", *map(str, place)))


def _group_faults(volume: Blobs, group: dict[str, Any]) -> Iterator[str]:
    if (group["zarr_format"], group["node_type"]) != (3, "group"):
        yield "zarr.json is not that of a zarr v3 group"
    ome = group["attributes"]["ome"]
    if ome["version"] != "0.5":
        yield f"version is {ome['version']!r}, not '0.5'"
    (multiscale,) = ome["multiscales"]
    if multiscale["axes"] != [{"name": axis, "type": "space", "unit": "nanometer"} for axis in AXES]:
        yield f"axes are not z, y, x in nanometers: {multiscale['axes']}"
    datasets = multiscale["datasets"]
    for dataset in datasets:
        yield from _transform_faults(dataset)
    arrays = [_open(volume, dataset["path"]) for dataset in datasets]
    for dataset, array in zip(datasets, arrays, strict=True):
        if array.domain.labels != AXES:
            yield f"dimensions of level {dataset['path']} are {array.domain.labels}, not z, y, x"
        if array.dtype != arrays[0].dtype:
            yield f"level {dataset['path']} is {array.dtype.name}, level 0 {arrays[0].dtype.name}"
    for finer, coarser in pairwise(arrays):
        if not np.all(np.less_equal(coarser.shape, finer.shape)):
            yield f"levels do not shrink: {finer.shape} is followed by {coarser.shape}"


def _transform_faults(dataset: dict[str, Any]) -> Iterator[str]:
    transforms = dataset["coordinateTransformations"]
    if [transform["type"] for transform in transforms] not in (["scale"], ["scale", "translation"]):
        yield f"level {dataset['path']} has not one scale and at most one translation after it"
        return
    for transform in transforms:
        numbers = transform[transform["type"]]
        if len(numbers) != len(AXES) or not all(isinstance(n, int | float) for n in numbers):
            yield f"the {transform['type']} of level {dataset['path']} is not three numbers: {numbers}"
    if not all(n > 0 for n in transforms[0]["scale"]):
        yield f"the scale of level {dataset['path']} is not positive: {transforms[0]['scale']}"
