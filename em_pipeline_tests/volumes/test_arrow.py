"""Conversions by memory layout, held to pyarrow's own."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from em_pipeline.volumes.arrow import from_numpy, repeated, strings, to_numpy

dtypes = st.sampled_from([np.int8, np.int32, np.int64, np.uint32, np.float32, np.float64])


@given(dtypes.flatmap(lambda dtype: hnp.arrays(dtype, st.integers(0, 40))))
def test_numbers_go_and_come_back(values: np.ndarray) -> None:
    array = from_numpy(values)
    assert array.equals(pa.array(values, from_pandas=True))
    array.validate(full=True)
    np.testing.assert_array_equal(to_numpy(pa.chunked_array([array])), values)


@given(hnp.arrays(np.float64, st.integers(1, 40)), st.data())
def test_slices_and_several_chunks(values: np.ndarray, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(values)))
    array = from_numpy(values)
    column = pa.chunked_array([array[start:], array[:start]])
    np.testing.assert_array_equal(to_numpy(column), np.concatenate([values[start:], values[:start]]))


@given(st.lists(st.text(max_size=8), max_size=12))
def test_texts(texts: list[str]) -> None:
    assert strings(texts).to_pylist() == texts
    for text in texts:
        assert repeated(text, 3).to_pylist() == [text] * 3


def test_a_missing_integer_is_no_number() -> None:
    with pytest.raises(ValueError, match="1 of 2"):
        to_numpy(pa.chunked_array([pa.array([1, None])]))


def test_pandas_stays_unimported() -> None:
    script = (
        "import sys, numpy as np, pyarrow as pa\n"
        "from em_pipeline.volumes.arrow import from_numpy, repeated, strings, to_numpy\n"
        "to_numpy(pa.chunked_array([from_numpy(np.array([1.0, np.nan]))])); strings(['a'])\n"
        "repeated('a', 2)\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
