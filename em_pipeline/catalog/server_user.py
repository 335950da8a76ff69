"""As whom PostgreSQL's programs run. They refuse to run as root; everyone else runs them as themselves."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from em_pipeline.domain.errors import ServiceUnavailable

# In this order: the first is the packaged servers' own, the last exists everywhere.
CANDIDATES = ("postgres", "_postgres", "nobody")


@dataclass(frozen=True)
class ServerUser:
    """The user that PostgreSQL's programs run as; `uid` None is whoever we are.

    `enter` is the command that becomes that user keeping the right to pass closed folders.
    """

    uid: int | None = None
    gid: int | None = None
    enter: tuple[str, ...] = ()

    def run(
        self, command: Sequence[str | Path], *, stdin: str = "", timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end and return what it said; the caller looks at the exit status."""
        plain = self.uid is not None and not self.enter
        return subprocess.run(
            [*self.enter, *map(str, command)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            # The user may not be allowed into our working folder, and PG* variables would redirect it.
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            user=self.uid if plain else None,
            group=self.gid if plain else None,
            extra_groups=[] if plain else None,
        )

    def own(self, path: Path) -> None:
        """Give `path` to this user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def server_user(postgres: Path, folder: Path, data: Path) -> ServerUser:
    """Who can run the program `postgres` and reach `folder`, in which `data` is or will be.

    Raises `ServiceUnavailable` where `data` belongs to someone else, or, as root, where nobody can.
    """
    owner = data.stat().st_uid if data.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise ServiceUnavailable(
                f"Start PostgreSQL on {data}",
                f"the folder belongs to user {owner}, not to you ({os.geteuid()})",
                "Run as that user, or set EM_HOME to a folder of your own",
            )
        return ServerUser()
    account = _account(owner)
    plain = ServerUser(account.pw_uid, account.pw_gid)
    refused = _refusal(plain, postgres, folder)
    if not refused:
        return plain
    setpriv = shutil.which("setpriv")
    if setpriv:
        through = ServerUser(account.pw_uid, account.pw_gid, _through_closed_folders(setpriv, account))
        refused = _refusal(through, postgres, folder)
        if not refused:
            return through
    raise ServiceUnavailable(
        f"Run PostgreSQL as user {account.pw_name}, since it refuses to run as root",
        f"that user cannot reach {postgres} or {folder} ({refused})",
        "Run as an ordinary user, install util-linux's setpriv, open those folders to other users "
        "(chmod o+x), or set EM_DATABASE_URL to a PostgreSQL of your own",
    )


def _account(owner: int | None) -> pwd.struct_passwd:
    if owner:
        return pwd.getpwuid(owner)
    for name in CANDIDATES:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServiceUnavailable(
        "Start PostgreSQL as root, which it refuses",
        f"there is no user {', '.join(CANDIDATES)} to run it as",
        "Create a user `postgres`, or run as an ordinary user",
    )


def _through_closed_folders(setpriv: str, account: pwd.struct_passwd) -> tuple[str, ...]:
    """Become `account` but keep CAP_DAC_OVERRIDE (capabilities(7)).

    `no_setuid_fixup` is needed as well: without it access(2), by which initdb and pg_ctl look for
    postgres, ignores the capabilities of a process whose real user is not root.
    """
    return (
        setpriv,
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "--securebits=+no_setuid_fixup",
    )


def _refusal(user: ServerUser, postgres: Path, folder: Path) -> str:
    """Why `user` cannot run `postgres` or enter `folder`; empty where it can."""
    try:
        probe = user.run(["sh", "-c", '"$0" --version && cd "$1"', postgres, folder])
    except OSError as error:
        return str(error)
    return probe.stderr.strip() if probe.returncode else ""
