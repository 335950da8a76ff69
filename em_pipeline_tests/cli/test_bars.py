"""What stands in a log where there is no terminal for bars."""

from io import StringIO

import pytest

from em_pipeline.cli.bars import Bars
from em_pipeline.cli.output import Screen


@pytest.mark.parametrize(
    ("total", "unit", "line"),
    [
        (920125440, "bytes", "rechunk: 920,125,440 bytes"),
        (1, "bytes", "rechunk: 1 byte"),
        (1, "files", "rechunk: 1 file"),
        (0, "bytes", "rechunk"),
    ],
)
def test_what_a_step_comes_to_is_worded(total: int, unit: str, line: str) -> None:
    out = StringIO()
    Bars(Screen(file=out)).start("rechunk", total, unit)
    assert out.getvalue() == f"{line}\n"
