"""A real FTP server on loopback over a folder, for anonymous readers, that fails as told."""

import contextlib
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it is built on asyncore
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import DTPHandler, FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import FTPServer


class FtpPortal:
    """`commands` holds every command received, `most` the most connections at once.

    `cuts` are byte counts after which the next transfers break off, in order; `stalls` those after which
    they fall silent, `drips` those after which one byte comes each twentieth of a second. `without` names
    commands that the server does not know.
    """

    def __init__(self, folder: Path, *, without: frozenset[str] = frozenset()) -> None:
        self.commands: list[str] = []
        self.cuts: list[int] = []
        self.stalls: list[int] = []
        self.drips: list[int] = []
        self.sent = 0
        self.open: set[_Handler] = set()
        self.most = 0
        self.lock = threading.Lock()
        authorizer = DummyAuthorizer()
        authorizer.add_anonymous(str(folder))
        known = {name: how for name, how in FTPHandler.proto_cmds.items() if name not in without}
        data = type("Data", (_Data,), {"portal": self})
        handler = type(
            "Handler",
            (_Handler,),
            {"portal": self, "authorizer": authorizer, "dtp_handler": data, "proto_cmds": known},
        )
        self._loop = IOLoop()
        self._server = FTPServer(("127.0.0.1", 0), handler, ioloop=self._loop)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"ftp://127.0.0.1:{self._server.address[1]}"

    def transfers(self) -> list[str]:
        """Where each transfer began: the offsets of REST, 0 without one."""
        offsets, rest = [], "0"
        for command in self.commands:
            name, _, argument = command.partition(" ")
            if name == "REST":
                rest = argument
            elif name == "RETR":
                offsets.append(rest)
                rest = "0"
        return offsets

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._loop.loop(timeout=0.02, blocking=False)

    def __enter__(self) -> "FtpPortal":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._server.close_all()


class _Handler(FTPHandler):  # type: ignore[misc]
    portal: FtpPortal
    use_sendfile = False

    def on_connect(self) -> None:
        with self.portal.lock:
            self.portal.open.add(self)
            self.portal.most = max(self.portal.most, sum(not each.was_left() for each in self.portal.open))

    def on_disconnect(self) -> None:
        with self.portal.lock:
            self.portal.open.discard(self)

    def was_left(self) -> bool:
        """Whether the client hung up, which is known here only later."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
        self.portal.commands.append(f"{cmd} {arg}".strip())
        super().pre_process_command(line, cmd, arg)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Silence: what happened is in the portal's counts."""

    logline = logerror = log_cmd = log_transfer = log


class _Data(DTPHandler):  # type: ignore[misc]
    portal: FtpPortal
    ac_out_buffer_size = 4096

    def use_sendfile(self) -> bool:
        return False

    def __init__(self, *args: Any) -> None:
        self.cut = self.portal.cuts.pop(0) if self.portal.cuts else None
        self.stall = self.portal.stalls.pop(0) if self.portal.stalls else None
        self.drip = self.portal.drips.pop(0) if self.portal.drips else None
        self.next_drop = 0.0
        super().__init__(*args)

    def send(self, data: bytes) -> int:
        if self.drip is not None and self.tot_bytes_sent + len(data) > self.drip:
            if time.monotonic() < self.next_drop:
                return 0
            data, self.next_drop = data[:1], time.monotonic() + 0.05
        for limit, give_up in ((self.cut, self.close), (self.stall, self._fall_silent)):
            if limit is not None and self.tot_bytes_sent + len(data) > limit:
                give_up()
                return 0
        sent: int = super().send(data)
        with self.portal.lock:
            self.portal.sent += sent
        return sent

    def _fall_silent(self) -> None:
        self.modify_ioloop_events(self.ioloop.READ)


@contextlib.contextmanager
def ftp_portal(folder: Path, *, without: frozenset[str] = frozenset()) -> Iterator[FtpPortal]:
    """A running server, stopped at the end of the block."""
    with FtpPortal(folder, without=without) as portal:
        yield portal
