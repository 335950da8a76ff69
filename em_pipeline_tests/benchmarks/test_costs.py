"""The figures of docs/costs.md are those that `benchmarks/costs.py` prints."""

from pathlib import Path

from benchmarks.costs import lines

COSTS = Path(__file__).resolve().parents[2] / "docs" / "costs.md"


def test_the_document_shows_what_is_printed() -> None:
    shown = COSTS.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines() if line not in shown] == []
