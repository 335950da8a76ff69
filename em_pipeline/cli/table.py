"""`em table`: the published datasets side by side."""

import io
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from em_pipeline.cli.output import Json, Screen, answering, console, print_json, printable, table
from em_pipeline.settings import load_settings

if TYPE_CHECKING:
    from em_pipeline.ingest.tables import Comparison


class TableFormat(StrEnum):
    """How the comparison is written."""

    TEXT = "text"
    CSV = "csv"
    HTML = "html"


def compare(
    form: Annotated[TableFormat, typer.Option("--format", help="text, csv or html.")] = TableFormat.TEXT,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to a file instead.")] = None,
    as_json: Json = False,
) -> None:
    """Compare the published datasets: how they are stored, how they were imaged, what is in dispute.

    Cells about which page, API and file disagree are marked. CSV has one row per dataset with all columns.
    """
    with answering(as_json):
        from em_pipeline.ingest import table_output
        from em_pipeline.ingest.tables import comparison
        from em_pipeline.ingest.workspace import open_catalog

        with open_catalog(load_settings().settings) as catalog:
            found = comparison(catalog.published_records())
        if as_json:
            print_json(_document(found))
        elif form is TableFormat.TEXT:
            _print(found, out)
        else:
            text = table_output.csv(found) if form is TableFormat.CSV else table_output.html(found)
            _write(text, out)


def _document(found: "Comparison") -> dict[str, object]:
    import json

    tables = {"volumes": found.volumes, "acquisition": found.acquisition, "conflicts": found.conflicts}
    return {name: json.loads(frame.to_json(orient="records")) for name, frame in tables.items()}


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(printable(text), nl=False)
        return
    temporary = out.with_name(f".{out.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(out)
    console.print(f"Written to {out}", markup=False)


def _print(found: "Comparison", out: Path | None) -> None:
    if out is None:
        _print_tables(found, console)
        return
    file = io.StringIO()
    _print_tables(found, Screen(file=file, highlight=False))
    _write(file.getvalue(), out)


def _print_tables(found: "Comparison", screen: Console) -> None:
    from em_pipeline.ingest.table_output import DISPUTED, TITLES, marked, shown_rows
    from em_pipeline.ingest.tables import SHOWN_ACQUISITION, SHOWN_VOLUMES

    if found.volumes.empty:
        screen.print("No dataset is published yet. `em ingest ID|PATH|URL` ingests one.")
        return
    for title, frame, shown in (
        (TITLES[0], found.volumes, SHOWN_VOLUMES),
        (TITLES[1], found.acquisition, SHOWN_ACQUISITION),
    ):
        rows = [[marked(*cell) for cell in row] for row in shown_rows(found, frame, shown)]
        table(title, ["dataset", *shown], rows, whole=("dataset",), on=screen)
        screen.print()
    if found.conflicts.empty:
        screen.print("No conflicts.")
        return
    screen.print(f"{TITLES[2]} ({DISPUTED} above): what was kept, and what another source says", markup=False)
    for row in found.conflicts.itertuples(index=False):
        line = f"{row.dataset} {row.field}: {row.kept} ({row.kept_origin}, {row.kept_from}); "
        line += f"not {row.rejected} ({row.rejected_origin}, {row.rejected_from})"
        screen.print(printable(line), markup=False, soft_wrap=True)
