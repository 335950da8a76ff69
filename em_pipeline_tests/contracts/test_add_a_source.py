"""The guide to adding a source quotes its example truly; the contract suite runs the example itself."""

import re
from pathlib import Path

import pytest

from em_pipeline_tests.contracts.case_tiffindex import EXAMPLE
from em_pipeline_tests.contracts.cases import CASES

GUIDE = EXAMPLE.parents[1] / "add-a-source.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", blocks())
def test_every_quoted_block_is_in_the_example(block: str) -> None:
    assert block in EXAMPLE.read_text(encoding="utf-8")


def test_the_example_is_short_and_its_length_is_told() -> None:
    lines = len(EXAMPLE.read_text(encoding="utf-8").splitlines())
    assert lines < 100
    assert f"{lines} lines" in GUIDE.read_text(encoding="utf-8")


def test_paths_in_the_guide_exist() -> None:
    root = EXAMPLE.parents[2]
    for path in re.findall(
        r"`((?:em_pipeline|em_pipeline_tests|docs)/[\w/.-]+)`", GUIDE.read_text(encoding="utf-8")
    ):
        assert Path(root / path).exists(), path


def test_the_example_is_held_to_the_contract() -> None:
    assert "tiffindex" in CASES
