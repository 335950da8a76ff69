"""A volume in every format that is read, made on the spot: what any reader must do is tested on all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.raw_layout import RawLayout
from em_pipeline.formats.dm import DTYPES as DM_DTYPES
from em_pipeline.formats.open import open_volume
from em_pipeline_tests.formats import test_dm, test_mrc, test_precomputed
from em_pipeline_tests.formats.containers import n5, zarr2, zarr3

Voxels = NDArray[Any]
Write = Callable[[Path, Voxels], LazyVolume]
ALL = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "u8")
NATIVE, BOTH = ("<",), ("<", ">")
CHUNKS = (8, 32, 32)


@dataclass(frozen=True)
class Sample:
    """A format. `write` stores voxels (z-y-x, in their byte order) below a folder and opens them.

    It can hold `dtypes` in the byte `orders`.
    """

    write: Write
    dtypes: tuple[str, ...] = ALL
    orders: tuple[str, ...] = NATIVE


def _tiff(**how: Any) -> Write:
    def write(folder: Path, voxels: Voxels) -> LazyVolume:
        path = folder / "a.tif"
        order = ">" if voxels.dtype.byteorder == ">" else "<"
        with tifffile.TiffWriter(path, byteorder=order, bigtiff=True) as writer:
            for plane in voxels:
                writer.write(plane, contiguous=False, metadata=None, photometric="minisblack", **how)
        return open_volume([path])

    return write


def _tiff_stack(folder: Path, voxels: Voxels) -> LazyVolume:
    (folder / "planes").mkdir()
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / "planes" / f"p{z}.tif", plane, compression="lzw", rowsperstrip=16)
    return open_volume([folder / "planes"])


def _png_stack(folder: Path, voxels: Voxels) -> LazyVolume:
    paths = [folder / f"p{z}.png" for z in range(len(voxels))]
    for path, plane in zip(paths, voxels, strict=True):
        path.write_bytes(imagecodecs.png_encode(plane))
    return open_volume(paths)


def _dm(folder: Path, voxels: Voxels) -> LazyVolume:
    kinds = {name: number for number, name in DM_DTYPES.items()}
    axes = [(8.0, "nm")] * 3
    # The number of the type says how the integers are meant.
    stored = voxels.view(f"u{voxels.itemsize}")
    image = test_dm.image(stored, kinds[voxels.dtype.str[1:]], *axes)
    return open_volume([test_dm.write_images(folder / "a.dm3", image)])


def _mrc(folder: Path, voxels: Voxels) -> LazyVolume:
    order = ">" if voxels.dtype.byteorder == ">" else "<"
    return open_volume([test_mrc.write(folder / "a.mrc", voxels, 0, order)])


def _mrc_turned(folder: Path, voxels: Voxels) -> LazyVolume:
    """Sections along x, rows along z, columns along y."""
    stored = np.ascontiguousarray(voxels.transpose(2, 0, 1))
    return open_volume([test_mrc.write(folder / "a.mrc", stored, 0, "<", mapc=2, mapr=3, maps=1)])


def _raw(folder: Path, voxels: Voxels) -> LazyVolume:
    path = folder / "a.raw"
    path.write_bytes(voxels.tobytes())
    order = ">" if voxels.dtype.byteorder == ">" else "<"
    layout = RawLayout(shape=voxels.shape, dtype=f"{order}{voxels.dtype.str[1:]}")
    return open_volume([path], raw=layout)


def _hdf5(**how: Any) -> Write:
    def write(folder: Path, voxels: Voxels) -> LazyVolume:
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("volume", data=voxels, dtype=voxels.dtype, **how)
        return open_volume([folder / "a.h5"])

    return write


def _container(write_array: Callable[..., Path], **how: Any) -> Write:
    return lambda folder, voxels: open_volume([write_array(folder / "a", voxels, **how)])


def _n5(**compression: Any) -> Sample:
    return Sample(_container(n5, blockSize=CHUNKS[::-1], compression=compression))


def _precomputed(**scale: Any) -> Write:
    kind = "segmentation" if scale.get("encoding") == "compressed_segmentation" else "image"
    return lambda folder, voxels: open_volume(
        [test_precomputed.written(folder / "a", voxels, kind=kind, chunk_size=CHUNKS[::-1], **scale)]
    )


SAMPLES: Mapping[str, Sample] = {
    "tiff": Sample(_tiff(), orders=BOTH),
    "tiff-lzw": Sample(_tiff(compression="lzw", rowsperstrip=5), orders=BOTH),
    "tiff-deflate-predicted": Sample(
        _tiff(compression="zlib", predictor=2, rowsperstrip=16), ALL[:6], orders=BOTH
    ),
    "tiff-zstd": Sample(_tiff(compression="zstd", rowsperstrip=7), orders=BOTH),
    "tiff-packbits": Sample(_tiff(compression="packbits", rowsperstrip=8), orders=BOTH),
    "tiff-tiles": Sample(_tiff(compression="lzw", tile=(16, 32)), orders=BOTH),
    "tiff-plain-tiles": Sample(_tiff(tile=(16, 32)), orders=BOTH),
    "tiff-float-predicted": Sample(_tiff(compression="zlib", predictor=3, rowsperstrip=16), ("f4",), BOTH),
    "tiff-stack": Sample(_tiff_stack),
    "png-stack": Sample(_png_stack, ("u1", "u2")),
    "dm": Sample(_dm, ALL[:7]),
    "mrc": Sample(_mrc, ("i1", "i2", "u2", "f4"), BOTH),
    "mrc-turned": Sample(_mrc_turned, ("i1", "i2", "u2", "f4")),
    "raw": Sample(_raw, orders=BOTH),
    "hdf5": Sample(_hdf5(), orders=BOTH),
    "hdf5-gzip": Sample(_hdf5(chunks=CHUNKS, compression="gzip", shuffle=True), orders=BOTH),
    "hdf5-lzf": Sample(_hdf5(chunks=CHUNKS, compression="lzf"), orders=BOTH),
    "zarr2": Sample(_container(zarr2, chunks=CHUNKS), orders=BOTH),
    "zarr3": Sample(_container(zarr3, chunks=CHUNKS)),
    "zarr3-sharded": Sample(_container(zarr3, chunks=CHUNKS, shards=tuple(2 * n for n in CHUNKS))),
    "n5-gzip": _n5(type="gzip"),
    "n5-zlib": _n5(type="gzip", useZlib=True),
    "n5-raw": _n5(type="raw"),
    "n5-zstd": _n5(type="zstd"),
    "n5-bzip2": _n5(type="bzip2"),
    "n5-xz": _n5(type="xz"),
    "n5-blosc": _n5(type="blosc", cname="lz4", clevel=5, shuffle=1),
    "precomputed": Sample(_precomputed()),
    "precomputed-sharded": Sample(_precomputed(sharding=test_precomputed.SHARDING)),
    "precomputed-png": Sample(_precomputed(encoding="png"), ("u1", "u2")),
    "precomputed-labels": Sample(
        _precomputed(encoding="compressed_segmentation", compressed_segmentation_block_size=[8, 8, 8]),
        ("u4", "u8"),
    ),
}  # fmt: skip
LOSSY: Mapping[str, Sample] = {
    "tiff-jpeg": Sample(_tiff(compression="jpeg", rowsperstrip=16), ("u1",)),
    "precomputed-jpeg": Sample(_precomputed(encoding="jpeg"), ("u1",)),
}
