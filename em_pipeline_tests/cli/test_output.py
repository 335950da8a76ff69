"""What `em` prints: data as they are, whole headings, JSON that every reader takes."""

import io
import json
import math
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from em_pipeline.cli import catalogue, output
from em_pipeline.cli.output import print_json, printable, table
from em_pipeline.domain.errors import StorageFailed
from em_pipeline.domain.geometry import BoundingBox, VoxelSize
from em_pipeline_tests.commands import run


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Console:
    """80 columns, recorded."""
    console = Console(width=80, record=True, highlight=False)
    monkeypatch.setattr(output, "console", console)
    monkeypatch.setattr(catalogue, "console", console)
    return console


@pytest.mark.parametrize("cell", ["lab[/data]x", "x[bold].tif", "[red]", "a\\[b]"])
def test_cells_are_shown_as_they_are(screen: Console, cell: str) -> None:
    table("T", ["name"], [[cell]])
    assert cell in screen.export_text()


def test_a_name_in_another_encoding_can_be_shown(capfd: pytest.CaptureFixture[str]) -> None:
    table("T", ["name"], [["bad\udcff.tif"]])
    print_json({"name": "bad\udcff.tif"})
    assert capfd.readouterr().out.count("bad\\udcff.tif") == 2


@pytest.mark.parametrize("control", ["\x1b", "\x9b", "\x00", "\x07", "\x7f", "\u202e", "\u2066"])
def test_data_do_not_command_the_terminal(capfd: pytest.CaptureFixture[str], control: str) -> None:
    said = f"a{control}[31mb\tc"
    escaped = f"a\\u{ord(control):04x}[31mb"
    table("T", ["name"], [[said]])
    output.console.print(said, markup=False)
    with pytest.raises(typer.Exit):
        output.fail(StorageFailed(said, "", ""), as_json=False)
    print_json({"name": said})
    found = capfd.readouterr()
    assert control not in found.out + found.err
    assert found.out.count(escaped) == 3
    assert escaped in found.err
    assert printable(json.dumps(said, ensure_ascii=False)) == json.dumps(said, ensure_ascii=True)


def test_dataclasses_are_printed_as_their_fields(capfd: pytest.CaptureFixture[str]) -> None:
    box = BoundingBox.at((0, 1, 2), (3, 3, 3))
    print_json({"boxes": [box], "size": VoxelSize(z=8, y=4, x=4)})
    document = {"boxes": [{"start": [0, 1, 2], "stop": [3, 4, 5]}], "size": [8.0, 4.0, 4.0]}
    assert json.loads(capfd.readouterr().out) == document


ROW = {
    "dataset_id": "files-a-recording-of-2024-1a2b3c",
    "status": "processing",
    "shape": (1065, 2048, 1536),
    "voxel_size_nm": (5.123, 4.128, 4.128),
    "data_type": "uint16",
    "stored_bytes": 5 << 30,
    "conflicts": 3,
    "message": "Reading lab[/data]x",
}


def test_ls_at_80_columns_has_whole_headings_and_ids(screen: Console) -> None:
    catalogue._print_rows([ROW, {**ROW, "dataset_id": "empiar-1", "status": "known"}], every=True)
    shown = screen.export_text()
    for heading in catalogue.COLUMNS:
        assert heading in shown.splitlines()[1]
    for figures in ("1065×2048×1536", "5.123×4.128×4.128", "5.0 GiB"):
        assert shown.count(figures) == 2
    # What does not fit beside them goes on in the next line.
    assert "".join(line.split(" ")[0] for line in shown.splitlines()).count(str(ROW["dataset_id"])) >= 1
    assert "lab[/data]x" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_headings_stay_whole_beside_a_very_long_id(screen: Console) -> None:
    catalogue._print_rows([{**ROW, "dataset_id": "files-" + "x" * 120}], every=False)
    shown = screen.export_text().splitlines()
    assert all(heading in shown[1] for heading in catalogue.COLUMNS)
    assert "".join(line.split()[0] for line in shown[2:] if line.startswith(("f", "x"))).count("x") == 120


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A screen that is no terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    file = io.StringIO()
    screen = output.Screen(file=file, highlight=False)
    monkeypatch.setattr(output, "console", screen)
    monkeypatch.setattr(catalogue, "console", screen)
    return file


def test_no_line_is_broken_where_no_terminal_reads_it(piped: io.StringIO) -> None:
    long = {**ROW, "dataset_id": "files-" + "x" * 120, "organism": "Mus musculus", "licence": "CC0-1.0"}
    catalogue._print_rows([long], every=True)
    title, headings, row, message = piped.getvalue().splitlines()
    assert headings.split()[-3:] == ["organism", "modality", "licence"]
    assert row.split()[0] == long["dataset_id"]
    assert row.split()[-1] == "CC0-1.0"
    assert all(line == line.rstrip() for line in piped.getvalue().splitlines())
    output.console.print("word " * 100, markup=False)
    assert len(piped.getvalue().splitlines()) == len([title, headings, row, message]) + 1


def test_columns_bound_a_pipe_too(piped: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    catalogue._print_rows([ROW], every=False)
    assert max(map(len, piped.getvalue().splitlines())) <= 60


def test_an_empty_table(screen: Console) -> None:
    table("Conflicts (0)", ["field", "kept"], [])
    assert "field kept" in screen.export_text()


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
def test_json_holds_no_number_that_is_not_finite(document: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr("sys.stdout.write", written.append)
        print_json(document)
    json.loads("".join(written), parse_constant=refuse)


def test_not_finite_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, "b": [math.inf, 1.5], "c": (-math.inf,)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [None]}


def test_config_shows_a_home_with_brackets(tmp_path: Path, environment: dict[str, str]) -> None:
    shown = run({**environment, "EM_HOME": str(tmp_path / "x[" / "b]y"), "COLUMNS": "200"}, "em", "config")
    assert shown.returncode == 0, shown.stderr
    assert "x[/b]y" in shown.stdout


def test_config_refuses_a_database_url_without_showing_its_password(environment: dict[str, str]) -> None:
    done = run({**environment, "EM_DATABASE_URL": "postgresql://u:hunter2@h:abc/d"}, "em", "config")
    assert done.returncode == 2
    assert "input-refused" in done.stderr
    assert "hunter2" not in done.stderr
