"""The compiled kernels and numpy are one thing: the same numbers, bit by bit, and the same volumes."""

import runpy
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from em_pipeline.volumes import downsample, feed, kernels, statistics
from em_pipeline.volumes.kernels import Kernels
from em_pipeline.volumes.statistics import measure, measure_padded
from em_pipeline_tests.volumes.written import DTYPES, hashes, random_voxels, write

ROOT = Path(__file__).parents[2]
INTEGERS = [dtype for dtype in DTYPES if "int" in dtype]
FACTORS = list(product((1, 2), repeat=3))
compile_kernels: Callable[[Path, Path], str | None] = runpy.run_path(str(ROOT / "hatch_build.py"))[
    "compile_kernels"
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    library = tmp_path_factory.mktemp("kernels") / "_kernels.so"
    assert compile_kernels(ROOT / "em_pipeline/volumes/kernels.c", library) is None
    return Kernels(library)


@pytest.fixture(params=["compiled", "numpy"])
def backend(request: pytest.FixtureRequest, compiled: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (downsample, statistics):
        monkeypatch.setattr(module, "COMPILED", compiled if request.param == "compiled" else None)


@st.composite
def blocks(draw: st.DrawFn, dtype: str) -> NDArray[Any]:
    """Parts of a larger array: planes and rows lie apart."""
    whole = draw(hnp.arrays(dtype, st.tuples(*[st.integers(1, 11)] * 3)))
    z, y, x = (draw(st.integers(0, n - 1)) for n in whole.shape)
    return whole[z:, y:, x:]


def by_numpy(function: Callable[..., Any], *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for module in (downsample, statistics):
            patch.setattr(module, "COMPILED", None)
        return function(*arguments)


@pytest.mark.parametrize("dtype", INTEGERS)
@given(data=st.data(), factors=st.sampled_from(FACTORS))
def test_means_and_modes_are_numpys(compiled: Kernels, dtype: str, data: st.DataObject, factors: Any) -> None:
    block = data.draw(blocks(dtype))
    for kernel, function in ((compiled.mean, downsample.mean_2x), (compiled.mode, downsample.mode_2x)):
        found, expected = kernel(block, factors), by_numpy(function, block, factors)
        assert found is not None
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@given(data=st.data())
def test_values_are_counted_and_summed(compiled: Kernels, dtype: str, data: st.DataObject) -> None:
    block = data.draw(blocks(dtype))
    ranks = data.draw(st.tuples(*[st.integers(1, block.size)] * 2))
    measured = compiled.measure(block, ranks)
    assert measured is not None
    values = np.sort(block, axis=None).astype(object)
    low, bins = np.iinfo(dtype).min, 1 << 8 * block.itemsize
    np.testing.assert_array_equal(measured[0], np.bincount((values - low).astype(int), minlength=bins))
    at_rank = [values[rank - 1] for rank in ranks]
    assert measured[1] == (values.sum(), (values * values).sum(), values[0], values[-1], *at_rank)


@pytest.mark.parametrize("dtype", ["uint32", "int32", "uint64", "int64", "float32"])
@given(data=st.data())
def test_keys_are_numpys(compiled: Kernels, dtype: str, data: st.DataObject) -> None:
    block = data.draw(blocks(dtype))
    block = np.where(np.isfinite(block), block, 0).astype(dtype)
    counts = np.zeros(statistics.KEY_BINS, np.int64)
    assert compiled.count_keys(block, counts)
    np.testing.assert_array_equal(counts, by_numpy(statistics._key_counts, block.ravel()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("valid", [(8, 8, 8), (5, 8, 7), (1, 2, 3)])
def test_summaries_are_numpys(backend: None, dtype: str, valid: tuple[int, int, int]) -> None:
    chunk = random_voxels((8, 8, 8), dtype)
    z, y, x = valid
    chunk[z:], chunk[:, y:], chunk[:, :, x:] = 0, 0, 0
    summary, counts = measure_padded(chunk, valid)
    expected, expected_counts = by_numpy(measure, chunk[:z, :y, :x])
    assert summary == expected
    np.testing.assert_array_equal(counts, expected_counts)


@given(data=st.data(), dtype=st.sampled_from(["uint8", "int16", "float64"]))
def test_blocks_are_dealt_to_their_chunks(compiled: Kernels, data: st.DataObject, dtype: str) -> None:
    block = data.draw(blocks(dtype))
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    first = data.draw(st.tuples(*[st.integers(0, 7)] * 3))
    room = [at + n + data.draw(st.integers(0, 3)) for at, n in zip(first, block.shape, strict=True)]
    count = [-(-n // edge) for n, edge in zip(room, shape, strict=True)]
    chunks = np.full((*count, *shape), 7, dtype)
    assert compiled.deal(block, first, chunks)
    whole = np.full([n * edge for n, edge in zip(count, shape, strict=True)], 7, dtype)
    whole[tuple(slice(at, at + n) for at, n in zip(first, block.shape, strict=True))] = block
    np.testing.assert_array_equal(chunks.transpose(0, 3, 1, 4, 2, 5).reshape(whole.shape), whole)


def test_a_block_that_reaches_past_its_chunks_is_refused(compiled: Kernels) -> None:
    chunks = np.zeros((1, 2, 1, 4, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="reaches past"):
        compiled.deal(np.zeros((4, 5, 4), np.uint8), (0, 4, 0), chunks)


@given(data=st.data(), dtype=st.sampled_from(["uint8", "int16", "float64"]), band_rows=st.integers(1, 5))
def test_a_box_of_a_file_is_dealt_to_its_chunks(
    compiled: Kernels,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    dtype: str,
    band_rows: int,
) -> None:
    stored = data.draw(hnp.arrays(dtype, st.tuples(*[st.integers(1, 11)] * 3)))
    start = [data.draw(st.integers(0, n - 1)) for n in stored.shape]
    box = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(start, stored.shape, strict=True))
    shape, first = (data.draw(st.tuples(*[st.integers(low, 6)] * 3)) for low in (1, 0))
    block = stored[box]
    count = [-(-(at + n) // edge) for at, n, edge in zip(first, block.shape, shape, strict=True)]
    file = tmp_path_factory.mktemp("plain") / "voxels.raw"
    file.write_bytes(b"header" + stored.tobytes())
    starts = 6 + stored.itemsize * np.ravel_multi_index(
        (np.arange(box[0].start, box[0].stop), box[1].start, box[2].start), stored.shape
    ).astype(np.int64)
    band = np.empty(band_rows * stored.shape[2] * stored.itemsize, np.uint8)
    chunks, expected = (np.full((*count, *shape), 7, dtype) for _ in range(2))
    with file.open("rb") as opened:
        rows = (block.shape[1], block.shape[2], stored.shape[2])
        assert compiled.deal_file(opened.fileno(), starts, rows, band, first, chunks)
    assert compiled.deal(block, first, expected)
    np.testing.assert_array_equal(chunks, expected)


def test_a_file_that_ends_before_the_box_is_said(compiled: Kernels, tmp_path: Path) -> None:
    (tmp_path / "voxels.raw").write_bytes(bytes(63))
    chunks, band = np.zeros((1, 1, 1, 4, 4, 4), np.uint8), np.empty(16, np.uint8)
    starts = np.arange(0, 64, 16)
    with (tmp_path / "voxels.raw").open("rb") as opened:
        assert compiled.deal_file(opened.fileno(), starts[:3], (4, 4, 4), band, (0, 0, 0), chunks)
        assert not compiled.deal_file(opened.fileno(), starts, (4, 4, 4), band, (0, 0, 0), chunks)


def test_a_box_of_a_file_that_reaches_past_its_chunks_is_refused(compiled: Kernels) -> None:
    chunks, starts = np.zeros((1, 1, 1, 4, 4, 4), np.uint8), np.zeros(4, np.int64)
    with pytest.raises(ValueError, match="reaches past"):
        compiled.deal_file(-1, starts, (5, 4, 4), np.empty(16, np.uint8), (0, 0, 0), chunks)
    with pytest.raises(ValueError, match="a band of 3 bytes"):
        compiled.deal_file(-1, starts, (4, 4, 4), np.empty(3, np.uint8), (0, 0, 0), chunks)


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float32"])
def test_volumes_are_the_same_bytes_without_a_compiler(
    compiled: Kernels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str, kind: str
) -> None:
    if kind == "labels" and dtype == "float32":
        kind = "image"
    array = random_voxels((9, 13, 21), dtype)
    for name, backend in (("compiled", compiled), ("numpy", None)):
        for module in (downsample, feed, statistics):
            monkeypatch.setattr(module, "COMPILED", backend)
        write(array, tmp_path / name, kind=kind)
    assert hashes(tmp_path / "compiled") == hashes(tmp_path / "numpy")


@pytest.mark.parametrize(
    "block",
    [
        np.zeros((2, 2, 2), ">u2"),
        np.zeros((2, 2, 4), np.uint8)[:, :, ::2],
        np.zeros((2, 2), np.uint8),
        np.frombuffer(bytes(33), np.uint16, 16, offset=1).reshape(4, 2, 2),
    ],
    ids=["foreign byte order", "gaps in rows", "two axes", "unaligned"],
)
def test_what_c_cannot_take_is_left_to_numpy(compiled: Kernels, block: NDArray[Any]) -> None:
    assert compiled.mean(block, (2, 2, 2)) is None
    assert compiled.measure(block, (1, 1)) is None


def test_a_missing_compiler_is_said_and_leaves_no_old_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "there-is-no-such-compiler -O2")
    library = tmp_path / "_kernels.so"
    library.write_bytes(b"of an older source")
    assert "there-is-no-such-compiler" in str(
        compile_kernels(ROOT / "em_pipeline/volumes/kernels.c", library)
    )
    assert not library.exists()


@pytest.mark.parametrize(("command", "said"), [("gcc 'x", "is no command"), ("true", "failed")])
def test_a_command_that_compiles_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    monkeypatch.setenv("CC", command)
    assert said in str(compile_kernels(kernels.SOURCE, tmp_path / "_kernels.so"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["", " "])
def test_an_empty_name_of_a_compiler_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CC", command)
    assert compile_kernels(kernels.SOURCE, tmp_path / "_kernels.so") is None
    assert kernels.load(tmp_path / "_kernels.so") is not None


def test_a_library_of_another_source_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "kernels.c").write_text(kernels.SOURCE.read_text() + "/* changed */\n")
    assert compile_kernels(tmp_path / "kernels.c", tmp_path / "_kernels.so") is None
    assert kernels.load(tmp_path / "_kernels.so") is None


def test_what_would_write_past_its_end_is_refused(compiled: Kernels) -> None:
    block = np.zeros((1, 1, 64), np.uint16)
    for bins in (10, 256):
        with pytest.raises(ValueError, match="bins"):
            compiled.count_keys(block.astype(np.uint32), np.zeros(bins, np.int64))
    for function in (compiled.mean, compiled.mode):
        with pytest.raises(ValueError, match="cells"):
            function(block, (1, 1, 4))


def test_a_failing_compiler_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "kernels.c").write_text("int main(void) { return nonsense; }")
    assert "nonsense" in str(compile_kernels(tmp_path / "kernels.c", tmp_path / "_kernels.so"))


def test_a_library_of_another_machine_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "_kernels.so").write_bytes(b"\x7fELF of another machine")
    assert kernels.load(tmp_path / "_kernels.so") is None
    assert kernels.load(tmp_path / "none.so") is None
