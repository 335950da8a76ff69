"""Raw files from portals to a local folder, whole and verified, and the manifest of what was fetched.

In `folder`, names are those of the listing; everything temporary lies in its subfolder `.download`.
"""

import hashlib
import os
import shutil
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from em_pipeline.domain.errors import ChecksumMismatch, InputRefused, NotFound, RecordInvalid, StorageFailed
from em_pipeline.domain.files import Manifest, RawFile, RemoteFile
from em_pipeline.domain.progress import Progress
from em_pipeline.storage.digests import RunningDigest, promised_checksum
from em_pipeline.storage.journal import Places, recall, resume_journal, write_record
from em_pipeline.storage.local_files import (
    ensure_folder,
    fsync_path,
    path_of_file_url,
    stale_temporaries,
    storage_errors,
)
from em_pipeline.storage.lock import file_lock
from em_pipeline.storage.transfer import FileTransfer, Tally, Unit
from em_pipeline.storage.transport import HttpPolicy, Transport, check_url

STEP = "download"
WORK = ".download"
MAX_NAME_BYTES = 255
MAX_WORKERS = 32


@dataclass(frozen=True)
class DownloadPolicy(HttpPolicy):
    """`HttpPolicy` for files; `part_size` is how many bytes one request asks for."""

    part_size: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part_size <= 0:
            raise InputRefused("Read the settings for downloads", f"a part of {self.part_size} bytes", "")


def download(
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    dataset_id: str,
    revision: str,
    policy: DownloadPolicy,
    progress: Progress,
) -> Manifest:
    """Hold every listed file below `folder`, and say what they are, in the listing's order.

    What an earlier or killed run finished (files, and parts of them) is not fetched again. `file://` files
    stay in place: they are hashed only. The manifest is returned, not written.

    Raises `RecordInvalid` for a listing that cannot be held (no files, paths that collide, unknown checksum)
    and for a server that sends something else than the files; `InputRefused` for a symlink that leads
    out of `folder` and data that are not public; `StorageFailed` for too little disk space and where the disk
    refuses; `NotFound`; `ChecksumMismatch`; `SourceUnavailable` when patience ends; `Busy` where another
    process downloads into `folder`.
    """
    _check_listing(files, f"Download {dataset_id}")
    ensure_folder(folder)
    root = folder.resolve()
    with storage_errors(f"Download {dataset_id}"):
        places = {file.path: _places(root, file) for file in files}
    lock = file_lock(root / WORK / "lock", f"Download {dataset_id}")
    with lock, storage_errors(f"Download {dataset_id}"):
        _tidy(root / WORK, places)
        progress.start(STEP, _total(files), "bytes")
        held = {file.path: found for file in files if (found := recall(file, places[file.path]))}
        progress.advance(STEP, sum(found.size for found in held.values()))
        missing = [file for file in files if file.path not in held]
        _check_space(missing, places, root)
        _fetch(missing, places, policy, progress, held)
    return Manifest(dataset_id=dataset_id, revision=revision, files=tuple(held[f.path] for f in files))


def changed_since(manifest: Manifest, folder: Path) -> list[str]:
    """Paths of the manifest's files that are gone, or no longer what it says.

    Told by size and modification time; a file whose time moved is read and compared by its SHA-256.
    """
    root = folder.resolve()
    changed = []
    for file in manifest.files:
        remote = RemoteFile(
            url=file.url, path=file.path, size=file.size, etag=file.etag, modified=file.modified
        )
        found = recall(remote, _places(root, remote))
        if found is None or found.sha256 != file.sha256:
            changed.append(file.path)
    return changed


def _fetch(
    missing: Sequence[RemoteFile],
    places: Mapping[str, Places],
    policy: DownloadPolicy,
    progress: Progress,
    held: dict[str, RawFile],
) -> None:
    def whole(file: RawFile) -> None:
        held[file.path] = file

    def first_units(transport: Transport) -> Iterator[Unit]:
        for file in missing:
            tally = Tally(progress, STEP)
            if _in_place(file):
                yield partial(_hash_in_place, file, places[file.path], transport, tally, whole)
            else:
                transfer = FileTransfer(file, places[file.path], transport, policy.part_size, tally, whole)
                yield transfer.begin

    hosts = {urlsplit(file.url).netloc for file in missing}
    workers = min(MAX_WORKERS, policy.connections * max(1, len(hosts)))
    with Transport(policy, progress.note) as transport:
        _work(first_units(transport), workers, transport.stop)


def _work(first: Iterator[Unit], workers: int, stop: Callable[[], None]) -> None:
    """Run units and what they return, the latter first, until none is left or one fails."""
    following: deque[Unit] = deque()
    pending: set[Future[list[Unit]]] = set()
    with ThreadPoolExecutor(workers, thread_name_prefix=STEP) as pool:
        try:
            while True:
                while len(pending) < workers:
                    unit = following.popleft() if following else next(first, None)
                    if unit is None:
                        break
                    pending.add(pool.submit(_guarded, unit))
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    following.extend(future.result())
        except BaseException:
            stop()
            raise


def _guarded(unit: Unit) -> list[Unit]:
    with storage_errors("Hold a downloaded file"):
        return unit()


def _hash_in_place(
    remote: RemoteFile, places: Places, transport: Transport, tally: Tally, whole: Callable[[RawFile], None]
) -> list[Unit]:
    path = places.target
    if not path.exists():
        raise NotFound(f"Read {remote.url}", "there is no such file", "Check the path")
    if not path.is_file():
        raise InputRefused(f"Read {remote.url}", "it is not a regular file", "List the files of a folder")
    promised = promised_checksum(remote)
    count = 0

    def read(size: int) -> None:
        nonlocal count
        transport.check_running()
        count += size
        tally.reached(count)

    try:
        before = path.stat()
        sha256, other = RunningDigest(promised.algorithm if promised else None).finish(path, read)
        after = path.stat()
    except OSError as error:  # the person's own file, not the store
        raise InputRefused(f"Read {remote.url}", error.strerror or str(error), "Make it readable") from error
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise InputRefused(f"Read {remote.url}", "it is being written", "Wait until it is complete")
    if remote.size not in (None, count):
        raise RecordInvalid(
            f"Read {remote.url}", f"it has {count} bytes, {remote.size} are listed", "List again"
        )
    if promised and other != promised.value:
        raise ChecksumMismatch(
            f"Verify {remote.url}", f"its {promised.algorithm} is {other}, not {promised.value}", ""
        )
    file = RawFile(url=remote.url, path=remote.path, size=count, sha256=sha256)
    write_record(places, file, path, remote.checksum)
    whole(file)
    return []


def _in_place(file: RemoteFile) -> bool:
    return file.url.startswith("file:")


def _total(files: Sequence[RemoteFile]) -> int:
    sizes = [file.size for file in files]
    return sum(size for size in sizes if size is not None) if None not in sizes else 0


def _check_listing(files: Sequence[RemoteFile], tried: str) -> None:
    if not files:
        raise RecordInvalid(tried, "no files are listed", "Check the spec's `include` and image set")
    taken: dict[str, str] = {}
    for file in files:
        promised_checksum(file)
        if not _in_place(file):
            check_url(file.url, file.url)
        parts = PurePosixPath(file.path).parts
        long = any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts)
        if long or ".." in parts or parts[0] in ("/", WORK):
            raise RecordInvalid(tried, f"no file can have the path {file.path!r}", "")
        name = _folded(file.path)
        if name in taken:
            found = f"the paths {taken[name]!r} and {file.path!r} are the same on some disks"
            raise RecordInvalid(tried, found, "Narrow the spec's `include`")
        taken[name] = file.path
    for path in taken.values():
        for parent in PurePosixPath(path).parents:
            if _folded(str(parent)) in taken:
                raise RecordInvalid(tried, f"{str(parent)!r} is a file and the folder of {path!r}", "")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _places(root: Path, file: RemoteFile) -> Places:
    name = hashlib.sha256(file.path.encode()).hexdigest()
    work = _real_folder(root, (WORK,))
    if _in_place(file):
        target = path_of_file_url(file.url)
    else:
        *parents, last = PurePosixPath(file.path).parts
        target = _real_folder(root, tuple(parents)) / last
        if target.is_dir() and not target.is_symlink():
            raise InputRefused(f"Download {file.path}", f"{target} is a folder", "Remove it")
    return Places(target, work / f"{name}.part", work / f"{name}.journal", work / f"{name}.whole")


def _real_folder(root: Path, parts: tuple[str, ...]) -> Path:
    """The folder below `root`, made where missing; never through a symlink."""
    folder = root
    for part in parts:
        folder = folder / part
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise InputRefused(
                f"Download into {root}", f"{folder} is no folder of its own", "Remove it; nothing was written"
            )
        if not folder.exists():
            folder.mkdir()
            fsync_path(folder.parent)
    return folder


def _tidy(work: Path, places: Mapping[str, Places]) -> None:
    """Remove what no listed file needs: other listings' parts, and leftovers of killed writers."""
    needed = {each.part for each in places.values()} | {each.journal for each in places.values()}
    for path in work.iterdir():
        if path.suffix in (".part", ".journal") and path not in needed:
            path.unlink()
    for path in stale_temporaries(work):
        path.unlink()


def _check_space(missing: Sequence[RemoteFile], places: Mapping[str, Places], root: Path) -> None:
    needed = sum(_bytes_to_come(file, places[file.path]) for file in missing if not _in_place(file))
    free = shutil.disk_usage(root).free
    if needed > free:
        raise StorageFailed(
            f"Download into {root}",
            f"{needed} bytes are needed and {free} are free",
            "Free some space, point EM_STORE_URL at a larger disk, or narrow the spec",
        )


def _bytes_to_come(file: RemoteFile, places: Places) -> int:
    resumed = resume_journal(places)
    if resumed is None:
        return file.size or 0
    plan, finished = resumed
    return sum(plan.length(part) for part in plan.parts if part not in finished)
