"""Listings of folders as Apache's mod_autoindex writes them."""

from collections.abc import Collection
from html import escape
from pathlib import Path
from time import gmtime, strftime
from urllib.parse import quote


def apache_index(path: str, folder: Path, omitted: Collection[str] = ()) -> str:
    """The page for `folder`, served as `path` (ends in /): sort links, absolute parent, rounded sizes."""
    rows = [
        '<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th>'
        '<th><a href="?C=S;O=A">Size</a></th><th><a href="?C=D;O=A">Description</a></th></tr>',
        f'<tr><td><a href="{quote(path.rstrip("/").rpartition("/")[0])}/">Parent Directory</a></td></tr>',
    ]
    for child in sorted(folder.iterdir()):
        if child.name in omitted:
            continue
        name = f"{child.name}/" if child.is_dir() else child.name
        modified = strftime("%Y-%m-%d %H:%M", gmtime(child.stat().st_mtime))
        size = "-" if child.is_dir() else _rounded(child.stat().st_size)
        rows.append(
            f'<tr><td><a href="{escape(quote(name))}">{escape(name)}</a></td>'
            f'<td align="right">{modified}  </td><td align="right">{size}</td></tr>'
        )
    title = f"Index of {escape(path.rstrip('/'))}"
    body = "\n".join(rows)
    head = f"<html><head><title>{title}</title></head><body><h1>{title}</h1>"
    return f"{head}<table>\n{body}\n</table></body></html>"


def _rounded(size: int) -> str:
    for unit in ("", "K", "M", "G"):
        if size < 1000:
            return f"{size}{unit}"
        size = round(size / 1024)
    return f"{size}T"
