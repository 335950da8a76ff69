"""How long a server may take over the headers and the body of one answer, though it is never silent.

Imported only where a request is sent: it needs httpx, which is slow to start.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx

from em_pipeline.storage.faults import Behind, Fault
from em_pipeline.storage.pace import Flow, Line

# The first header may come as late as a silence may last; the last one as late again.
HEADER_SILENCES = 2
# https://www.encode.io/httpcore/extensions/#trace
CONNECTED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})


class HeaderDeadline:
    """Ends a connection whose headers are overdue. One for each connection, as it is told of its socket once.

    Read timeouts cannot do that: each byte begins them anew.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """The `trace` extension of each request."""
        if event in CONNECTED:
            self._socket = info["return_value"].get_extra_info("socket")

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Raise `Fault` where what is done inside fails because it took longer."""
        late = threading.Event()
        timer = threading.Timer(seconds, self._end, (late,))
        timer.daemon = True
        timer.start()
        try:
            yield
        except httpx.TransportError as error:
            if late.is_set():
                raise Fault(f"its headers did not end within {seconds:g} s") from error
            raise
        finally:
            timer.cancel()

    def _end(self, late: threading.Event) -> None:
        late.set()
        self.end()

    def end(self) -> None:
        """End the connection: who reads from it is told so at once."""
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                # Not the method of an SSL socket: that one forgets its session, which the reader still uses.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Paced(httpx.SyncByteStream):
    """A body as it is sent; `Trickle` where it hardly flows for `patience_s` of waiting (see `Flow`).

    The time its reader takes does not count. `check` is called for each piece; it may raise. `line` is told
    of each; a body that was cut because it is behind never ends as if it were whole.
    """

    def __init__(
        self, stream: httpx.SyncByteStream, patience_s: float, check: Callable[[], None], line: Line
    ) -> None:
        self._stream, self._flow, self._check, self._line = stream, Flow(patience_s), check, line

    def __iter__(self) -> Iterator[bytes]:
        since = time.monotonic()
        for piece in self._stream:
            self._check()
            self._line.came(len(piece))
            self._flow.came(len(piece), time.monotonic() - since)
            yield piece
            since = time.monotonic()
        if self._line.behind:
            raise Behind(self._line.behind)

    def close(self) -> None:
        self._stream.close()
