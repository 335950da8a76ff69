"""Files over FTP, anonymously: one stream per file, begun again where it broke off (RFC 959, 2428, 3659)."""

import ftplib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from urllib.parse import unquote, urlsplit

from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.journal import Plan, Validators
from em_pipeline.storage.pace import Flow, Line
from em_pipeline.storage.task import Restart, Task, Unit
from em_pipeline.storage.transfer import Transfer

BLOCK = 256 * 1024
# RFC 959 §4.2: not logged in; file unavailable (not there, or not to be read).
NOT_LOGGED_IN = "530"
UNAVAILABLE = "550"


class FtpTransfer(Transfer):
    """From an ftp:// address.

    A file that is refused (550) is `NotFound`: FTP does not tell what is absent from what may not be read, so
    it never counts as absent.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._host, self._port, self._path = parse_ftp_url(self._address)
        # As the portal's web server is called: both count to its allowance.
        self._netloc = self._host if self._port == ftplib.FTP_PORT else f"{self._host}:{self._port}"

    def _next(self, part: int, first: bool) -> list[Unit]:  # noqa: ARG002
        # The stream of the first part went on through all that followed; here one is resumed.
        return [partial(self._fetch, min(self._left))] if self._left else []

    def _ask(self, part: int, silences: int, line: Line | None) -> None:  # noqa: ARG002
        with self._connected(self._patience_s(silences)) as ftp:
            plan = self._compared_or_pinned(ftp)
            start = plan.span(part)[0] + self._got.get(part, 0)
            if start < plan.size:
                self._receive(ftp, plan, part, start, Flow(self._patience_s(silences)))

    def _receive(self, ftp: ftplib.FTP, plan: Plan, part: int, at: int, flow: Flow) -> None:
        """Take the stream from byte `at`, in `part`, to the file's end; hold each part that it completes."""
        with ftp.transfercmd(f"RETR {self._path}", rest=at or None) as data, self._part_file() as descriptor:
            since = time.monotonic()
            while piece := data.recv(min(BLOCK, max(1, plan.span(part)[1] - at))):
                self._transport.check_running()
                flow.came(len(piece), time.monotonic() - since)
                if at + len(piece) > plan.size:
                    raise Restart("it is longer now than the server said")
                self._write(descriptor, part, at, piece)
                at += len(piece)
                if at == plan.span(part)[1] and at < plan.size:
                    if self._hold(part, plan) is None:
                        raise Restart("another transfer has taken over")
                    part += 1
                since = time.monotonic()
        if at < plan.size:
            raise Fault(f"{at} of {plan.size} bytes")
        ftp.voidresp()

    def _compared_or_pinned(self, ftp: ftplib.FTP) -> Plan:
        ftp.voidcmd("TYPE I")
        size = ftp.size(self._path)
        if size is None:
            raise Fault("the server does not say how long the file is")
        modified = _modified(ftp, self._path)
        self._compare(Validators(size, None, modified))
        plan = self._plan or Plan(self._address, size, None, modified, self._part_size(size), 0, size)
        if self._plan is None:
            self._pin(plan)
        return plan

    @contextmanager
    def _connected(self, patience_s: float) -> Iterator[ftplib.FTP]:
        """A connection of this host's allowance, logged in; what goes wrong on it becomes our errors."""
        with self._transport.slot(self._netloc):
            ftp = _Ftp(timeout=patience_s)
            try:
                _connect(ftp, self._host, self._port)
                ftp.login()
                yield ftp
            except ftplib.error_perm as error:
                raise self._refusal(str(error)) from error
            except TimeoutError as error:
                raise Fault(f"no bytes for {patience_s:g} s") from error
            except (ftplib.Error, EOFError) as error:
                raise Fault(f"FTP: {str(error) or 'the server hung up'}") from error
            except ConnectionError as error:
                raise Fault(f"{type(error).__name__}: {error}") from error
            finally:
                # QUIT after half a transfer waits for an answer that may never come.
                with suppress(OSError):
                    ftp.close()

    def _refusal(self, said: str) -> Exception:
        tried = f"Fetch {self._address}"
        if said.startswith(NOT_LOGGED_IN):
            refused = InputRefused(
                tried, f"the server lets nobody in anonymously: {said}", "Find another address"
            )
            # Servers that are full say so with this code, too.
            return Fault(f"FTP: {said}", lasting=refused)
        if said.startswith(UNAVAILABLE):
            return NotFound(tried, f"the server answered {said}", "Check the path on the portal's page")
        return RecordInvalid(tried, f"the server answered {said}", "It may not serve files as FTP does")


class _Ftp(ftplib.FTP):
    """Asks for EPSV first, which firewalls and IPv6 understand, then for PASV."""

    def makepasv(self) -> tuple[str, int]:
        # Another address of the same host name may be another machine.
        peer = self.sock.getpeername() if self.sock else (self.host, self.port)
        try:
            return ftplib.parse229(self.sendcmd("EPSV"), peer)  # noqa: S321 - the portals' files are public
        except (ftplib.error_perm, ftplib.error_proto, ftplib.error_reply):
            return super().makepasv()


def _connect(ftp: ftplib.FTP, host: str, port: int) -> None:
    try:
        ftp.connect(host, port)
    except OSError as error:
        raise Fault(f"{type(error).__name__}: {error}") from error


def parse_ftp_url(url: str) -> tuple[str, int, str]:
    """Host, port and path of an ftp:// URL (RFC 1738 §3.2). Raises `InputRefused`."""
    try:
        parts = urlsplit(url)
        host, port, path = parts.hostname, parts.port or ftplib.FTP_PORT, unquote(parts.path)
    except ValueError:
        host, port, path = None, 0, ""
    if not host or "@" in parts.netloc or set("\r\n\0") & set(path) or path in ("", "/"):
        raise InputRefused(f"Fetch {url!r}", "it is no ftp://<host>/<path> for anonymous readers", "")
    return host, port, path


def _modified(ftp: ftplib.FTP, path: str) -> str | None:
    """When the file changed, as Last-Modified would say it; None where the server does not say."""
    try:
        said = ftp.voidcmd(f"MDTM {path}").partition(" ")[2]
        moment = datetime.strptime(said[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except (ftplib.error_perm, ValueError):
        return None
    return format_datetime(moment, usegmt=True)
