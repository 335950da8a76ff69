"""`em table` as a person runs it."""

import csv
import io
from pathlib import Path

import pytest

from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.workspace import Workspace
from em_pipeline_tests.commands import em, run
from em_pipeline_tests.ingest.chain import run_chain

pytestmark = pytest.mark.integration


@pytest.fixture
def published(workspace: Workspace, environment: dict[str, str]) -> dict[str, str]:
    """Environment of a catalogue with two datasets."""
    for accession in ("11759", "99001"):
        run_chain(workspace, DatasetSpec(source="empiar", accession=accession))
    return environment


def test_text_csv_html_and_json(published: dict[str, str], tmp_path: Path) -> None:
    text = run(published, "em", "table").stdout
    assert "16×110×99 *" in text
    assert "FEI Magellan400" in text
    assert "empiar-11759 core.volume_shape.y: 110 (file" in text

    rows = list(csv.DictReader(io.StringIO(run(published, "em", "table", "--format", "csv").stdout)))
    assert [(row["dataset"], row["dtype"], row["axes"], row["unit"]) for row in rows] == [
        ("empiar-11759", "uint8", "zyx", "µm"),
        ("empiar-99001", "int16", "zyx", "Å"),
    ]
    assert {row["offset_z"] for row in rows} == {"0"}

    page = tmp_path / "table.html"
    done = run(published, "em", "table", "--format", "html", "--out", str(page))
    assert (done.returncode, str(page) in done.stdout.replace("\n", "")) == (0, True)
    assert 'class="disputed"' in page.read_text()
    plain = tmp_path / "table.txt"
    unbounded = {name: value for name, value in published.items() if name != "COLUMNS"}
    assert run(unbounded, "em", "table", "--out", str(plain)).returncode == 0
    assert plain.read_text() == run(unbounded, "em", "table").stdout
    assert max(map(len, plain.read_text().splitlines())) > 80
    assert list(tmp_path.glob(".*.part")) == []

    document = em(published, "table")
    assert set(document) == {"volumes", "acquisition", "conflicts"}
    assert document["acquisition"][0]["voltage_kv"] == 1.9


def test_an_empty_catalogue_and_a_folder_that_is_not_there(
    environment: dict[str, str], tmp_path: Path
) -> None:
    assert "No dataset is published yet" in run(environment, "em", "table").stdout
    missing = run(environment, "em", "table", "--format", "csv", "--out", str(tmp_path / "no" / "t.csv"))
    assert (missing.returncode, "Traceback" in missing.stderr) == (11, False)
