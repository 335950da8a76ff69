"""A portal on this machine that answers as EMPIAR's three servers do, for demonstrations and tests.

`python -m em_pipeline.demo.portal --port 0 --folder DIR` prints `{"url": "http://127.0.0.1:…"}` and serves
until it is ended. In a program, `DemoPortal(folder)` is a context manager.
"""

import argparse
import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from em_pipeline.demo.portal_entries import RETINA_SHAPE, DemoEntry, Shape3, entries, generate
from em_pipeline.demo.portal_handler import PortalHandler


class Trouble(StrEnum):
    """What may go wrong with an answer."""

    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    MISSING = "404"
    RESET = "reset"  # the connection is cut before an answer
    HTML = "html"  # 200 with a maintenance page
    TRUNCATED = "truncated"  # a 200 whose body ends halfway, with the length of what was sent
    CUT = "cut"  # the connection ends before the announced length


@dataclass
class Quirk:
    """`trouble` for requests whose path contains `match`, for the next `times` of them (None: always)."""

    trouble: Trouble
    match: str
    times: int | None = None


class DemoPortal:
    """The portal, serving from `start` or entry until `stop` or exit. Safe to use from several threads.

    `folder` keeps the generated files; a second portal on it starts at once. `retina_shape` (z-y-x) sizes
    the entry 11759. `bytes_served` counts bodies, `requests` counts by path. Bases of all three servers:
    `options`, as the constructor of the EMPIAR source takes them.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, host: str = "127.0.0.1", retina_shape: Shape3 = RETINA_SHAPE
    ) -> None:
        self.entries: tuple[DemoEntry, ...] = entries(retina_shape)
        self.tree = generate(folder, self.entries, retina_shape)
        self.bytes_served = 0
        self.requests: Counter[str] = Counter()
        self.documents: dict[str, str] = {}
        self._lock = threading.Lock()
        self._quirks: list[Quirk] = []
        self._omissions: dict[str, range] = {}
        self._server = _Server((host, port), partial(PortalHandler, portal=self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def options(self) -> dict[str, str]:
        return {"api": self.url, "ftp": self.url, "biostudies": self.url}

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def trouble(self, trouble: Trouble, match: str = "", times: int | None = None) -> None:
        """From now on, answer requests whose path contains `match` with `trouble`."""
        with self._lock:
            self._quirks.append(Quirk(trouble, match, times))

    def omit(self, name: str, times: int, after: int = 0) -> None:
        """Leave the file `name`, which is served all the same, out of `times` listings, `after` so many."""
        with self._lock:
            self._omissions[name] = range(after, after + times)

    def replace(self, path: str, text: str) -> None:
        """Answer `path` with `text` instead of what the portal would say."""
        with self._lock:
            self.documents[path] = text

    def heal(self) -> None:
        """Forget every trouble, omission and replacement."""
        with self._lock:
            self._quirks.clear()
            self._omissions.clear()
            self.documents.clear()

    def count_request(self, path: str) -> None:
        with self._lock:
            self.requests[path] += 1

    def count_bytes(self, sent: int) -> None:
        with self._lock:
            self.bytes_served += sent

    def next_trouble(self, path: str) -> Trouble | None:
        with self._lock:
            for quirk in self._quirks:
                if quirk.match in path and quirk.times != 0:
                    if quirk.times is not None:
                        quirk.times -= 1
                    return quirk.trouble
        return None

    def omitted_now(self, names: list[str]) -> set[str]:
        """Names that a listing of `names` leaves out this time."""
        with self._lock:
            known = self._omissions.keys() & set(names)
            omitted = {name for name in known if 0 in self._omissions[name]}
            for name in known:
                left = self._omissions[name]
                self._omissions[name] = range(left.start - 1, left.stop - 1)
        return omitted


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A listener whose clients vanish mid-answer is at work as intended, not in error.
    handle_error: Callable[..., None] = staticmethod(lambda *_: None)


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
