"""How `em` answers: text or JSON on standard output, errors on standard error, exit codes."""

import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from em_pipeline.domain.errors import EmError, StorageFailed
from em_pipeline.domain.geometry import VoxelSize
from em_pipeline.domain.wording import binary_size, figure

EXIT_CODES = """Exit codes: 0 done · 1 failed · 2 refused input · 3 unreadable record or format ·
4 portal unavailable · 5 corrupt or mismatched data · 6 not publishable · 7 not found ·
8 catalogue schema · 9 own service unavailable · 10 busy · 11 disk refused a write ·
12 reading budget spent · 130 interrupted."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def _lower(value: str) -> str:
    return value.lower()


DatasetId = Annotated[
    str, typer.Argument(help="Dataset id, as in `em ls`; case does not matter.", callback=_lower)
]

# C0 but for tab and newline, DEL, C1 (ECMA-48), and the bidirectional embeddings, overrides and isolates
# (UAX #9): a terminal obeys them, so a title could rewrite what is on the screen.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` as UTF-8 can carry it and a terminal may be given it: other characters become such as `\\u001b`.

    That is also how JSON writes them, so a document stays the same document.
    """
    shown = CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return shown.encode(errors="backslashreplace").decode()


# Nothing, or numbers along axes, with a unit or a mark: what is read wrongly when it is broken.
FIGURES = re.compile(r"|[\d?][\d.,e+×?-]*( [KMGT]?i?B)?( ?\W)?")


# Columns of what is no terminal: files and pipes break no line.
UNBROKEN = 1_000_000


class Screen(Console):
    """A console that shows data as they are, without obeying them.

    Lines are as long as they need to be where no terminal shows them; `COLUMNS` bounds them there too.
    """

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        known = super().size
        if self.file.isatty() or os.environ.get("COLUMNS"):
            return known
        return ConsoleDimensions(UNBROKEN, known.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(one) if isinstance(one, str) else one for one in objects), **options)


console = Screen(highlight=False)
errors = Screen(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document (RFC 8259) on standard output.

    Dataclasses are their fields, voxel sizes `[z, y, x]`, paths and dates text, numbers that are not finite
    `null`.
    """
    text = json.dumps(_plain(document), indent=2, default=str, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(printable(text) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | VoxelSize):
        return [_plain(part) for part in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    whole: Collection[str] = (),
    on: Console | None = None,
) -> None:
    """A table for people; cells are shown as they are, never read as markup.

    It goes to standard output, or to another screen. Headings are always whole. Cells of the columns `whole`
    are folded only where the screen has no room for them even when all other columns are as narrow as their
    headings.
    """
    screen = console if on is None else on
    cells = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    shown = Table(
        title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column, width in zip(columns, _widths(columns, cells, whole, screen.width), strict=True):
        shown.add_column(column, width=width, overflow="fold")
    for row in cells:
        shown.add_row(*map(Text, row))
    if screen.width < UNBROKEN:
        screen.print(shown)
        return
    with screen.capture() as captured:
        screen.print(shown)
    # A line ends where its text does: one long cell would fill all the others up.
    screen.out(*(line.rstrip() for line in captured.get().splitlines()), sep="\n", highlight=False)


def _widths(
    columns: Sequence[str], cells: Sequence[Sequence[str]], whole: Collection[str], width: int
) -> list[int]:
    """Each column's width: first headings, then figures, then columns `whole`, others in equal shares."""
    widths = [cell_len(column) for column in columns]
    wanted = [
        max(0, *(cell_len(line) - widths[place] for row in cells for line in row[place].splitlines()), 0)
        for place in range(len(columns))
    ]
    room = max(0, width - sum(widths) - len(columns))
    figures = [n for n in range(len(columns)) if all(FIGURES.fullmatch(row[n]) for row in cells)]
    kept = [*figures, *(n for n, name in enumerate(columns) if name in whole and n not in figures)]
    others = sorted((place for place in range(len(columns)) if place not in kept), key=wanted.__getitem__)
    for place in kept:
        given = min(wanted[place], room)
        widths[place] += given
        room -= given
    for left, place in zip(range(len(others), 0, -1), others, strict=True):
        given = min(wanted[place], room // left)
        widths[place] += given
        room -= given
    return widths


@contextmanager
def answering(as_json: bool) -> Iterator[None]:
    """Print an `EmError` as a message, or as JSON, and exit with its code."""
    try:
        yield
    except EmError as error:
        fail(error, as_json)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        refusal = StorageFailed(
            f"Use{place}", error.strerror or str(error), "Check that it exists and that you may write there"
        )
        fail(refusal, as_json)
    except KeyboardInterrupt:
        errors.print("Interrupted. Run the same command again to continue where it stopped.")
        raise typer.Exit(130) from None


def fail(error: EmError, as_json: bool) -> None:
    """Say what was tried, what was found and what to do; exit with the error's code."""
    if as_json:
        document = {
            "error": error.slug,
            "tried": error.tried,
            "found": error.found,
            "to_do": error.to_do,
            "exit_code": error.exit_code,
        }
        sys.stderr.write(printable(json.dumps(document, ensure_ascii=False)) + "\n")
    else:
        errors.print(f"[bold red]{error.slug}[/]", end=" ")
        errors.print(f"{error.tried}: {error.found}", markup=False, soft_wrap=True)
        if error.to_do:
            errors.print(f"  → {error.to_do}", markup=False, soft_wrap=True)
    raise typer.Exit(error.exit_code)


def size(value: int | None) -> str:
    """Bytes with a binary unit."""
    return "" if value is None else binary_size(value)


def by_axis(values: Sequence[object] | None) -> str:
    """z × y × x."""
    return (
        "" if values is None else "×".join(figure(v, 4) if isinstance(v, float) else str(v) for v in values)
    )
