"""How the demonstration portal answers one request."""

import json
import re
import socket
import struct
from email.utils import formatdate
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from em_pipeline.demo.portal_entries import rest_answer, search_answer

if TYPE_CHECKING:
    from em_pipeline.demo.portal import DemoPortal

ARCHIVE = "/empiar/world_availability/"
ENTRY = re.compile(r"^/empiar/api/entry/(?:EMPIAR-)?(\d+)/?$")
SEARCH = re.compile(r"^/biostudies/api/v1/([^/]+)/search$")
RANGE = re.compile(r"bytes=(?:\d+-\d*|-\d+)")
COLLECTION = "BioImages-EMPIAR"
MAINTENANCE = "<!DOCTYPE html><html><title>Maintenance</title><body>We will be back soon.</body></html>"
BLOCK = 1 << 20


class PortalHandler(BaseHTTPRequestHandler):
    """GET and HEAD, over connections that stay open."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def __init__(self, *args: Any, portal: "DemoPortal") -> None:
        self.portal = portal
        self._trouble: str | None = None
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are counted by the portal, not printed."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self._trouble = self.portal.next_trouble(self.path)
        if self._trouble == "reset":
            self._reset()
        elif self._trouble in ("500", "503", "404"):
            self._text("<html>trouble</html>", "text/html", HTTPStatus(int(self._trouble)))
        elif self._trouble == "html":
            self._text(MAINTENANCE, "text/html")
        elif path in self.portal.documents:
            self._text(self.portal.documents[path], "text/plain")
        elif match := ENTRY.match(path):
            self._entry(match[1])
        elif match := SEARCH.match(path):
            self._search(match[1], parse_qs(parts.query))
        elif path.startswith(ARCHIVE):
            self._archive(path)
        else:
            self._text("<html>Not Found</html>", "text/html", HTTPStatus.NOT_FOUND)

    def _reset(self) -> None:
        linger_zero = struct.pack("ii", 1, 0)  # closing then sends RST, not FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        self.portal.count_request(urlsplit(self.path).path)
        self.close_connection = True
        self.connection.close()

    def _entry(self, accession: str) -> None:
        for entry in self.portal.entries:
            if entry.accession == accession:
                self._text(json.dumps(rest_answer(entry)), "application/json")
                return
        self._text('{"detail": "Not found."}', "application/json", HTTPStatus.NOT_FOUND)

    def _search(self, collection: str, query: dict[str, list[str]]) -> None:
        page, size = int(query.get("page", ["1"])[0]), int(query.get("pageSize", ["20"])[0])
        known = collection == COLLECTION and query.get("query") == ["*:*"]
        self._text(search_answer(self.portal.entries if known else (), page, size), "application/json")

    def _archive(self, path: str) -> None:
        tree = self.portal.tree
        target = tree.joinpath(*[part for part in path.removeprefix(ARCHIVE).split("/") if part])
        if not target.resolve().is_relative_to(tree.resolve()) or not target.exists():
            self._text("<html>Not Found</html>", "text/html", HTTPStatus.NOT_FOUND)
        elif target.is_dir():
            self._text(self._listing(path if path.endswith("/") else f"{path}/", target), "text/html")
        else:
            self._file(target)

    def _listing(self, path: str, folder: Path) -> str:
        """An index as Apache's mod_autoindex writes it: sort links, absolute parent, rounded sizes."""
        children = sorted(folder.iterdir())
        omitted = self.portal.omitted_now([child.name for child in children])
        rows = [
            '<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th>'
            '<th><a href="?C=S;O=A">Size</a></th><th><a href="?C=D;O=A">Description</a></th></tr>',
            f'<tr><td><a href="{quote(path.rstrip("/").rpartition("/")[0])}/">Parent Directory</a></td></tr>',
        ]
        for child in children:
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
        return (
            f"<html><head><title>{title}</title></head>"
            f"<body><h1>{title}</h1><table>\n{body}\n</table></body></html>"
        )

    def _file(self, path: Path) -> None:
        stat = path.stat()
        first, last, status = 0, stat.st_size - 1, 200
        etag = f'"{stat.st_size:x}-{int(stat.st_mtime):x}"'
        asked = self.headers.get("Range")
        if asked and RANGE.fullmatch(asked) and self.headers.get("If-Range", etag) == etag:
            span = _span(asked, stat.st_size)
            if span is None:
                self._head(416, {"Content-Range": f"bytes */{stat.st_size}", "Content-Length": "0"})
                return
            first, last, status = *span, 206
        length = last - first + 1
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(length),
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
        }
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{stat.st_size}"
        self._head(status, headers)
        if self.command == "GET":
            self._send(path, first, length)

    def _send(self, path: Path, first: int, length: int) -> None:
        if self._trouble in ("cut", "truncated"):
            length //= 2
            self.close_connection = True
        with path.open("rb") as file:
            file.seek(first)
            while length > 0:
                block = file.read(min(BLOCK, length))
                self.wfile.write(block)
                length -= len(block)
                self.portal.count_bytes(len(block))

    def _text(self, text: str, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = text.encode()
        if self._trouble == "truncated":
            body = body[: len(body) // 2]
        announced = len(body)
        if self._trouble == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        self._head(status, {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(announced)})
        if self.command == "GET":
            self.wfile.write(body)
            self.portal.count_bytes(len(body))

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.portal.count_request(urlsplit(self.path).path)


def _rounded(size: int) -> str:
    for unit in ("", "K", "M", "G"):
        if size < 1000:
            return f"{size}{unit}"
        size = round(size / 1024)
    return f"{size}T"


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range (RFC 9110 §14.1.2), or None where it cannot be satisfied."""
    first, last = asked.removeprefix("bytes=").split("-")
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) else None
    stop = min(int(last), size - 1) if last else size - 1
    return (int(first), stop) if int(first) <= stop else None
