"""Raw files from portals to a local folder, whole and verified, and the manifest of what was fetched.

In `folder`, names are those of the listing; everything temporary lies in its subfolder `.download`.
"""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from em_pipeline.domain.errors import (
    ChecksumMismatch,
    InputRefused,
    NotFound,
    RecordInvalid,
    SourceUnavailable,
    StorageFailed,
)
from em_pipeline.domain.files import Manifest, RawFile, RemoteFile
from em_pipeline.domain.progress import Progress
from em_pipeline.storage.digests import RunningDigest, promised_checksum
from em_pipeline.storage.ftp_transfer import FtpTransfer
from em_pipeline.storage.holdings import Arrived, Holdings, disagreeing, listing_digest
from em_pipeline.storage.http_transfer import HttpTransfer
from em_pipeline.storage.journal import Places, resume_journal
from em_pipeline.storage.listing import WORK, Layout, check_listing, in_place
from em_pipeline.storage.local_files import (
    ensure_folder,
    path_of_file_url,
    stale_temporaries,
    storage_errors,
)
from em_pipeline.storage.lock import file_lock
from em_pipeline.storage.task import Sharers, Tally, Task, Unit
from em_pipeline.storage.transport import HttpPolicy, Transport

STEP = "download"
# Of files that all stay where they are.
STEP_IN_PLACE = "hash"
MAX_WORKERS = 32
# How often connections are compared; what arrived is written down as often as `Holdings` wants.
LOOK_EACH_S = 0.1


@dataclass(frozen=True)
class DownloadPolicy(HttpPolicy):
    """`HttpPolicy` for files: the most bytes of a part, which is kept as a whole, and of one request."""

    part_size: int = 16 * 1024 * 1024
    request_size: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.part_size <= self.request_size:
            found = f"a part of {self.part_size} bytes, a request of {self.request_size}"
            raise InputRefused("Read the settings for downloads", found, "")


def download(
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    dataset_id: str,
    revision: str,
    policy: DownloadPolicy,
    progress: Progress,
    arrived: Callable[[RawFile], None] = lambda _: None,
) -> Manifest:
    """Hold every listed file below `folder`, and say what they are, in the listing's order.

    What an earlier or killed run finished (files, and parts of them) is not fetched again. `file://` files
    stay in place: they are hashed only. Files that may be absent, and for which the portal answers 404, are
    named in the manifest's `absent`; a refusal (403) never counts as absence, although a store that may not
    be listed answers so. The manifest is returned, not written. `arrived` is told of each file as soon as it
    is held, by any thread, and must not take long.

    Raises `RecordInvalid` for a listing that cannot be held (no files, paths that collide, unknown checksum)
    and for a server that sends something else than the files; `InputRefused` for a symlink that leads
    out of `folder` and data that are not public; `StorageFailed` for too little disk space and where the disk
    refuses; `NotFound`; `ChecksumMismatch`; `SourceUnavailable` when patience ends; `Busy` where another
    process downloads into `folder`.
    """
    tried = f"Download {dataset_id}"
    check_listing(files, tried, policy.endpoints)
    ensure_folder(folder)
    root = folder.resolve()
    with storage_errors(tried):
        places = Layout(root).places(files)
    with file_lock(root / WORK / "lock", tried), storage_errors(tried):
        held: dict[str, RawFile] = {}
        watch = _Watch(files, progress)

        def whole(file: RawFile) -> None:
            held[file.path] = file
            watch.done(1)
            arrived(file)

        holdings = Holdings(
            root / WORK,
            listing_digest(dataset_id, revision, files),
            whole=whole,
            missed=lambda _: watch.done(1),
        )
        _tidy(root / WORK, places)
        held.update((f.path, found) for f in files if (found := holdings.recall(f, places[f.path])))
        for file in held.values():
            arrived(file)
        missing = [f for f in files if f.path not in held and not _known_absent(f, holdings)]
        watch.advance(watch.step, sum(found.size for found in held.values()))
        watch.done(len(files) - len(missing))
        _check_space(missing, places, root)
        _fetch(missing, places, policy, watch, holdings)
        _check_agreement(held, places)
    return Manifest(
        dataset_id=dataset_id,
        revision=revision,
        files=tuple(held[f.path] for f in files if f.path in held),
        absent=tuple(f.path for f in files if f.path not in held),
    )


def changed_since(manifest: Manifest, folder: Path) -> list[str]:
    """Paths of the manifest's files that are gone, or no longer what it says.

    Told by size and modification time; a file whose time moved is read and compared by its SHA-256.
    """
    root = folder.resolve()
    holdings = Holdings(root / WORK)
    return [
        file.path
        for file in manifest.files
        if not holdings.still_holds(file, path_of_file_url(file.url) if file.in_place else root / file.path)
    ]


def _known_absent(file: RemoteFile, holdings: Holdings) -> bool:
    return file.may_be_absent and file.path in holdings.absent


def _fetch(
    missing: Sequence[RemoteFile],
    places: Mapping[str, Places],
    policy: DownloadPolicy,
    progress: "_Watch",
    holdings: Holdings,
) -> None:
    def first_units(transport: Transport) -> Iterator[Unit]:
        for file in missing:
            tally = Tally(progress, progress.step)
            if in_place(file):
                yield partial(_hash_in_place, file, places[file.path], transport, tally, holdings)
                continue
            task = Task(
                remote=file,
                addresses=_addresses(file, places[file.path]),
                places=places[file.path],
                transport=transport,
                holdings=holdings,
                part_size=policy.part_size,
                request_size=policy.request_size,
                tally=tally,
                sharers=sharers,
                begin=_begin,
            )
            yield partial(_begin, task)

    sharers = Sharers()
    hosts = {urlsplit(file.url).netloc for file in missing}
    workers = min(MAX_WORKERS, policy.connections * max(1, len(hosts)))
    try:
        with Transport(policy, progress.note) as transport:

            def meanwhile() -> None:
                holdings.flush_if_due()
                transport.look()

            _work(first_units(transport), sharers.unit, workers, transport.stop, meanwhile)
    finally:
        holdings.flush()


def _begin(task: Task) -> list[Unit]:
    over_ftp = task.addresses[0].lower().startswith("ftp:")
    return (FtpTransfer(task) if over_ftp else HttpTransfer(task)).begin()


def _addresses(file: RemoteFile, places: Places) -> tuple[str, ...]:
    """The file's addresses, that which an interrupted run fetched it from the first."""
    addresses = (file.url, *file.mirrors)
    resumed = resume_journal(places) if file.mirrors else None
    if resumed and resumed[0].url in addresses:
        return (resumed[0].url, *(each for each in addresses if each != resumed[0].url))
    return addresses


def _work(
    first: Iterator[Unit],
    spare: Callable[[], Unit | None],
    workers: int,
    stop: Callable[[], None],
    meanwhile: Callable[[], None],
) -> None:
    """Run units and what they return, the latter first, until none is left or one fails.

    Workers that would have nothing to do are given what is `spare`. `meanwhile` is called all the time.
    """
    following: deque[Unit] = deque()
    pending: set[Future[list[Unit]]] = set()
    last = time.monotonic()
    with ThreadPoolExecutor(workers, thread_name_prefix=STEP) as pool:
        try:
            while True:
                while len(pending) < workers:
                    unit = following.popleft() if following else next(first, None) or spare()
                    if unit is None:
                        break
                    pending.add(pool.submit(_guarded, unit))
                if not pending:
                    return
                done, pending = wait(pending, timeout=LOOK_EACH_S, return_when=FIRST_COMPLETED)
                if time.monotonic() - last >= LOOK_EACH_S:
                    meanwhile()
                    last = time.monotonic()
                for future in done:
                    following.extend(future.result())
        except BaseException:
            stop()
            raise


def _guarded(unit: Unit) -> list[Unit]:
    with storage_errors("Hold a downloaded file"):
        return unit()


def _hash_in_place(
    remote: RemoteFile, places: Places, transport: Transport, tally: Tally, holdings: Holdings
) -> list[Unit]:
    path = places.target
    if not path.exists():
        raise NotFound(f"Read {remote.url}", "there is no such file", "Check the path")
    if not path.is_file():
        raise InputRefused(f"Read {remote.url}", "it is not a regular file", "List the files of a folder")
    promised = promised_checksum(remote.checksum, remote.url)
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
    holdings.arrive(Arrived(file, places, remote.checksum, after.st_mtime_ns))
    return []


class _Watch:
    """Tells of bytes; of files where their sizes are not listed, so that there is a total.

    `step` says what is done: files on this machine are only hashed.
    """

    def __init__(self, files: Sequence[RemoteFile], onward: Progress) -> None:
        self._onward = onward
        self.step = STEP_IN_PLACE if all(map(in_place, files)) else STEP
        sizes = [file.size for file in files]
        known = [size for size in sizes if size is not None]
        self._by_files = len(known) < len(sizes) and len(files) > 1
        if self._by_files:
            onward.start(self.step, len(files), "files")
        else:
            onward.start(self.step, sum(known), "bytes")

    def start(self, step: str, total: int, unit: str) -> None:
        self._onward.start(step, total, unit)

    def advance(self, step: str, amount: int) -> None:
        if not self._by_files:
            self._onward.advance(step, amount)

    def done(self, files: int) -> None:
        if self._by_files:
            self._onward.advance(self.step, files)

    def note(self, message: str) -> None:
        self._onward.note(message)


def _check_agreement(held: Mapping[str, RawFile], places: Mapping[str, Places]) -> None:
    """Refuse byte ranges of one URL that changed between them: together they are no content it ever had."""
    for url, why in disagreeing(held).items():
        for file in held.values():
            if file.url == url:
                places[file.path].target.unlink(missing_ok=True)
        raise SourceUnavailable(
            f"Fetch parts of {url}",
            f"between them, {why}",
            "What was fetched of it is deleted; try again when the portal has settled",
        )


def _tidy(work: Path, places: Mapping[str, Places]) -> None:
    """Remove what no listed file needs: other listings' parts, and leftovers of killed writers."""
    needed = {each.part for each in places.values()} | {each.journal for each in places.values()}
    for path in work.iterdir():
        if path.suffix in (".part", ".journal") and path not in needed:
            path.unlink()
    for path in stale_temporaries(work):
        path.unlink()


def _check_space(missing: Sequence[RemoteFile], places: Mapping[str, Places], root: Path) -> None:
    needed = sum(_bytes_to_come(file, places[file.path]) for file in missing if not in_place(file))
    free = shutil.disk_usage(root).free
    if needed > free:
        raise StorageFailed(
            f"Download into {root}",
            f"{needed} bytes are needed and {free} are free",
            "Free some space, point EM_STORE_URL (EM_SPOOL for an object store) at a larger disk, or narrow "
            "the spec",
        )


def _bytes_to_come(file: RemoteFile, places: Places) -> int:
    resumed = resume_journal(places)
    if resumed is None:
        return file.size or 0
    plan, finished = resumed
    return sum(plan.length(part) for part in plan.parts if part not in finished)
