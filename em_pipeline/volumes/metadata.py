"""The zarr.json documents of a volume: OME-Zarr 0.5 on zarr v3, written strictly, read back as strictly.

Sources: NGFF 0.5 (multiscales, axes, coordinateTransformations, labels, image-label); zarr v3 core
specification; the zarr v3 codecs `sharding_indexed`, `bytes`, `crc32c`, `zstd`, `blosc`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.volumes.codec import RECIPES, ChunkCodec
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan
from em_pipeline.volumes.tiling import grid

AXES: Final = ("z", "y", "x")
GROUP: Final = "zarr.json"
LABELS: Final = "labels/zarr.json"
FILL_VALUE: Final = 0
# Of a label image, seen from its group below `labels/`.
OF_ITS_IMAGE: Final = {"image": "../../"}
VERSION: Final = "0.5"
_METHODS: Final = {
    "image": ("mean", "mean_2x", "Mean of the voxels of each cell, halves rounded up"),
    "labels": ("mode", "mode_2x", "Most frequent label of each cell, the smallest id among equals"),
}
_INDEX_CODECS: Final = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


@dataclass(frozen=True)
class LevelInfo:
    """One stored level. Shapes are voxels, z-y-x; `translation_nm` is the centre of the first voxel."""

    index: int
    shape: Shape
    chunk_shape: Shape
    shard_shape: Shape
    dtype: np.dtype[Any]
    voxel_size: VoxelSize
    translation_nm: tuple[float, float, float]

    @property
    def chunk_grid(self) -> Shape:
        return grid(self.shape, self.chunk_shape)

    @property
    def shard_grid(self) -> Shape:
        return grid(self.shape, self.shard_shape)

    @property
    def chunks_per_shard(self) -> Shape:
        return grid(self.shard_shape, self.chunk_shape)

    def locate(self, chunk: tuple[int, int, int]) -> tuple[str, Shape]:
        """The shard that holds a chunk, as a path below the volume, and the chunk's place inside it."""
        pairs = tuple(zip(chunk, self.chunks_per_shard, strict=True))
        return shard_path(self.index, Shape(*(c // n for c, n in pairs))), Shape(*(c % n for c, n in pairs))

    def valid_shape(self, chunk: tuple[int, int, int]) -> Shape:
        """How much of a chunk lies inside the volume, voxels."""
        parts = zip(chunk, self.chunk_shape, self.shape, strict=True)
        return Shape(*(min(size, extent - index * size) for index, size, extent in parts))


@dataclass(frozen=True)
class VolumeInfo:
    """What a volume's documents say."""

    name: str
    kind: Kind
    codec: ChunkCodec
    levels: tuple[LevelInfo, ...]


def shard_path(level: int, shard: tuple[int, int, int]) -> str:
    """Path of a shard below the volume: zarr v3 default chunk key encoding, separator `/`."""
    z, y, x = shard
    return f"{level}/c/{z}/{y}/{x}"


def array_path(level: int) -> str:
    return f"{level}/zarr.json"


def documents(plan: RechunkPlan, name: str, source: Mapping[str, str]) -> dict[str, bytes]:
    """Every zarr.json of the planned volume, by path below it; the same bytes for the same plan.

    `source` says of labels which image they belong to: `OF_ITS_IMAGE`, or nothing where there is none.
    """
    texts = {GROUP: _group(plan, name, source)} | {
        array_path(lv.index): _array(plan, lv) for lv in plan.levels
    }
    if plan.labels:
        ome = {"version": VERSION, "labels": list(plan.labels)}
        texts[LABELS] = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
    return {
        path: f"{json.dumps(document, indent=2, allow_nan=False)}\n".encode()
        for path, document in texts.items()
    }


def level_info(plan: RechunkPlan, level: LevelPlan) -> LevelInfo:
    """The level as it will be once written."""
    return LevelInfo(
        level.index,
        level.shape,
        level.chunk_shape,
        level.shard_shape,
        plan.dtype,
        level.voxel_size,
        level.translation_nm,
    )


def read_documents(volume: Blobs) -> dict[str, bytes]:
    """The documents of a volume. Raises `NotFound` without the group's, `ChunkCorrupt` without an array's."""
    try:
        found = {GROUP: volume.read(GROUP)}
    except NotFound as error:
        raise NotFound(f"Open the volume {volume.url}", "it has no zarr.json") from error
    try:
        for dataset in _multiscale(json.loads(found[GROUP]))["datasets"]:
            path = f"{dataset['path']}/zarr.json"
            found[path] = volume.read(path)
        if volume.size(LABELS) is not None:
            found[LABELS] = volume.read(LABELS)
    except (NotFound, ValueError, KeyError, TypeError, IndexError) as error:
        raise ChunkCorrupt(
            f"Read the documents of {volume.url}", f"{type(error).__name__}: {error}"
        ) from error
    return found


def labels(found: Mapping[str, bytes]) -> tuple[str, ...]:
    """Folders of the label images that documents which `documents` made list."""
    if LABELS not in found:
        return ()
    return tuple(json.loads(found[LABELS])["attributes"]["ome"]["labels"])


def parse(found: Mapping[str, bytes]) -> VolumeInfo:
    """Levels and codec from documents that `documents` made. Raises `ChunkCorrupt` for any others."""
    try:
        multiscale = _multiscale(json.loads(found[GROUP]))
        levels = tuple(
            _level(index, dataset, json.loads(found[f"{dataset['path']}/zarr.json"]))
            for index, dataset in enumerate(multiscale["datasets"])
        )
        codec = _codec(json.loads(found[array_path(0)]), levels[0].dtype)
        kind: Kind = "labels" if multiscale["type"] == "mode" else "image"
        return VolumeInfo(multiscale["name"], kind, codec, levels)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ChunkCorrupt("Read a volume's zarr.json", f"{type(error).__name__}: {error}") from error


def _group(plan: RechunkPlan, name: str, source: Mapping[str, str]) -> dict[str, Any]:
    kind, method, description = _METHODS[plan.kind]
    multiscale = {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in AXES],
        "datasets": [_dataset(level) for level in plan.levels],
        "type": kind,
        "metadata": {
            "description": description,
            "method": f"em_pipeline.volumes.downsample.{method}",
            "factors": [list(level.factors) for level in plan.levels[:-1]],
        },
    }
    ome: dict[str, Any] = {"version": VERSION, "multiscales": [multiscale]}
    if plan.kind == "labels":
        ome["image-label"] = {"version": VERSION, **({"source": dict(source)} if source else {})}
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}


def _dataset(level: LevelPlan) -> dict[str, Any]:
    return {
        "path": str(level.index),
        "coordinateTransformations": [
            {"type": "scale", "scale": list(level.voxel_size)},
            {"type": "translation", "translation": list(level.translation_nm)},
        ],
    }


def _array(plan: RechunkPlan, level: LevelPlan) -> dict[str, Any]:
    sharding = {
        "chunk_shape": list(level.chunk_shape),
        "codecs": plan.chunk_codec.metadata(),
        "index_codecs": _INDEX_CODECS,
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(level.shape),
        "data_type": plan.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(level.shard_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": FILL_VALUE if plan.dtype.kind in "iu" else float(FILL_VALUE),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": list(AXES),
    }


def _multiscale(group: dict[str, Any]) -> dict[str, Any]:
    multiscales: list[dict[str, Any]] = group["attributes"]["ome"]["multiscales"]
    return multiscales[0]


def _level(index: int, dataset: dict[str, Any], array: dict[str, Any]) -> LevelInfo:
    scale, translation = (t[t["type"]] for t in dataset["coordinateTransformations"])
    sharding = array["codecs"][0]["configuration"]
    return LevelInfo(
        index=index,
        shape=Shape(*array["shape"]),
        chunk_shape=Shape(*sharding["chunk_shape"]),
        shard_shape=Shape(*array["chunk_grid"]["configuration"]["chunk_shape"]),
        dtype=np.dtype(array["data_type"]),
        voxel_size=VoxelSize(z=scale[0], y=scale[1], x=scale[2]),
        translation_nm=(translation[0], translation[1], translation[2]),
    )


def _codec(array: dict[str, Any], dtype: np.dtype[Any]) -> ChunkCodec:
    chain = array["codecs"][0]["configuration"]["codecs"]
    for name in RECIPES:
        if (codec := ChunkCodec(name, dtype)).metadata() == chain:
            return codec
    raise ValueError(f"chunks are encoded in a way that is not ours: {chain}")
