"""Small documents below an address, read within a budget."""

from pathlib import Path
from urllib.parse import quote

from em_pipeline.domain.errors import BudgetSpent, InputRefused, NotFound
from em_pipeline.storage.answers import looks_like_html
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.ranged import Meter
from em_pipeline.storage.transport import Transport


class FolderDocuments:
    """Documents in a folder of this machine."""

    def __init__(self, folder: Path, meter: Meter) -> None:
        self._folder, self._meter = folder, meter

    def fetch(self, key: str) -> bytes | None:
        """The bytes of a document, None where there is none."""
        try:
            data = (self._folder / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise InputRefused(f"Read {self._folder / key}", str(error), "Make it readable") from error
        self._meter.ask(key, len(data))
        self._meter.got(len(data))
        return data


class WebDocuments:
    """Documents below the http(s) URL `base`.

    A key that may not be read counts as absent, because an object store that may not be listed answers so
    for one that is not there; `refusal` keeps the last such answer.
    """

    def __init__(self, base: str, transport: Transport, meter: Meter) -> None:
        self.refusal: InputRefused | None = None
        self._base, _, self._query = base.partition("?")
        self._transport, self._meter = transport, meter

    def fetch(self, key: str) -> bytes | None:
        """The bytes of a document, None where there is none.

        Raises `BudgetSpent`, and `SourceUnavailable` for an outage or a web page in its place.
        """
        url = f"{self._base.rstrip('/')}/{quote(key)}" if key else self._base
        url = f"{url}?{self._query}" if self._query else url
        try:
            return self._transport.retrying(url, lambda: self._ask(url))
        except NotFound:
            return None
        except InputRefused as error:
            self.refusal = error
            return None

    def _ask(self, url: str) -> bytes:
        self._meter.ask(url, 0)
        body = bytearray()
        headers = {"Accept-Encoding": "gzip"}
        with self._transport.exchange("GET", url, headers, accept=frozenset({200})) as response:
            for piece in response.iter_bytes():
                body += piece
                self._meter.got(len(piece))
                if self._meter.bytes > self._meter.most_bytes:
                    raise BudgetSpent(f"Read {url}", f"it is longer than {len(body)} bytes", "Download it")
            if looks_like_html(response.headers.get("Content-Type"), bytes(body[:64])):
                raise Fault("a web page came in place of the document")
        return bytes(body)
