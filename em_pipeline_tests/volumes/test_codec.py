import numpy as np
import pytest
from pydantic import ValidationError

from em_pipeline.domain.errors import ChunkCorrupt, InputRefused
from em_pipeline.domain.spec import CODECS, DatasetSpec
from em_pipeline.volumes.codec import RECIPES, ChunkCodec, crc32c
from em_pipeline_tests.volumes.written import DTYPES, random_voxels

SHAPE = (4, 6, 8)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
def test_what_is_encoded_decodes_to_the_same_writable_voxels(name: str, dtype: str) -> None:
    voxels = random_voxels(SHAPE, dtype)
    codec = ChunkCodec.for_dtype(dtype, "image", name)
    decoded = codec.decode(codec.encode(voxels), dtype, SHAPE)
    np.testing.assert_array_equal(decoded, voxels)
    assert decoded.flags.writeable
    assert decoded.dtype == voxels.dtype


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("cut", [0, 3, 16, -1])
def test_a_truncated_chunk_is_corrupt(name: str, cut: int) -> None:
    codec = ChunkCodec.for_dtype("uint16", "image", name)
    payload = codec.encode(random_voxels(SHAPE, "uint16"))
    with pytest.raises(ChunkCorrupt):
        codec.decode(payload[:cut], "uint16", SHAPE)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", [(4, 6, 7), (4, 6, 9)])
def test_a_chunk_of_another_size_is_corrupt(name: str, shape: tuple[int, int, int]) -> None:
    codec = ChunkCodec.for_dtype("uint16", "image", name)
    payload = codec.encode(random_voxels(SHAPE, "uint16"))
    with pytest.raises(ChunkCorrupt):
        codec.decode(payload, "uint16", shape)


@pytest.mark.parametrize(
    ("dtype", "kind", "expected"),
    [
        ("uint8", "image", "zstd-1"),
        ("int8", "image", "zstd-1"),
        ("uint16", "image", "blosc-lz4"),
        ("float32", "image", "blosc-zstd"),
        ("uint32", "image", "blosc-zstd"),
        ("uint64", "labels", "zstd-3"),
        ("uint8", "labels", "zstd-3"),
    ],
)
def test_each_type_has_its_codec(dtype: str, kind: str, expected: str) -> None:
    assert ChunkCodec.for_dtype(dtype, kind).name == expected  # type: ignore[arg-type]


def test_a_spec_may_give_every_codec_and_no_other() -> None:
    assert tuple(RECIPES) == CODECS
    for name in CODECS:
        assert DatasetSpec(source="files", accession="a", codec=name).codec == name
    with pytest.raises(ValidationError, match="'zstd' is not a codec: none, zstd-1"):
        DatasetSpec(source="files", accession="a", codec="zstd")


def test_unknown_codecs_and_types_are_refused() -> None:
    with pytest.raises(InputRefused, match="Codecs: none"):
        ChunkCodec.for_dtype("uint8", "image", "gzip")
    for dtype in ("bool", "complex64", "U3"):
        with pytest.raises(InputRefused):
            ChunkCodec.for_dtype(dtype, "image")


def test_big_endian_voxels_are_stored_little_endian() -> None:
    codec = ChunkCodec.for_dtype(">u2", "image", "none")
    assert codec.encode(np.full((1, 1, 1), 0x0102, ">u2")) == b"\x02\x01"


def test_crc32c_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # check value of CRC-32/ISCSI
