"""Numbers of things in messages."""

import pytest

from em_pipeline.domain.wording import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 threads"), (1, "1 thread"), (2, "2 threads"), (1024, "1,024 threads")]
)
def test_one_thing_and_several(number: int, said: str) -> None:
    assert counted(number, "thread") == said


def test_plurals_of_their_own() -> None:
    assert [counted(n, "more entry", "more entries") for n in (1, 2)] == ["1 more entry", "2 more entries"]
