"""Chunks that no memory could hold are refused from the documents alone."""

import json
from pathlib import Path

import pytest

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.geometry import Shape
from em_pipeline.formats.mirror import open_array
from em_pipeline.formats.precomputed import open_precomputed
from em_pipeline_tests.formats.helpers import ramp
from em_pipeline_tests.formats.test_precomputed import edited, written

SIDE = 20_000
ZARR2 = {
    "zarr_format": 2, "shape": [64] * 3, "chunks": [SIDE] * 3, "dtype": "|u1", "compressor": None,
    "fill_value": 0, "order": "C", "filters": None,
}  # fmt: skip
ZARR3 = {
    "zarr_format": 3, "node_type": "array", "shape": [64] * 3, "data_type": "uint8", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SIDE] * 3}},
    "chunk_key_encoding": {"name": "default"}, "codecs": [{"name": "bytes"}],
}  # fmt: skip
N5 = {"dimensions": [64] * 3, "blockSize": [SIDE] * 3, "dataType": "uint8", "compression": {"type": "raw"}}


@pytest.mark.parametrize(
    ("name", "document"), [(".zarray", ZARR2), ("zarr.json", ZARR3), ("attributes.json", N5)]
)
def test_an_array_of_giant_chunks_is_refused(tmp_path: Path, name: str, document: dict[str, object]) -> None:
    (tmp_path / name).write_text(json.dumps(document))
    with pytest.raises(UnsupportedFormat, match="8,000,000,000,000 bytes each"):
        open_array(tmp_path)


def test_a_precomputed_scale_of_giant_chunks_is_refused(tmp_path: Path) -> None:
    written(tmp_path, ramp(Shape(4, 4, 4)))
    edited(tmp_path, lambda scale, _: scale.update(size=[SIDE] * 3, chunk_sizes=[[SIDE] * 3]))
    with pytest.raises(UnsupportedFormat, match="bytes each"):
        open_precomputed(tmp_path)


def test_a_chunk_that_reaches_beyond_the_array_is_claimed_as_its_document_says(tmp_path: Path) -> None:
    (tmp_path / ".zarray").write_text(json.dumps({**ZARR2, "shape": [35, 64, 64], "chunks": [64] * 3}))
    volume = open_array(tmp_path)
    claimed = [claim.value for claim in volume.claims if "chunk_size" in str(claim.field)]
    assert claimed == [64, 64, 64]
    assert volume.chunk_shape == Shape(35, 64, 64)
