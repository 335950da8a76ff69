"""A portal on this machine that answers as EMPIAR's three servers do, for demonstrations and tests.

`python -m em_pipeline.demo.portal --port 0 --folder DIR` prints `{"url": "http://127.0.0.1:…"}` and serves
until it is ended. In a program, `DemoPortal(folder)` is a context manager.
"""

import argparse
import json
import re
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_pipeline.demo.apache import apache_index
from em_pipeline.demo.portal_entries import (
    RETINA_SHAPE,
    DemoEntry,
    Shape3,
    ebi_search_answer,
    entries,
    generate,
    rest_answer,
    search_answer,
)
from em_pipeline.demo.replay import Replay, Reply, Request, not_found, text

ARCHIVE = "/empiar/world_availability/"
ENTRIES = "/empiar/api/entry/"
ENTRY = re.compile(r"^/empiar/api/entry/(?:EMPIAR-)?(\d+)/?$")
BATCH = re.compile(r"(?:EMPIAR-)?(\d+)(?:-(\d+))?")
EBI_SEARCH = "/ebisearch/ws/rest/empiar"
SEARCH = re.compile(r"^/biostudies/api/v1/([^/]+)/search$")
COLLECTION = "BioImages-EMPIAR"


class DemoPortal(Replay):
    """EMPIAR's three servers in one.

    `folder` keeps the generated files; a second portal on it starts at once. `retina_shape` (z-y-x) sizes
    the entry 11759.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, host: str = "127.0.0.1", retina_shape: Shape3 = RETINA_SHAPE
    ) -> None:
        super().__init__(port=port, host=host)
        self.entries: tuple[DemoEntry, ...] = entries(retina_shape)
        self.tree = generate(folder, self.entries, retina_shape)
        self._omissions: dict[str, range] = {}

    @property
    def options(self) -> dict[str, str]:
        """The bases of all three servers, as the constructor of the EMPIAR source takes them."""
        return {"api": self.url, "ftp": self.url, "biostudies": self.url}

    def omit(self, name: str, times: int, after: int = 0) -> None:
        """Leave the file `name`, which is served all the same, out of `times` listings, `after` so many."""
        with self._lock:
            self._omissions[name] = range(after, after + times)

    def heal(self) -> None:
        """Forget every trouble, omission and replacement."""
        super().heal()
        with self._lock:
            self._omissions.clear()

    def omitted_now(self, names: list[str]) -> set[str]:
        """Names that a listing of `names` leaves out this time."""
        with self._lock:
            known = self._omissions.keys() & set(names)
            omitted = {name for name in known if 0 in self._omissions[name]}
            for name in known:
                left = self._omissions[name]
                self._omissions[name] = range(left.start - 1, left.stop - 1)
        return omitted

    def answer(self, request: Request) -> Reply:
        """Entry, search or archive, whichever server the path belongs to."""
        if match := ENTRY.match(request.path):
            return self._entry(match[1])
        if request.path == ENTRIES and request.method == "POST":
            return self._batch(request.body.decode())
        if match := SEARCH.match(request.path):
            return self._search(match[1], request.query)
        if request.path == EBI_SEARCH:
            return self._ebi_search(request.query)
        if request.path.startswith(ARCHIVE):
            return self._archive(request.path)
        return not_found()

    def _entry(self, accession: str) -> Reply:
        for entry in self.entries:
            if entry.accession == accession:
                return text(json.dumps(rest_answer(entry)), "application/json")
        return text('{"detail": "Not found."}', "application/json", 404)

    def _batch(self, wanted: str) -> Reply:
        """Entries by a comma list of accessions and ranges; those that do not exist are left out."""
        found: dict[str, Any] = {}
        for part in wanted.split(","):
            if match := BATCH.fullmatch(part.strip()):
                first, last = int(match[1]), int(match[2] or match[1])
                for entry in self.entries:
                    if first <= int(entry.accession) <= last:
                        found |= rest_answer(entry)
        return text(json.dumps(found), "application/json")

    def _ebi_search(self, query: Mapping[str, list[str]]) -> Reply:
        start, size = int(query.get("start", ["0"])[0]), int(query.get("size", ["15"])[0])
        known = query.get("query") == ["domain_source:empiar"]
        return text(ebi_search_answer(self.entries if known else (), start, size), "application/json")

    def _search(self, collection: str, query: Mapping[str, list[str]]) -> Reply:
        page, size = int(query.get("page", ["1"])[0]), int(query.get("pageSize", ["20"])[0])
        known = collection == COLLECTION and query.get("query") == ["*:*"]
        return text(search_answer(self.entries if known else (), page, size), "application/json")

    def _archive(self, path: str) -> Reply:
        target = self.tree.joinpath(*[part for part in path.removeprefix(ARCHIVE).split("/") if part])
        if not target.resolve().is_relative_to(self.tree.resolve()) or not target.exists():
            return not_found()
        if target.is_dir():
            omitted = self.omitted_now([child.name for child in target.iterdir()])
            return text(apache_index(path if path.endswith("/") else f"{path}/", target, omitted))
        return Reply(target)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Serve the demonstration portal on this machine.")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--folder", type=Path, required=True, help="keeps the generated files")
    parser.add_argument("--shape", default="16,550,549", help="z,y,x of the entry 11759")
    given = parser.parse_args(arguments)
    z, y, x = (int(part) for part in given.shape.split(","))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with DemoPortal(given.folder, port=given.port, retina_shape=(z, y, x)) as portal:
        sys.stdout.write(json.dumps({"url": portal.url}) + "\n")
        sys.stdout.flush()
        ended.wait()


if __name__ == "__main__":
    main()
