"""The curated specs are read strictly."""

from pathlib import Path

import pytest

from em_pipeline.domain.errors import InputRefused
from em_pipeline.sources.curated import curated_specs


def test_the_curated_specs_are_valid_and_say_why() -> None:
    specs = {spec.dataset_id: spec for spec in curated_specs()}
    assert "empiar-11759" in specs
    for spec in specs.values():
        assert all(override.reason for override in spec.overrides.values())
        assert all(c.page.startswith("http") and c.read_on for c in spec.curated.values())


GOOD = "  - {source: empiar, accession: '1'}\n"
SECOND = "  - source: empiar\n    accession: '2'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("datasets:\n  - {source: empiar, acession: '1'}\n", ["entry 0", "acession", "nearest is accession"]),
        (
            f"datasets:\n{GOOD}{SECOND}    overrides: {{core.titel: {{value: x, reason: why}}}}",
            ["entry 1", "empiar 2", "core.titel", "nearest is overrides.core.title"],
        ),
        (
            f"datasets:\n{SECOND}    curated: {{core.title: {{value: x, pgae: y, read_on: z}}}}",
            ["curated.core.title.pgae", "nearest is curated.core.title.page"],
        ),
        (
            f"datasets:\n{SECOND}    curated: {{core.title: {{value: x}}}}",
            ["curated.core.title.page", "required"],
        ),
        ("datasets:\n  - {source: empiar}\n", ["entry 0", "accession", "required"]),
        ("datasets:\n  - {source: empiar, accession: '/'}\n", ["entry 0", "dataset id"]),
        (f"datasets:\n{GOOD}{GOOD}", ["entry 1", "empiar-1 is listed twice"]),
        ("datasets:\n  - empiar-1\n", ["entry 0", "not a mapping"]),
        ("datasets: {}\n", ["not a list"]),
        ("dataset: []\n", ["'dataset'", "`datasets`"]),
        ("datasets: [\n", ["not YAML"]),
    ],
)
def test_a_mistake_is_named(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "specs.yaml"
    path.write_text(text)
    with pytest.raises(InputRefused) as raised:
        curated_specs(path)
    for word in [str(path), *words]:
        assert word in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="No such file"):
        curated_specs(tmp_path / "none.yaml")
