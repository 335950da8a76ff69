"""Durable writes on a local disk: a name shows the old bytes or the new ones, also after a power cut."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from em_pipeline.domain.errors import InputRefused, StorageFailed

TEMPORARY = ".em-tmp-"
_HOST = re.sub(r"[^a-z0-9]+", "_", os.uname().nodename.lower())[:40]
_TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY)}(?P<host>[a-z0-9_]*)-(?P<pid>\d+)-[0-9a-f]+")


@contextmanager
def storage_errors(tried: str) -> Iterator[None]:
    """Turns an operating system's refusal (full disk, read-only, no permission) into `StorageFailed`."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            tried,
            f"{error.filename or 'the disk'}: {error.strerror or error}",
            "Check the free space, and that the store is mounted for writing and yours; what is finished is "
            "kept, so run the same again, or point EM_STORE_URL at another folder",
        ) from error


def is_temporary(name: str) -> bool:
    """Whether a file or folder name is one that only its writer may look at."""
    return name.startswith(TEMPORARY)


def temporary_beside(path: Path) -> Path:
    """A fresh temporary name in the folder of `path`, that tells who its writer is."""
    return path.parent / f"{TEMPORARY}{_HOST}-{os.getpid()}-{os.urandom(6).hex()}"


def stale_temporaries(folder: Path) -> list[Path]:
    """Temporary names in `folder` left by processes of this host that are no more."""
    stale = []
    for entry in folder.iterdir():
        match = _TEMPORARY_NAME.fullmatch(entry.name)
        if match and match["host"] == _HOST and not _alive(int(match["pid"])):
            stale.append(entry)
    return stale


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, as another user's
        return True
    return True


def remove_entry(path: Path) -> None:
    """Remove a file, a link or a whole folder. Raises `OSError`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """`fsync_path` for every file and folder below `folder`, and itself."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync_path(Path(here) / name)
        fsync_path(Path(here))


def ensure_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, durably. Raises `StorageFailed`."""
    with storage_errors(f"Make the folder {folder}"):
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            fsync_path(each.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name, fsync it, rename it to `path`, fsync the folder.

    Raises `StorageFailed`; `path` then is what it was.
    """
    ensure_folder(path.parent)
    temporary = temporary_beside(path)
    with storage_errors(f"Write {path}"):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


def path_of_file_url(url: str) -> Path:
    """The absolute path of a `file:///…` URL (RFC 8089), percent-decoded. Raises `InputRefused`."""
    rest = url.removeprefix("file:")
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", rest[:1], rest[1:])
    decoded = unquote(path)
    if not url.startswith("file:") or host not in ("", "localhost") or slash != "/" or "\0" in decoded:
        raise InputRefused(
            f"Read {url!r} as the URL of a local file",
            "it is not file:/// followed by an absolute path",
            "Write it as file:///absolute/path, or give the plain path",
        )
    return Path("/" + decoded)
