"""Small volumes written for tests, what they should hold, and what became of their files."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.plan import RechunkPlan
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.rechunk import WrittenVolume, rechunk
from em_pipeline_tests.volumes.arrays import ArrayVolume
from em_pipeline_tests.volumes.planned import plan_with

CHUNK, SHARD = Shape(4, 4, 4), Shape(8, 8, 8)
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


def small_plan(array: NDArray[Any], **options: Any) -> RechunkPlan:
    """A plan in chunks of 4³ and shards of 8³ voxels, so that a few thousand voxels make many of both."""
    options = {
        "voxel_size": VoxelSize(z=8, y=8, x=8),
        "source_chunk": Shape(1, 1, array.shape[2]),
        "memory_budget": 1 << 20,
        "threads": 2,
        "chunk_shape": CHUNK,
        "shard_shape": SHARD,
    } | options
    return plan_with(Shape(*array.shape), array.dtype, **options)


def write(array: NDArray[Any], folder: Path, **options: Any) -> WrittenVolume:
    """All of `array` as a volume in `folder`."""
    box = BoundingBox.of_shape(array.shape)
    place = LocalBlobs(folder)
    return rechunk(
        ArrayVolume(array), box, small_plan(array, **options), place, name="test", progress=Silent()
    )


def stored_in(folder: Path, label: str | None = None) -> VolumeReader | None:
    """The complete volume in `folder`, or its label image; None where none is complete."""
    ledger = "ledger.parquet" if label is None else f"labels.{label}.ledger.parquet"
    return open_in(folder, label) if (folder / ledger).exists() else None


def open_in(folder: Path, label: str | None = None) -> VolumeReader:
    """The volume in `folder`, or its label image."""
    return VolumeReader.open(*places(folder, label))


def places(folder: Path, label: str | None = None) -> tuple[LocalBlobs, LocalBlobs, str]:
    """Where the volume in `folder`, or its label image, and its ledger lie."""
    ledgers = LocalBlobs(folder)
    if label is None:
        return ledgers.below("volume.ome.zarr"), ledgers, "ledger.parquet"
    return ledgers.below(f"volume.ome.zarr/labels/{label}"), ledgers, f"labels.{label}.ledger.parquet"


def path_of(written: WrittenVolume) -> Path:
    """The folder of a volume that was written on this machine."""
    return Path(written.volume.url)


def random_voxels(shape: tuple[int, int, int], dtype: str, seed: int = 0) -> NDArray[Any]:
    """Voxels over the whole range of an integer type, or normal floats; one corner is zero."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        voxels = rng.normal(0, 1000, shape).astype(kind)
    else:
        info = np.iinfo(kind)
        voxels = rng.integers(info.min, info.max, shape, kind, endpoint=True)
    voxels[:4, :4, :4] = 0
    return voxels


def reference_mean(array: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    """Mean of the voxels that exist in each cell, by Python integers or float64."""
    exact = object if array.dtype.kind in "iu" else np.float64
    total, count = array.astype(exact), np.ones(array.shape, exact)
    for axis, factor in enumerate(factors):
        starts = np.arange(0, total.shape[axis], factor)
        total, count = np.add.reduceat(total, starts, axis), np.add.reduceat(count, starts, axis)
    mean = (2 * total + count) // (2 * count) if exact is object else total / count
    return mean.astype(array.dtype)


def reference_mode(array: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    """Most frequent label of each cell, the smallest among equals, by counting."""
    shape = tuple(-(-n // f) for n, f in zip(array.shape, factors, strict=True))
    out = np.empty(shape, array.dtype)
    for index in np.ndindex(*shape):
        cell = array[tuple(slice(i * f, i * f + f) for i, f in zip(index, factors, strict=True))]
        counts = Counter(cell.ravel().tolist())
        out[index] = min(counts, key=lambda label: (-counts[label], label))
    return out


def reference_pyramid(array: NDArray[Any], plan: RechunkPlan) -> list[NDArray[Any]]:
    reduce = {"image": reference_mean, "labels": reference_mode}[plan.kind]
    levels = [array]
    for level in plan.levels[:-1]:
        levels.append(reduce(levels[-1], level.factors))
    return levels


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kinds_for(dtype: str) -> tuple[Kind, ...]:
    return ("image", "labels") if dtype.startswith("uint") else ("image",)
