"""Files of this machine as a dataset: those of a folder that belong together, and what is known of each."""

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.wording import counted
from em_pipeline.formats.open import FORMATS, READ_TODAY, sniff
from em_pipeline.formats.stack import natural_key

# Left behind by file managers; nothing of theirs is data.
CLUTTER = frozenset({"thumbs.db", "desktop.ini"})


def local_files(path: Path, include: Sequence[str]) -> list[RemoteFile]:
    """The file, or the files of one format at the folder's top level, in number order.

    `include` are globs that choose among them. Raises `NotFound` with the nearest names, and `InputRefused`
    for a folder that is empty, unreadable or holds several formats.
    """
    try:
        check_exists(path)
        if path.is_dir():
            return [local_file(child, child.name) for child in _chosen(path, include)]
        return [local_file(path, path.name)]
    except PermissionError as error:
        raise InputRefused(
            f"Read {error.filename or path}", "its permissions do not allow it", "Make it readable"
        ) from error
    except OSError as error:
        raise InputRefused(
            f"Read {error.filename or path}", error.strerror or str(error), "Check the path and its disk"
        ) from error


def kind_of(path: Path) -> str:
    """What `formats.open.sniff` says of a folder, `file` for anything else. Raises like `local_files`."""
    try:
        return sniff(path) if path.is_dir() else "file"
    except OSError as error:
        raise InputRefused(f"Read {path}", error.strerror or str(error), "Make it readable") from error


def check_exists(path: Path) -> None:
    """Raise `NotFound` with what is like it where `path` does not exist."""
    if path.exists():
        return
    existing = next((parent for parent in path.parents if parent.is_dir()), Path(path.anchor))
    lost = path.relative_to(existing).parts[0]
    try:
        siblings = sorted(child.name for child in existing.iterdir())
    except OSError:
        siblings = []
    nearest = difflib.get_close_matches(lost, siblings, n=3, cutoff=0.5)
    hint = f"nearest there: {', '.join(nearest)}" if nearest else f"{existing} holds nothing like it"
    raise NotFound(f"Read {path}", f"{existing / lost} does not exist; {hint}", "Check the path")


def local_file(path: Path, name: str) -> RemoteFile:
    """A file that stays in place, called `name` among the raw files."""
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise NotFound(
            f"Read {path}", "it is a link to a file that does not exist", "Remove or repair the link"
        ) from error
    if not os.access(path, os.R_OK):
        raise InputRefused(f"Read {path}", "its permissions do not allow it", "Make it readable")
    return RemoteFile(
        url=path.absolute().as_uri(),
        path=in_utf8(name),
        size=stat.st_size,
        modified=str(stat.st_mtime_ns),
    )


def in_utf8(name: str) -> str:
    """`name` itself: records and the catalogue keep names as UTF-8, so another encoding is refused."""
    shown = name.encode(errors="backslashreplace").decode()
    if shown != name:
        raise InputRefused(f"Ingest {shown}", "its name is not UTF-8", "Rename it")
    return name


def _chosen(folder: Path, include: Sequence[str]) -> list[Path]:
    """The folder's data files at its top level, in number order."""
    visible = [c for c in folder.iterdir() if not c.name.startswith(".") and c.name.lower() not in CLUTTER]
    files = sorted((c for c in visible if not c.is_dir()), key=natural_key)
    tried = f"Choose the files of {folder}"
    if not files:
        subfolders = ", ".join(sorted(c.name for c in visible)[:5])
        raise InputRefused(
            tried,
            f"it holds no file, only the folders {subfolders}" if subfolders else "it is empty",
            "Give the folder that holds the files themselves",
        )
    if include:
        chosen = [file for file in files if any(fnmatchcase(file.name, glob) for glob in include)]
        if not chosen:
            raise InputRefused(
                tried,
                f"none of its {counted(len(files), 'file')} ({files[0].name}, …) "
                f"matches {' or '.join(include)}",
                "Correct `include`",
            )
        return chosen
    by_format = Counter(title for file in files if (title := _readable_format(file)))
    if not by_format:
        if len(files) == 1:
            return files  # the readers know best what to say of it
        raise UnsupportedFormat(
            tried,
            f"none of its {counted(len(files), 'file')} ({files[0].name}, …) "
            "has the suffix of a format we read",
            f"Formats read: {READ_TODAY}. Files with other names can be named with `include`",
        )
    if len(by_format) > 1:
        counts = ", ".join(f"{n} {title}" for title, n in by_format.most_common())
        raise InputRefused(
            tried, f"it mixes formats: {counts}", 'Choose one with `include`, such as include: ["*.tif"]'
        )
    return [file for file in files if _readable_format(file)]


def _readable_format(path: Path) -> str | None:
    """The title of the format that the file's suffix stands for, where there is a reader for it."""
    suffix = path.suffix.lower()
    return next((fmt.title for fmt in FORMATS if fmt.reader and suffix in fmt.suffixes), None)
