"""Planes of 40 000 × 40 000 voxels, in files of some kilobytes: a box costs the tiles or strips it meets."""

import struct
from pathlib import Path
from typing import Any, cast

import imagecodecs
import numpy as np
import pytest

from em_pipeline.domain.geometry import BoundingBox, VoxelSize
from em_pipeline.formats.open import open_volume
from em_pipeline.formats.tiff_segments import DECODERS
from em_pipeline.ingest.cuts import Cut
from em_pipeline_tests.formats.sparse_tiff import Layout, sparse
from em_pipeline_tests.formats.test_bytes_read import COUNTERS, bytes_read

SIDE, PLANES = 40_000, 3
SHORT, LONG8, DEFLATE = 3, 16, 8
BOX = BoundingBox.at((0, 20_480, 10_240), (PLANES, 128, 512))
# What the counter itself, and opening a file, may add.
BESIDE = 4096


def repeated(path: Path, height: int, width: int) -> tuple[Path, int]:
    """Planes whose strips (of the whole width) or tiles are all one stored segment, and its length.

    Each voxel of the segment is the number of its row.
    """
    rows = np.broadcast_to(np.arange(height, dtype=np.uint8)[:, None], (height, width))
    segment = imagecodecs.deflate_encode(rows.tobytes())
    count = -(-SIDE // height) * -(-SIDE // width)
    tiled = width < SIDE
    with path.open("wb") as file:
        data = 16
        offsets = data + len(segment)
        lengths = offsets + 8 * count
        directory = lengths + 8 * count
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, directory) + segment)
        file.write(struct.pack(f"<{count}Q", *[data] * count))
        file.write(struct.pack(f"<{count}Q", *[len(segment)] * count))
        where = [(324, LONG8, count, offsets), (325, LONG8, count, lengths)]
        if not tiled:
            where = [(273, LONG8, count, offsets), (279, LONG8, count, lengths)]
        size = [(322, LONG8, 1, width), (323, LONG8, 1, height)] if tiled else [(278, LONG8, 1, height)]
        entries = [(256, LONG8, 1, SIDE), (257, LONG8, 1, SIDE), (258, SHORT, 1, 8), (259, SHORT, 1, DEFLATE),
                   (262, SHORT, 1, 1), (277, SHORT, 1, 1), *where, *size]  # fmt: skip
        table = b"".join(struct.pack("<HHQQ", *entry) for entry in sorted(entries))
        for plane in range(1, PLANES + 1):
            following = directory + plane * (8 + len(table) + 8) if plane < PLANES else 0
            file.write(struct.pack("<Q", len(entries)) + table + struct.pack("<Q", following))
    return path, len(segment)


def met(start: int, stop: int, size: int) -> int:
    return -(-stop // size) - start // size


@pytest.mark.skipif(not COUNTERS.exists(), reason="the system does not count the bytes read")
@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 1024), (16, SIDE), (100, SIDE)])
def test_a_box_of_a_giant_plane_decodes_the_segments_it_meets_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    decoded: list[int] = []

    def counted(data: memoryview, out: Any) -> Any:
        decoded.append(len(data))
        return imagecodecs.deflate_decode(data, out=out)

    monkeypatch.setitem(cast(dict[int, Any], DECODERS), DEFLATE, counted)
    path, length = repeated(tmp_path / "giant.tif", height, width)
    volume = open_volume([path])
    assert volume.shape == (PLANES, SIDE, SIDE)
    assert volume.chunk_shape == (1, height, width)
    assert volume.scratch_bytes < 10 << 20
    before = bytes_read()
    voxels = volume.read(BOX)
    read = bytes_read() - before
    y, x = (met(a, b, n) for a, b, n in zip(BOX.start[1:], BOX.stop[1:], (height, width), strict=True))
    assert decoded == [length] * PLANES * y * x
    assert read < PLANES * y * x * length + BESIDE
    rows = np.arange(BOX.start.y, BOX.stop.y) % height
    np.testing.assert_array_equal(voxels, np.broadcast_to(rows[:, None], BOX.shape))


@pytest.mark.skipif(not COUNTERS.exists(), reason="the system does not count the bytes read")
def test_a_box_of_a_giant_plain_plane_reads_the_parts_of_its_rows(tmp_path: Path) -> None:
    path = sparse(tmp_path / "plain.tif", (PLANES, SIDE, SIDE), Layout(big=True, together="start"))
    volume = open_volume([path])
    assert volume.scratch_bytes == 1 << 20
    before = bytes_read()
    volume.read(BOX)
    assert 0 <= bytes_read() - before - BOX.shape.voxels < BESIDE


def test_a_strip_beyond_the_memory_budget_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = sparse(tmp_path / "strip.tif", (1, SIDE, SIDE), Layout(big=True))
    with path.open("r+b") as file:
        at = file.seek(-188, 2)  # its only directory is last
        table = file.read()
        deflated = table.replace(
            struct.pack("<HHQQ", 259, 16, 1, 1), struct.pack("<HHQQ", 259, 16, 1, DEFLATE)
        )
        file.seek(at)
        file.write(deflated)
    volume = open_volume([path])
    cut = Cut("giant", volume, BoundingBox.of_shape(volume.shape), VoxelSize(z=8, y=8, x=8), (0, 0, 0))
    assert cut.is_decodable(16 << 30)
    assert not cut.is_decodable(2 << 30)
    said = str(cut.not_decodable(2 << 30, 9000))
    assert "1×40000×40000 voxels" in said
    assert "EM_MEMORY_BUDGET=9000MiB" in said
    assert "tiffcp" in said
