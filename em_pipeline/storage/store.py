"""The store: bytes under keys, written atomically, and trees that are visible when they are whole.

A key is a relative path with `/` between its parts (see `em_pipeline.storage.keys`). Other layers reach a
store's bytes by key, or through the folders of blobs that it gives, and never join paths themselves.
"""

import difflib
import errno
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.storage.direct_io import AppendedFile, DirectFile
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.storage.local_files import (
    ensure_folder,
    fsync_path,
    fsync_tree,
    is_temporary,
    path_of_file_url,
    remove_entry,
    stale_temporaries,
    storage_errors,
    temporary_beside,
    write_atomically,
)
from em_pipeline.storage.lock import file_lock
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints
from em_pipeline.storage.object_urls import STORES as OBJECT_SCHEMES


@runtime_checkable
class Store(Protocol):
    """Where an installation's bytes live. Every method raises `InputRefused` for a key that is none
    and `StorageFailed` where the disk or the object store refuses, or does not answer."""

    @property
    def url(self) -> str: ...
    def read(self, key: str) -> bytes:
        """The bytes under `key`. Raises `NotFound`."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put `data` under `key`, replacing what was there: a reader sees the old bytes or the new ones."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is a file, or a folder, under `key`."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys of all files in the folder `prefix` (\"\" is the whole store) and below, sorted per folder.

        Nothing where there is no such folder. Files that are still being written are never among them.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the file under `key`, if there is one."""
        ...

    def delete_tree(self, prefix: str) -> None:
        """Remove the folder `prefix`, if there is one: from a disk in one step, from an object store its
        `zarr.json` first, so that a volume half removed is none.
        """
        ...

    def delete_empty(self, prefix: str) -> None:
        """Remove the folder `prefix` where nothing is in it. An object store has no such folders."""
        ...

    def publish_tree(self, src_key: str, dst_key: str) -> None:
        """Make the folder `src_key`, a volume, visible as `dst_key`, durably; `src_key` is gone then.

        Nothing is a volume before its `zarr.json` is there, and that comes last: with everything else in
        one step on a disk, after everything else in an object store. Killed in between, it goes on when
        called again. Done already where only `dst_key` exists. Raises `NotFound` where neither does and
        `InputRefused` where another volume is at `dst_key`, since what is published is immutable.
        """
        ...

    def blobs(self, prefix: str) -> Blobs:
        """The folder `prefix` for whoever reads or writes a volume; whether it exists is not asked."""
        ...

    def lock(self, key: str, tried: str) -> AbstractContextManager[None]:
        """Keep every other process that asks for `key` out. Raises `Busy`, naming the holder.

        `tried` is what the message says was tried.
        """
        ...


class LocalStore:
    """A store in a folder of this machine. The folder is made by the first write.

    Volumes are written as `grown` files, past the page cache or through it.
    """

    def __init__(self, root: Path, grown: type[AppendedFile] = DirectFile) -> None:
        self.root = root.resolve()
        self._grown = grown
        self._tidied: set[Path] = set()

    @property
    def url(self) -> str:
        return self.root.as_uri()

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    def local_path(self, key: str) -> Path:
        """The absolute path of `key` on this machine, whether or not there is something."""
        return self.root / check_key(key)

    def blobs(self, prefix: str) -> LocalBlobs:
        return LocalBlobs(self.local_path(prefix.rstrip("/")), grown=self._grown)

    def lock(self, key: str, tried: str) -> AbstractContextManager[None]:
        return file_lock(self.local_path(key), tried)

    def read(self, key: str) -> bytes:
        path = self.local_path(key)
        with storage_errors(f"Read {key} from the store"):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise NotFound(f"Read {key} from the store", f"there is no file {path}") from error

    def write(self, key: str, data: bytes) -> None:
        path = self.local_path(key)
        with storage_errors(f"Write {path}"):
            self._tidy(path.parent)
        write_atomically(path, data)

    def exists(self, key: str) -> bool:
        with storage_errors(f"Look for {key} in the store"):
            return self.local_path(key).exists()

    def list(self, prefix: str) -> Iterator[str]:
        folder = self.local_path(prefix.rstrip("/")) if prefix else self.root
        for here, folders, names in os.walk(folder, onerror=_raise_unless_missing):
            folders[:] = sorted(name for name in folders if not is_temporary(name))
            for name in sorted(names):
                if not is_temporary(name):
                    yield (Path(here) / name).relative_to(self.root).as_posix()

    def delete(self, key: str) -> None:
        path = self.local_path(key)
        tried = f"Delete {key} from the store"
        if path.is_dir() and not path.is_symlink():
            raise InputRefused(tried, f"{path} is a folder", "Delete it as a tree")
        with storage_errors(tried):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            fsync_path(path.parent)

    def delete_tree(self, prefix: str) -> None:
        path = self.local_path(prefix.rstrip("/"))
        with storage_errors(f"Delete {prefix} from the store"):
            if not path.exists():
                return
            doomed = temporary_beside(path)
            path.rename(doomed)
            fsync_path(path.parent)
            remove_entry(doomed)

    def delete_empty(self, prefix: str) -> None:
        path = self.local_path(prefix.rstrip("/"))
        with storage_errors(f"Delete the empty folder {prefix} from the store"):
            try:
                path.rmdir()
            except OSError as error:
                # POSIX lets rmdir(2) say either of what is not empty.
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                    return
                raise
            fsync_path(path.parent)

    def publish_tree(self, src_key: str, dst_key: str) -> None:
        src, dst = self.local_path(src_key), self.local_path(dst_key)
        tried = f"Publish {src_key} as {dst_key}"
        with storage_errors(tried):
            if not src.is_dir():
                if dst.is_dir() and not src.exists():
                    return
                raise NotFound(tried, f"{src} does not exist or is no folder", "Build it again first")
            if dst.exists():
                raise InputRefused(
                    tried,
                    f"{dst} exists already, and what is published is immutable",
                    "Delete the published one first if it is wrong",
                )
            fsync_tree(src)
            ensure_folder(dst.parent)
            src.rename(dst)
            fsync_path(dst.parent)
            fsync_path(src.parent)

    def _tidy(self, folder: Path) -> None:
        # Once per folder: looking at each write would make many writes into one folder quadratic.
        if folder in self._tidied or not folder.is_dir():
            return
        for leftover in stale_temporaries(folder):
            remove_entry(leftover)
        self._tidied.add(folder)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        with storage_errors("List the store"):
            raise error


def check_key(key: str) -> str:
    """`key` itself, or `InputRefused` where it could leave the store or meet a temporary name."""
    parts = key.split("/")
    if "\\" in key or "\0" in key or any(p in ("", ".", "..") or is_temporary(p) for p in parts):
        raise InputRefused(
            f"Use {key!r} as a key of the store",
            "it is not a plain relative path with '/' between its parts",
            "Keys come from em_pipeline.storage.keys",
        )
    return key


LOCAL_SCHEMES = ("file",)
_ALMOST_OBJECTS = re.compile(r"(s3|gs)(?!://)(?::/*|//+)(.*)", re.IGNORECASE | re.DOTALL)
_ALMOST_FILE = re.compile(r"file:(?!/)(.*)", re.IGNORECASE | re.DOTALL)


def open_store(
    url: str, endpoints: ObjectEndpoints = PUBLIC, grown: type[AppendedFile] = DirectFile
) -> Store:
    """The store at `url`: a path (`~` is the home folder), `file:///absolute/path`, s3:// or gs://.

    On a disk, volumes are written as `grown` files; `endpoints` say who answers for s3:// and gs://, and a
    store is never asked anonymously. Raises `InputRefused` for any other scheme, for one that is mistyped,
    for a path that is not a folder, and for what is no bucket.
    """
    _check_form(url)
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file):/", url)
    scheme = (match[1] or match[2]).lower() if match else None
    if scheme in OBJECT_SCHEMES:
        from em_pipeline.storage.object_store import open_object_store

        return open_object_store(url, endpoints)
    if scheme is not None and scheme not in LOCAL_SCHEMES:
        raise _other_scheme(url, scheme)
    if not url.strip() or "\0" in url:
        raise InputRefused("Open the store", "its URL is empty", "Set EM_STORE_URL to a folder")
    path = path_of_file_url("file:" + url[5:]) if scheme else Path(url).expanduser()
    if path.exists() and not path.is_dir():
        raise InputRefused(f"Open the store {url}", f"{path} is not a folder", "Set EM_STORE_URL to a folder")
    return LocalStore(path, grown)


def _check_form(url: str) -> None:
    """Raise `InputRefused` for what could only by mistake be the path of a folder, as `s3:/bucket` could."""
    meant = url.strip()
    if match := _ALMOST_OBJECTS.match(meant):
        meant = f"{match[1].lower()}://{match[2] or 'bucket/prefix'}"
    elif match := _ALMOST_FILE.match(meant):
        meant = str(Path(match[1]).absolute())
    if meant != url and meant:
        raise InputRefused(
            f"Open the store {url!r}",
            "it is neither a URL of a store nor the path of a folder",
            f"Set EM_STORE_URL to {meant}, if that is meant",
        )


def _other_scheme(url: str, scheme: str) -> InputRefused:
    near = difflib.get_close_matches(scheme, LOCAL_SCHEMES + OBJECT_SCHEMES, n=1, cutoff=0.5)
    hint = f"; the nearest known is {near[0]}://" if near else ""
    return InputRefused(
        f"Open the store {url}",
        f"the scheme {scheme}:// is not known{hint}",
        "Set EM_STORE_URL to a folder, file:///absolute/path, s3://bucket/prefix or gs://bucket/prefix",
    )
