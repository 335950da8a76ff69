"""The comparison for people and for programs: cells as text, one CSV, one HTML page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from em_pipeline.domain.wording import figure
from em_pipeline.ingest.tables import SHOWN_ACQUISITION, SHOWN_VOLUMES, Comparison

if TYPE_CHECKING:
    import pandas as pd

DISPUTED = "*"
TITLES = ("Volumes", "Acquisition", "Conflicts")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #1a1a1a; background: #fff }
table { border-collapse: collapse; margin: 0 0 2rem }
caption { text-align: left; font-weight: 600; font-size: 1.15em; padding: .4rem 0 }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: left; vertical-align: top }
th { background: #f5f5f5; white-space: nowrap }
td.disputed { background: #fff3cd }
td.empty { color: #999 }
"""


def shown_rows(
    found: Comparison, table: "pd.DataFrame", shown: Mapping[str, Sequence[str]]
) -> list[list[tuple[str, bool]]]:
    """Rows of (text, whether sources disagree about it), the dataset first; unknown cells are empty."""
    return [
        [
            (str(row["dataset"]), False),
            *(
                (_text([row[name] for name in names]), found.disputed(str(row["dataset"]), names))
                for names in shown.values()
            ),
        ]
        for row in table.to_dict("records")
    ]


def csv(found: Comparison) -> str:
    """One row per dataset with every column of both tables, and the fields that sources disagree about."""
    joined = found.volumes.merge(found.acquisition, on="dataset", validate="one_to_one")
    fields = found.conflicts.groupby("dataset")["field"].agg(lambda names: " ".join(sorted(set(names))))
    joined["conflicts"] = joined["dataset"].map(fields)
    text: str = joined.to_csv(index=False)
    return text


def html(found: Comparison) -> str:
    """One page that needs nothing else."""
    volumes = _html_table(
        TITLES[0], ["dataset", *SHOWN_VOLUMES], shown_rows(found, found.volumes, SHOWN_VOLUMES)
    )
    acquisition = _html_table(
        TITLES[1], ["dataset", *SHOWN_ACQUISITION], shown_rows(found, found.acquisition, SHOWN_ACQUISITION)
    )
    rows = [[(str(cell), False) for cell in row] for row in found.conflicts.itertuples(index=False)]
    conflicts = (
        _html_table(TITLES[2], list(found.conflicts.columns), rows) if rows else "<p>No conflicts.</p>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>EM datasets compared</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>EM datasets compared</h1>\n"
        "<p>Axes are z × y × x. A marked cell is one about which page, API and file disagree.</p>\n"
        f"{volumes}\n{acquisition}\n{conflicts}\n</body></html>\n"
    )


def markdown(found: Comparison, table: "pd.DataFrame", shown: Mapping[str, Sequence[str]]) -> str:
    """A table as GitHub and Dagster show it; disputed cells end with a star."""
    headings = ["dataset", *shown]
    rows = [[marked(text, at_odds) for text, at_odds in row] for row in shown_rows(found, table, shown)]
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines)


def marked(text: str, disputed: bool) -> str:
    """A cell with a star where sources disagree about it."""
    return f"{text} {DISPUTED}" if disputed else text


def _html_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[tuple[str, bool]]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "\n".join(f"<tr>{''.join(_html_cell(*cell) for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(title)}</caption>\n<tr>{head}</tr>\n{body}\n</table>"


def _html_cell(text: str, disputed: bool) -> str:
    kind = ' class="disputed" title="sources disagree"' if disputed else "" if text else ' class="empty"'
    return f"<td{kind}>{escape(text) or '–'}</td>"


def _text(cells: Sequence[Any]) -> str:
    """Cells put together with ×; empty where all are unknown, ? for one of several."""
    import pandas as pd

    texts = [
        "?" if pd.isna(cell) else figure(cell) if isinstance(cell, float) else str(cell) for cell in cells
    ]
    return "" if set(texts) == {"?"} else "×".join(texts)
