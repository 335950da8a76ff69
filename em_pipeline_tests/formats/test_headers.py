"""Headers of damaged files: an error that says so, or what is still legible; never another exception."""

import io
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from PIL import Image

from em_pipeline.demo.dm3 import Section, write_dm3
from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.formats.headers import read_headers
from em_pipeline.formats.open import open_volume
from em_pipeline_tests.formats.helpers import ramp

DAMAGES = 150


def dm3(path: Path) -> None:
    plane = np.zeros((30, 40), np.uint8)
    write_dm3(path, Section("s", plane, 7.5, 50.0, datetime(2020, 1, 2, tzinfo=UTC), thumbnail=(8, 8)))


def mrc(path: Path) -> None:
    with mrcfile.new(path) as file:
        file.set_data(ramp((4, 10, 20), np.int16))


def tiff(path: Path) -> None:
    tifffile.imwrite(path, ramp((5, 20, 30)), photometric="minisblack", compression="zlib")


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=ramp((4, 10, 20)), chunks=(2, 5, 5))


def picture(path: Path) -> None:
    Image.fromarray(ramp((20, 30))).save(path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.dm3": dm3, "a.mrc": mrc, "a.tif": tiff, "a.h5": hdf5, "a.png": picture, "a.jpg": picture
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_headers_say_what_the_reader_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    data = path.read_bytes()
    (image,) = read_headers(io.BytesIO(data), name, len(data))
    with open_volume([path]) as volume:
        assert (image.shape, image.dtype) == (volume.shape, volume.dtype.name)
        assert image.claims == tuple(volume.claims)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_damage_is_refused_or_survived(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    rng = random.Random(name)
    for turn in range(DAMAGES):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if turn % 3 == 0:
            del data[rng.randrange(1, len(data)) :]
        with suppress(UnsupportedFormat):
            read_headers(io.BytesIO(bytes(data)), name, len(data))
