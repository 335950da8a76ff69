"""The embedded server: one for many processes, there while somebody holds it."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from em_pipeline.catalog.embedded import EmbeddedPostgres, _installation
from em_pipeline.catalog.postmaster import Postmaster, running_postmaster
from em_pipeline.domain.errors import Busy, ServiceUnavailable
from em_pipeline_tests.services import UNSAFE_BUT_FAST

pytestmark = pytest.mark.integration

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Holds the server in argv[1] until its standard input is closed; says the URL first.
HOLDER = """
import sys
from pathlib import Path
from em_pipeline.catalog.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"}) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)  # as root, the server runs as another user, who has to pass
        place = Path(name) / "postgres"
        yield place
        EmbeddedPostgres(place).stop()


def server(folder: Path, install: Path | None = None) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder, settings=UNSAFE_BUT_FAST, install=install)


def running(embedded: EmbeddedPostgres) -> Postmaster | None:
    return running_postmaster(embedded.data, timeout_s=0)


def ask(url: str, question: str = "SELECT current_database()") -> object:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        answer = connection.execute(question)
        row = answer.fetchone() if answer.description else None
        return row[0] if row else None


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the server."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def said_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_runs_while_held(folder: Path) -> None:
    embedded = server(folder)
    assert not embedded.data.exists()
    with embedded as url:
        assert ask(url) == "em"
        found = running(embedded)
        assert found is not None
        assert found.port == sa.make_url(url).port
    assert embedded.data.exists()
    assert not running(embedded)
    with pytest.raises(psycopg.OperationalError):
        ask(url)
    embedded.release()


def test_keeps_data_password_and_port(folder: Path) -> None:
    with server(folder) as first:
        ask(first, "CREATE TABLE kept (n) AS VALUES (7)")
    with server(folder) as second:
        assert second == first
        assert ask(second, "SELECT n FROM kept") == 7


def test_asks_for_the_password_and_listens_on_loopback_only(folder: Path) -> None:
    with server(folder) as url:
        for password in ("", "guess"):
            wrong = sa.make_url(url).set(password=password, drivername="postgresql")
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(wrong.render_as_string(hide_password=False))
        assert ask(url, "SHOW listen_addresses") == "127.0.0.1"
        assert ask(url, "SHOW unix_socket_directories") == ""
        assert ask(url, "SELECT rolpassword FROM pg_authid WHERE rolname = 'em'").startswith("SCRAM-SHA-256")  # type: ignore[attr-defined]
    assert (folder / "password").stat().st_mode & 0o777 == 0o600
    assert (folder / "password").stat().st_uid == os.geteuid()


def test_is_durable_unless_told_otherwise(folder: Path) -> None:
    with EmbeddedPostgres(folder) as url:
        settings = {name: ask(url, f"SHOW {name}") for name in UNSAFE_BUT_FAST}
    assert set(settings.values()) == {"on"}
    with server(folder) as url:
        assert ask(url, "SHOW fsync") == "off"


def test_takes_another_port_where_its_own_is_taken(folder: Path) -> None:
    with server(folder) as url:
        port = sa.make_url(url).port
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        with server(folder) as url:
            assert sa.make_url(url).port != port
            assert ask(url) == "em"


def test_holds_in_one_process_are_counted(folder: Path) -> None:
    first, second = server(folder), server(folder)
    assert first.acquire() == first.acquire() == second.acquire()
    first.release()
    first.release()
    assert running(second)
    second.release()
    assert not running(second)


def test_the_last_process_stops_it(folder: Path) -> None:
    with holder(folder) as other:
        url = said_url(other)
        with server(folder) as mine:
            assert mine == url
        assert ask(url) == "em"
        with pytest.raises(Busy):
            server(folder).stop()
    assert not running(server(folder))


def test_starting_at_once_makes_one_server(folder: Path) -> None:
    with holder(folder) as first, holder(folder) as second, holder(folder) as third:
        urls = {said_url(process) for process in (first, second, third)}
        assert len(urls) == 1
        assert ask(urls.pop()) == "em"
    assert not running(server(folder))


def test_a_killed_holder_holds_nothing(folder: Path) -> None:
    with holder(folder) as other:
        url = said_url(other)
        other.kill()
        other.wait()
        assert ask(url) == "em"
        with server(folder) as mine:
            assert mine == url
        assert not running(server(folder))


def test_a_holder_that_forgets_to_release(folder: Path) -> None:
    forgetful = HOLDER.replace("with ", "url = ").replace(" as url:", ".acquire()").replace("    ", "")
    done = subprocess.run([sys.executable, "-c", forgetful, folder], input="", check=True, text=True)
    assert done.returncode == 0
    assert not running(server(folder))


def test_a_forked_child_does_not_stop_it(folder: Path) -> None:
    embedded = server(folder)
    url = embedded.acquire()
    child = os.fork()
    if child == 0:
        try:
            embedded.release()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert ask(url) == "em"
    embedded.release()
    assert not running(embedded)


def kill_postmaster(folder: Path) -> int:
    found = running(server(folder))
    assert found is not None
    pid = found.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not running(server(folder)))
    return pid


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_recovers_from_a_killed_postgres(folder: Path) -> None:
    embedded = EmbeddedPostgres(folder)
    with embedded as url:
        ask(url, "CREATE TABLE kept (n) AS VALUES (7)")
        kill_postmaster(folder)
        assert not running(embedded)
        with server(folder) as again:
            assert ask(again, "SELECT n FROM kept") == 7
    assert not running(embedded)


def test_waits_for_backends_of_a_killed_postgres(folder: Path) -> None:
    """Their postmaster is dead, but one has not seen it yet: two servers must not write to one folder."""
    log = folder / "server.log"
    with (
        server(folder) as url,
        closing(psycopg.connect(url.replace("+psycopg", ""))) as held,
        ThreadPoolExecutor(1) as meanwhile,
    ):
        backend = held.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            kill_postmaster(folder)
            refused = meanwhile.submit(until, lambda: "pre-existing shared memory block" in log.read_text())
            refused.add_done_callback(lambda _: os.kill(backend, signal.SIGCONT))
            with server(folder) as again:
                assert ask(again) == "em"
            refused.result()
        finally:
            with suppress(ProcessLookupError):
                os.kill(backend, signal.SIGCONT)


def test_recovers_where_its_old_number_is_another_process(folder: Path) -> None:
    """After a machine crash the number in postmaster.pid may be any program's."""
    with server(folder):
        pid_file = folder / "data" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        kill_postmaster(folder)
        sleeper = subprocess.Popen(["sleep", "60"], user=(folder / "data").stat().st_uid)
        try:
            pid_file.write_text("\n".join([str(sleeper.pid), *lines[1:]]) + "\n")
            with server(folder) as again:
                assert ask(again) == "em"
        finally:
            sleeper.kill()
            sleeper.wait()


def test_an_interrupted_initialisation_is_made_again(folder: Path) -> None:
    (folder / "data.partial" / "base").mkdir(parents=True)
    folder.chmod(0o711)
    with server(folder) as url:
        assert ask(url) == "em"
    assert not (folder / "data.partial").exists()


def test_says_what_postgres_said(folder: Path) -> None:
    bad = EmbeddedPostgres(folder, settings={"shared_buffers": "plenty"})
    with pytest.raises(ServiceUnavailable, match=r"shared_buffers.*server\.log"):
        bad.acquire()
    assert not running(bad)
    with server(folder) as url:
        assert ask(url) == "em"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceUnavailable, match="EM_HOME"):
        server(tmp_path / "file" / "postgres").acquire()


def test_data_of_another_version(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServiceUnavailable, match=r"PostgreSQL 9.*not installed"):
        server(folder).acquire()


@as_root
def test_as_an_ordinary_user(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    folder.mkdir()
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    child = os.fork()
    if child == 0:
        # Not a new Python: that may lie in root's closed home.
        answer: object = None
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            with server(folder) as url:
                answer = ask(url)
        finally:
            os._exit(0 if answer == "em" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not running(server(folder))
    assert (folder / "data").stat().st_uid == nobody.pw_uid
    with server(folder) as url:
        assert ask(url) == "em"


@as_root
def test_root_below_closed_folders(tmp_path: Path) -> None:
    """Programs and data both below folders that only root may enter, as in root's home."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    install = copied_install(closed)
    embedded = server(closed / "home" / "postgres", install)
    (closed / "home").mkdir(mode=0o700)
    with embedded as url:
        assert ask(url) == "em"
    assert not running(embedded)
    with embedded as url:
        assert ask(url, "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'") == 1


@as_root
def test_root_below_closed_folders_without_setpriv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    shell = shutil.which("sh")
    assert shell is not None
    (programs / "sh").symlink_to(shell)
    monkeypatch.setenv("PATH", str(programs))
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(ServiceUnavailable, match=r"setpriv.*EM_DATABASE_URL"):
        server(tmp_path / "closed" / "postgres").acquire()


def copied_install(to: Path) -> Path:
    """The wheel's programs and the libraries they look for beside the package, copied."""
    install = _installation(None, to)
    package = install.parent
    shutil.copytree(package.with_suffix(".libs"), to / f"{package.name}.libs")
    return Path(shutil.copytree(install, to / package.name / install.name, symlinks=True))
