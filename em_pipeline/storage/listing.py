"""What a listing may ask for, and where its files go below a raw folder."""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from em_pipeline.domain.errors import InputRefused, RecordInvalid
from em_pipeline.domain.files import RemoteFile
from em_pipeline.storage.answers import check_url
from em_pipeline.storage.digests import promised_checksum
from em_pipeline.storage.ftp_transfer import parse_ftp_url
from em_pipeline.storage.journal import Places
from em_pipeline.storage.local_files import fsync_path, is_temporary, path_of_file_url
from em_pipeline.storage.object_urls import ObjectEndpoints, https_url

# Everything temporary, in the raw folder.
WORK = ".download"
MAX_NAME_BYTES = 255


def in_place(file: RemoteFile) -> bool:
    """Whether the file stays where it is."""
    return file.url.startswith("file:")


def check_listing(files: Sequence[RemoteFile], tried: str, endpoints: ObjectEndpoints) -> None:
    """Raise `RecordInvalid` for files that cannot be held together, `InputRefused` for useless addresses."""
    if not files:
        raise RecordInvalid(tried, "no files are listed", "Check the spec's `include` and image set")
    taken: dict[str, str] = {}
    for file in files:
        _check_addresses(file, tried, endpoints)
        parts = PurePosixPath(file.path).parts
        long = any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts)
        # A store lists nothing that has a temporary name.
        if long or ".." in parts or parts[0] in ("/", WORK) or any(map(is_temporary, parts)):
            raise RecordInvalid(tried, f"no file can have the path {file.path!r}", "")
        name = _folded(file.path)
        if name in taken:
            found = f"the paths {taken[name]!r} and {file.path!r} are the same on some disks"
            raise RecordInvalid(tried, found, "Narrow the spec's `include`")
        taken[name] = file.path
    folders = {parent: path for path in taken.values() for parent in PurePosixPath(path).parents}
    for folder, path in folders.items():
        if _folded(str(folder)) in taken:
            raise RecordInvalid(tried, f"{str(folder)!r} is a file and the folder of {path!r}", "")


def _check_addresses(file: RemoteFile, tried: str, endpoints: ObjectEndpoints) -> None:
    promised_checksum(file.checksum, file.url)
    for address in (file.url, *file.mirrors):
        scheme = address.partition(":")[0].lower()
        if file.offset is not None and scheme in ("file", "ftp"):
            raise RecordInvalid(tried, f"{address} is {scheme}, and only a range of it is listed", "")
        if scheme == "ftp":
            parse_ftp_url(address)
        elif scheme != "file" or address != file.url:
            check_url(https_url(address, endpoints), address)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


class Layout:
    """Places below `root`, whose folders are made where missing; never through a symlink."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._work = self._folder((WORK,))
        self._folders: dict[tuple[str, ...], Path] = {}

    def places(self, files: Sequence[RemoteFile]) -> dict[str, Places]:
        """By path. Raises `InputRefused` where a folder or symlink is in the way."""
        return {file.path: self._places(file) for file in files}

    def _places(self, file: RemoteFile) -> Places:
        if in_place(file):
            target = path_of_file_url(file.url)
        else:
            *parents, last = PurePosixPath(file.path).parts
            target = self._known_folder(tuple(parents)) / last
            if target.is_dir() and not target.is_symlink():
                raise InputRefused(f"Download {file.path}", f"{target} is a folder", "Remove it")
        name = hashlib.sha256(file.path.encode()).hexdigest()
        return Places(target, self._work / f"{name}.part", self._work / f"{name}.journal")

    def _known_folder(self, parts: tuple[str, ...]) -> Path:
        if parts not in self._folders:
            self._folders[parts] = self._folder(parts)
        return self._folders[parts]

    def _folder(self, parts: tuple[str, ...]) -> Path:
        folder = self._root
        for part in parts:
            folder = folder / part
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise InputRefused(
                    f"Download into {self._root}",
                    f"{folder} is no folder of its own",
                    "Remove it; nothing was written",
                )
            if not folder.exists():
                folder.mkdir()
                fsync_path(folder.parent)
        return folder
