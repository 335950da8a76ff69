"""Numbers of things in messages."""

import pytest

from em_pipeline.domain.wording import binary_size, counted, figure


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 threads"), (1, "1 thread"), (2, "2 threads"), (1024, "1,024 threads")]
)
def test_one_thing_and_several(number: int, said: str) -> None:
    assert counted(number, "thread") == said


def test_plurals_of_their_own() -> None:
    assert [counted(n, "more entry", "more entries") for n in (1, 2)] == ["1 more entry", "2 more entries"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(127000.0, "127000"), (1_270_000.0, "1270000"), (7.998250424, "7.99825"), (1e-5, "0.00001")],
)
def test_figures_have_no_exponent(value: float, said: str) -> None:
    assert figure(value) == said


def test_sizes_in_binary_units() -> None:
    assert [binary_size(n) for n in (12, 1536, 5 << 40)] == ["12 B", "1.5 KiB", "5.0 TiB"]
