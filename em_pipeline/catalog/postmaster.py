"""Whether a data folder's server runs, read from its `postmaster.pid` and the process table.

Lines of that file: process id, data folder, start time, port, socket folder, address, shared memory, state
(PostgreSQL, `src/include/utils/pidfile.h`).
"""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

# Above the largest process id of Linux (2^22) and macOS: no process ever has it.
NO_PROCESS = 2**22 + 1


@dataclass(frozen=True)
class Postmaster:
    """A running server's process and port; `ready` once it accepts connections."""

    pid: int
    port: int | None
    ready: bool


def running_postmaster(data: Path, timeout_s: float) -> Postmaster | None:
    """The server on `data`, waiting up to `timeout_s` for one that is starting or stopping.

    None where there is none, or it still was neither running nor gone when the time was over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = _postmaster(data)
        if found is None or found.ready:
            return found
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)


def wait_for_end(pid: int, data: Path, timeout_s: float) -> bool:
    """Whether the server `pid` of `data` has ended, waiting up to `timeout_s` for it."""
    deadline = time.monotonic() + timeout_s
    while _serves(pid, data):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def disown_stale_pid_file(data: Path) -> None:
    """Let PostgreSQL see that the process named in `postmaster.pid` is not its predecessor.

    It looks only whether a process of that number exists: after a crash that may be another program or a
    zombie, and it would refuse to start for ever. The rest of the file stays, since by the shared memory
    named there PostgreSQL finds out whether backends of the predecessor still write.
    """
    path = data / "postmaster.pid"
    if not path.exists() or _postmaster(data):
        return
    _, *rest = path.read_text().splitlines() or [""]
    path.write_text("\n".join([str(NO_PROCESS), *rest]) + "\n")


def _postmaster(data: Path) -> Postmaster | None:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    if not _serves(pid, data):
        return None
    port = int(lines[3]) if len(lines) > 3 else None
    return Postmaster(pid, port, ready=len(lines) > 7 and lines[7].strip() == "ready")


def _serves(pid: int, data: Path) -> bool:
    """Whether process `pid` lives and was started as the server of `data`."""
    if Path("/proc/self/cmdline").exists():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return False
    else:
        command = subprocess.run(
            ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
    return "postgres" in command and str(data) in command
