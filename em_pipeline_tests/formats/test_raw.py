"""Voxels without a header, lying as a person says."""

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_pipeline.domain.errors import InputRefused, NotFound, StorageFailed, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.raw_layout import RawLayout
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats import raw
from em_pipeline.formats.base import head_of
from em_pipeline.formats.open import open_volume
from em_pipeline_tests.formats.helpers import check_volume, cut, ramp

SHAPE = (5, 21, 18)


def laid_out(path: Path, dtype: str = "uint8", order: str = "C", offset: int = 0) -> tuple[Path, RawLayout]:
    voxels = ramp(SHAPE, dtype)
    path.write_bytes(b"h" * offset + voxels.tobytes(order))  # type: ignore[arg-type]
    return path, RawLayout(shape=SHAPE, dtype=dtype, order=order, offset=offset)


@pytest.mark.parametrize("dtype", ["uint8", "<i2", ">u2", "uint64", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("offset", [0, 512])
def test_any_type_order_and_offset(tmp_path: Path, dtype: str, order: str, offset: int) -> None:
    path, layout = laid_out(tmp_path / "a.raw", dtype, order, offset)
    check_volume(open_volume([path], raw=layout), ramp(SHAPE, np.dtype(dtype).newbyteorder("=")))


@pytest.mark.parametrize("order", ["C", "F"])
def test_gzipped_voxels(tmp_path: Path, order: str) -> None:
    path, layout = laid_out(tmp_path / "a.dat", ">u2", order, 8)
    packed = tmp_path / "a.dat.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    check_volume(open_volume([packed], raw=layout), ramp(SHAPE, np.uint16))
    with pytest.raises(UnsupportedFormat, match="damaged"):
        open_volume([cut(packed, 20)], raw=layout)


def test_a_gzipped_file_is_not_unpacked_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, layout = laid_out(tmp_path / "a.dat")
    path.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(raw, "LARGEST_UNPACKED", 1000)
    with pytest.raises(UnsupportedFormat, match="Unpack it first"):
        open_volume([path], raw=layout)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("missing", [-1, 1])
def test_the_size_must_agree_and_the_sum_is_shown(tmp_path: Path, missing: int, packed: bool) -> None:
    path, layout = laid_out(tmp_path / "a.raw", "uint16", offset=3)
    data = path.read_bytes()
    data = data[:-1] if missing == 1 else data + b"\0"
    path.write_bytes(gzip.compress(data) if packed else data)
    says = rf"3 \+ 5 × 21 × 18 × 2 = 3,783 bytes, and it has {len(data):,}"
    with pytest.raises(InputRefused, match=says):
        open_volume([path], raw=layout)


def test_without_a_layout_it_is_asked_for(tmp_path: Path) -> None:
    path, _ = laid_out(tmp_path / "a.raw")
    with pytest.raises(InputRefused, match="--raw-shape Z,Y,X and --raw-dtype"):
        open_volume([path])
    with pytest.raises(NotFound, match="gone"):
        open_volume([tmp_path / "gone.raw"])


def test_the_suffix_does_not_hide_a_format(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UnsupportedFormat, match="page instead of the file"):
        open_volume([tmp_path / "a.raw"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "complex64"},
        {"dtype": "O"},
        {"shape": (0, 1, 1)},
        {"offset": -1},
        {"offset": True},
        {"order": "A"},
    ],
)
def test_a_layout_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RawLayout(**{"shape": (1, 2, 3), "dtype": "uint8", **wrong})


def test_the_layout_is_part_of_the_spec_and_its_version() -> None:
    plain = DatasetSpec(source="files", accession="a")
    layout = RawLayout(shape=SHAPE, dtype="uint8")
    described = plain.model_copy(update={"raw_layout": layout})
    assert described.canonical_json() != plain.canonical_json()
    assert DatasetSpec.model_validate_json(described.model_dump_json()) == described
    assert "raw_layout" not in plain.canonical_json()


@pytest.mark.parametrize("call", ["preadv", "pread"])
def test_a_disk_that_cannot_give_the_bytes_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path, layout = laid_out(tmp_path / "a.raw")
    volume = open_volume([path], raw=layout)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageFailed, match=r"^Read a\.raw: Input/output error\. Check the disk"):
        volume.read(BoundingBox.of_shape(volume.shape)) if call == "preadv" else head_of(path, 2)
