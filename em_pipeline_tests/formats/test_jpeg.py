"""Damage that libjpeg reads over, and pictures that only look damaged."""

import io
import tracemalloc
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from em_pipeline.demo.specimen import specimen
from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.jpeg import LONGEST_ZEROS, decode_jpeg
from em_pipeline.formats.open import open_volume
from em_pipeline.formats.precomputed import open_precomputed
from em_pipeline_tests.formats.helpers import check_volume
from em_pipeline_tests.formats.test_precomputed import written

PICTURE = specimen(Shape(16, 64, 64), seed=7).reshape(1024, 64)
WHOLE: bytes = imagecodecs.jpeg8_encode(PICTURE, level=90)
HALF = len(WHOLE) // 2
MOST = PICTURE.size
END = b"\xff\xd9"

DAMAGED = {
    "second half cut": WHOLE[:HALF],
    "second half cut, end marker kept": WHOLE[:HALF] + END,
    "second half zeroed": WHOLE[:HALF] + bytes(len(WHOLE) - HALF),
    "second half zeroed, end marker kept": WHOLE[:HALF] + bytes(len(WHOLE) - HALF - 2) + END,
    "zeros in the middle": WHOLE[:HALF] + bytes(2 * LONGEST_ZEROS) + WHOLE[HALF + 2 * LONGEST_ZEROS :],
    "a marker in the middle": WHOLE[:HALF] + b"\xff\x01" + WHOLE[HALF + 2 :],
    "a page": b"<html>busy</html>",
    "nothing": b"",
}


def encoded(picture: np.ndarray, *, optimize: bool, progressive: bool) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90, optimize=optimize, progressive=progressive)
    return file.getvalue()


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_never_read_over(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_jpeg(data, MOST)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("picture", [PICTURE, 0 * PICTURE, 0 * PICTURE + 255], ids=["em", "black", "white"])
def test_every_whole_picture_is_read(picture: np.ndarray, optimize: bool, progressive: bool) -> None:
    data = encoded(picture, optimize=optimize, progressive=progressive)
    np.testing.assert_array_equal(decode_jpeg(data, MOST), imagecodecs.jpeg8_decode(data))


def test_flat_pictures_may_be_zeros_throughout() -> None:
    data = encoded(0 * PICTURE, optimize=True, progressive=False)
    assert bytes(LONGEST_ZEROS) in data
    assert not decode_jpeg(data, MOST).any()


def test_no_memory_is_taken_for_a_picture_that_cannot_be() -> None:
    frame = WHOLE.index(b"\xff\xc0") + 5
    claims = WHOLE[:frame] + 2 * (65_500).to_bytes(2) + WHOLE[frame + 4 :]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="65500×65500 pixels where at most 65,536 belong"):
            decode_jpeg(claims, MOST)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_bytes_after_the_end_are_no_damage() -> None:
    np.testing.assert_array_equal(decode_jpeg(WHOLE + bytes(9), MOST), imagecodecs.jpeg8_decode(WHOLE))


def test_colour_is_named() -> None:
    with pytest.raises(ValueError, match="YCbCr, not grey"):
        decode_jpeg(imagecodecs.jpeg8_encode(np.zeros((8, 8, 3), np.uint8)), MOST)


@pytest.mark.parametrize("end", [b"", END])
def test_a_chunk_and_a_plane_cut_in_half_are_refused(tmp_path: Path, end: bytes) -> None:
    folder = written(tmp_path / "volume", specimen(Shape(16, 64, 64), seed=7), encoding="jpeg")
    for chunk in next(path for path in folder.iterdir() if path.is_dir()).iterdir():
        data = chunk.read_bytes()
        chunk.write_bytes(data[: len(data) // 2] + end)
    volume = open_precomputed(folder)
    with pytest.raises(UnsupportedFormat, match="Decode the jpeg chunk"):
        volume.read(BoundingBox.of_shape(volume.shape))
    plane = tmp_path / "plane.jpg"
    plane.write_bytes(WHOLE[:HALF] + end)
    image = open_volume([plane])
    with pytest.raises(UnsupportedFormat, match="truncated or damaged"):
        image.read(BoundingBox.of_shape(image.shape))


def tiff(path: Path, stream: bytes, *, bits: int = 8, tables: bytes = b"") -> Path:
    """One plane of 1024×64 in two strips of 512 rows, each the same JPEG `stream`."""
    options = {"dtype": np.uint8 if bits == 8 else np.uint16, "compression": "jpeg", "rowsperstrip": 512}
    tags = [(347, 7, len(tables), tables, True)] if tables else []
    tifffile.imwrite(
        path, iter([stream, stream]), shape=(1024, 64), bitspersample=bits, extratags=tags,
        photometric="minisblack", metadata=None, **options,
    )  # fmt: skip
    return path


STRIP = PICTURE[:512]
STREAM = bytes(imagecodecs.jpeg8_encode(STRIP, level=90))
STRIP_HALF = len(STREAM) // 2
STRIP_DAMAGED = {
    "cut": STREAM[:STRIP_HALF],
    "cut, end marker kept": STREAM[:STRIP_HALF] + END,
    "zeroed": STREAM[:STRIP_HALF] + bytes(len(STREAM) - STRIP_HALF),
    "zeroed, end marker kept": STREAM[:STRIP_HALF] + bytes(len(STREAM) - STRIP_HALF - 2) + END,
    "too few rows": bytes(imagecodecs.jpeg8_encode(STRIP[:500], level=90)),
}


@pytest.mark.parametrize("stream", STRIP_DAMAGED.values(), ids=STRIP_DAMAGED.keys())
def test_a_damaged_strip_of_a_tiff_is_refused(tmp_path: Path, stream: bytes) -> None:
    volume = open_volume([tiff(tmp_path / "a.tif", stream)])
    with pytest.raises(UnsupportedFormat, match=r"strip or tile 0 of plane 0 of a\.tif"):
        volume.read(BoundingBox.of_shape(volume.shape))


def test_whole_strips_are_read_with_and_without_shared_tables(tmp_path: Path) -> None:
    expected = np.concatenate([imagecodecs.jpeg8_decode(STREAM)] * 2)[None]
    check_volume(open_volume([tiff(tmp_path / "own.tif", STREAM)]), expected)
    # Tables stand between the start marker and the frame header.
    frame = STREAM.index(b"\xff\xc0")
    scan = STREAM.index(b"\xff\xda")
    frame_end = frame + 2 + int.from_bytes(STREAM[frame + 2 : frame + 4])
    tables = STREAM[:frame] + STREAM[frame_end:scan] + END
    short = STREAM[:2] + STREAM[frame:frame_end] + STREAM[scan:]
    check_volume(open_volume([tiff(tmp_path / "shared.tif", short, tables=tables)]), expected)


@pytest.mark.parametrize("lossless", [False, True])
def test_pictures_of_12_bits_are_read_whole_and_refused_in_part(tmp_path: Path, lossless: bool) -> None:
    picture = STRIP.astype(np.uint16) * 16
    stream = bytes(imagecodecs.jpeg8_encode(picture, bitspersample=12, lossless=lossless))
    expected = np.concatenate([imagecodecs.jpeg8_decode(stream)] * 2)[None]
    check_volume(open_volume([tiff(tmp_path / "a.tif", stream, bits=12)]), expected)
    damaged = open_volume([tiff(tmp_path / "b.tif", stream[: len(stream) // 2], bits=12)])
    with pytest.raises(UnsupportedFormat, match="end marker"):
        damaged.read(BoundingBox.of_shape(damaged.shape))


def test_flat_strips_without_loss_may_be_zeros_throughout(tmp_path: Path) -> None:
    stream = bytes(imagecodecs.jpeg8_encode(0 * STRIP, lossless=True))
    check_volume(open_volume([tiff(tmp_path / "a.tif", stream)]), np.zeros((1, 1024, 64), np.uint8))
