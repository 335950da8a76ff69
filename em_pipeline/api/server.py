"""Running the sidecar."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from em_pipeline.api.app import create_app
from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.errors import InputRefused, ServiceUnavailable
from em_pipeline.storage.store import Store

BACKLOG = 512
GRACE_S = 10
START_S = 30


class _Server(uvicorn.Server):
    """uvicorn that returns after SIGTERM or SIGINT instead of raising the signal again.

    The caller still has to close the catalogue, which a second SIGTERM would not let it.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _ThreadServer(uvicorn.Server):
    """uvicorn outside the main thread, where signals cannot be listened to."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    host: str, port: int, catalog: Catalog, store: Store, announce: Callable[[str], None] = print
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests under way (10 s at most) and return.

    `announce` gets the base URL once the port is bound; with `port` 0 the system picks one. Raises
    `InputRefused` where the address cannot be bound. Call it from the main thread.
    """
    with _bound(host, port) as listener:
        announce(_url(host, listener))
        _Server(_config(create_app(catalog, store))).run(sockets=[listener])


@contextmanager
def serve_in_thread(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve `app` from a thread for as long as the `with` block lasts; gives the base URL."""
    with _bound(host, port) as listener:
        server = _ThreadServer(_config(app))
        thread = threading.Thread(target=server.run, args=([listener],), name="em-sidecar")
        thread.start()
        try:
            # The listening socket queues requests until the server accepts them: no need to wait for it.
            yield _url(host, listener)
        finally:
            server.should_exit = True
            thread.join(START_S + GRACE_S)
            if thread.is_alive():
                raise ServiceUnavailable("Stop the sidecar", f"it still runs after {START_S + GRACE_S} s")


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_S
    )


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            raise InputRefused(
                f"Listen on {host}:{port}", str(error), "Stop what listens there, or give another port"
            ) from error
        yield listener


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
