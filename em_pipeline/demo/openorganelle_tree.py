"""The containers of OpenOrganelle's bucket, generated: zarr v2 and N5, with its names and its metadata."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.demo.specimen import specimen
from em_pipeline.domain.geometry import BoundingBox, Shape

Array = NDArray[Any]
Triple = tuple[float, float, float]

NACC_SHAPE = Shape(564, 2520, 2596)
NACC_VOXEL_NM: Triple = (2.96, 4.0, 4.0)
NACC_LEVELS = 9
# The finest level that is generated whole; s3 has 70×315×324 voxels.
FINEST_WHOLE = 3
# Chunks of s0 that are held: 1×2×2 of them.
REGION = BoundingBox.at((256, 1216, 1280), (64, 128, 128))
CHUNK = 64
# Siblings of the real volume use about 5000 to 6000 of int16's range.
DARKEST, CONTRAST = 5000, 4
# Nuclei: centre and radii in voxels of s3 (z-y-x), and an id that 32 bits cannot hold.
NUCLEI = (
    ((30, 90, 100), (24, 46, 52), 2**33 + 1),
    ((44, 210, 190), (20, 40, 44), 2**33 + 2),
)
KIDNEY_SHAPE = Shape(96, 128, 140)
KIDNEY_VOXEL_NM: Triple = (8.0, 8.0, 8.0)
KIDNEY_LEVELS = 3


def write_nacc(folder: Path) -> None:
    """`jrc_mus-nacc-2.zarr` with its two reconstructions, in `folder`."""
    root = folder / "jrc_mus-nacc-2.zarr"
    em, nuclei = _nacc_voxels()
    for group in ("", "recon-1", "recon-1/labels", "recon-2", "recon-2/em", "recon-2/labels"):
        _write_json(root / group / ".zgroup", {"zarr_format": 2})
    _write_json(root / "recon-1/labels/.zattrs", {"cellmap": {}})
    image = root / "recon-2/em/fibsem-int16"
    _write_multiscale(image, NACC_VOXEL_NM, NACC_LEVELS)
    shape = NACC_SHAPE
    for level in range(NACC_LEVELS):
        array = _create_zarr(image / f"s{level}", shape, "<i2")
        if level == 0:
            array[REGION.slices] = _int16(specimen(REGION.shape, seed=7, voxel_size_nm=NACC_VOXEL_NM))
        if level >= FINEST_WHOLE:
            array[...] = em
            em = _halved(em)
        shape = Shape(*(n // 2 for n in shape))
    labels = root / "recon-2/labels/inference/segmentations/nuc"
    _write_multiscale(labels, _voxel_nm(NACC_VOXEL_NM, FINEST_WHOLE), 3)
    for level in range(3):
        _create_zarr(labels / f"s{level}", Shape(*nuclei.shape), "<u8")[...] = nuclei
        nuclei = nuclei[1::2, 1::2, 1::2][tuple(slice(n // 2) for n in nuclei.shape)]


def write_kidney(folder: Path) -> None:
    """`jrc_mus-kidney.n5`, an older dataset in two data types, in `folder`."""
    root = folder / "jrc_mus-kidney.n5"
    _write_json(root / "attributes.json", {"n5": "2.0.0"})
    voxels = specimen(KIDNEY_SHAPE, seed=11, voxel_size_nm=KIDNEY_VOXEL_NM)
    for name, values in (("fibsem-uint8", voxels), ("fibsem-uint16", voxels.astype(np.uint16) * 200)):
        _write_n5_image(root / "em" / name, values)


def _nacc_voxels() -> tuple[Array, Array]:
    """EM (int16) and nuclei (uint64) of the level s3; outside the tissue, at the far corner, both are 0."""
    shape = Shape(*(n // 2**FINEST_WHOLE for n in NACC_SHAPE))
    grey = specimen(shape, seed=5, voxel_size_nm=_voxel_nm(NACC_VOXEL_NM, FINEST_WHOLE)).astype(np.float32)
    nuclei = np.zeros(shape, np.uint64)
    z, y, x = np.ogrid[: shape.z, : shape.y, : shape.x]
    for centre, radii, label in NUCLEI:
        inside = sum(((at - c) / r) ** 2 for at, c, r in zip((z, y, x), centre, radii, strict=True)) < 1
        nuclei[inside] = label
        grey[inside] = 150 + (grey[inside] - 150) * 0.4
    em = _int16(grey)
    em[:, shape.y * 4 // 5 :, shape.x * 3 // 4 :] = 0
    return em, nuclei


def _int16(grey: Array) -> Array:
    return DARKEST + CONTRAST * grey.astype(np.int16)


def _halved(volume: Array) -> Array:
    """Means of 2×2×2 voxels; a last odd plane, row or column is dropped, as the portal's sizes show."""
    even = volume[tuple(slice(n // 2 * 2) for n in volume.shape)].astype(np.int32)
    z, y, x = (n // 2 for n in even.shape)
    means: Array = even.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5)).astype(volume.dtype)
    return means


def _voxel_nm(finest: Triple, level: int) -> Triple:
    z, y, x = (size * 2**level for size in finest)
    return z, y, x


def _translation_nm(finest: Triple, level: int) -> list[float]:
    """Where the centre of the first voxel lies: that of the voxels that it is the mean of."""
    return [size * (2**level - 1) / 2 for size in finest]


def _write_multiscale(group: Path, finest: Triple, levels: int) -> None:
    """OME-NGFF 0.4 as the portal writes it: an empty name, and null where it says nothing."""
    datasets = [
        {
            "path": f"s{level}",
            "coordinateTransformations": [
                {"type": "scale", "scale": list(_voxel_nm(finest, level))},
                {"type": "translation", "translation": _translation_nm(finest, level)},
            ],
        }
        for level in range(levels)
    ]
    multiscale = {
        "version": "0.4",
        "name": "",
        "type": None,
        "metadata": None,
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}],
        "datasets": datasets,
    }
    _write_json(group / ".zgroup", {"zarr_format": 2})
    _write_json(group / ".zattrs", {"multiscales": [multiscale]})


def _create_zarr(folder: Path, shape: Shape, dtype: str) -> Any:
    """An empty zarr v2 array whose chunks of nothing but the fill value 0 will not be stored."""
    metadata = {
        "shape": list(shape),
        "chunks": [CHUNK] * 3,
        "dtype": dtype,
        "fill_value": 0,
        "order": "C",
        "filters": None,
        "compressor": {"id": "zstd", "level": 1},
        "dimension_separator": "/",
    }
    return _created("zarr", folder, metadata)


def _write_n5_image(group: Path, voxels: Array) -> None:
    """Levels by the portal's own conventions; N5's dimensions are x, y, z."""
    datasets: list[dict[str, Any]] = []
    for level in range(KIDNEY_LEVELS):
        path = f"s{level}"
        metadata = {
            "dimensions": list(voxels.shape[::-1]),
            "blockSize": [CHUNK] * 3,
            "dataType": voxels.dtype.name,
            "compression": {"type": "gzip", "level": 1},
        }
        _created("n5", group / path, metadata)[...] = voxels.T
        voxel_nm = list(_voxel_nm(KIDNEY_VOXEL_NM, level))
        transform = {
            "axes": ["z", "y", "x"],
            "units": ["nm"] * 3,
            "scale": voxel_nm,
            "translate": _translation_nm(KIDNEY_VOXEL_NM, level),
        }
        attributes = json.loads((group / path / "attributes.json").read_text())
        attributes |= {
            "transform": transform,
            "pixelResolution": {"unit": "nm", "dimensions": voxel_nm[::-1]},
        }
        _write_json(group / path / "attributes.json", attributes)
        datasets.append({"path": path, "transform": transform})
        voxels = _halved(voxels)
    factors = [[2**level] * 3 for level in range(KIDNEY_LEVELS)]
    _write_json(
        group / "attributes.json",
        {
            "multiscales": [{"name": group.name, "datasets": datasets}],
            "scales": factors,
            "axes": ["x", "y", "z"],
            "units": ["nm"] * 3,
            "pixelResolution": {"unit": "nm", "dimensions": list(KIDNEY_VOXEL_NM[::-1])},
        },
    )


def _created(driver: str, folder: Path, metadata: dict[str, Any]) -> Any:
    import tensorstore

    kvstore = {"driver": "file", "path": f"{folder.resolve()}/"}
    spec = {"driver": driver, "kvstore": kvstore, "metadata": metadata, "create": True}
    return tensorstore.open(spec).result()


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
