"""What a file, container or address holds, found out without downloading it."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from em_pipeline.domain.errors import BudgetSpent, InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import PartialVoxelSize
from em_pipeline.domain.wording import counted
from em_pipeline.formats.headers import ImageHeaders, read_headers
from em_pipeline.formats.mirror import images_in
from em_pipeline.formats.open import FOLDERS, FORMATS, HEAD_BYTES, recognised, sniff
from em_pipeline.formats.stack import lost_sections, natural_key
from em_pipeline.ingest.inspected_arrays import Arrays, dvid_image, precomputed_images, zarr_or_n5
from em_pipeline.storage.metered import FolderDocuments, WebDocuments
from em_pipeline.storage.object_urls import ObjectEndpoints, https_url
from em_pipeline.storage.ranged import HttpRanges, LocalRanges, Meter, RangedFile, is_url
from em_pipeline.storage.transport import HttpPolicy, Transport

# What an inspection may cost a portal, whatever the size of the file.
MOST_BYTES = 2_000_000
MOST_REQUESTS = 20
# A disk answers a thousand small reads in the time of one request, so local files are looked at closely.
MOST_LOCAL_BYTES = 256_000_000
MOST_LOCAL_READS = 100_000
CONNECT_RETRIES = 2
CONTAINER = re.compile(r"\.(zarr|n5)(/|$)", re.IGNORECASE)
DVID = re.compile(r"/api/node/[^/]+/[^/]+")
PRECOMPUTED = "precomputed://"
SCHEMES = ("http", "https", "s3", "gs")
SUFFIXES = frozenset(suffix for f in FORMATS for suffix in f.suffixes)


def policy_for_a_look(*, read_timeout_s: float, retries: int, endpoints: ObjectEndpoints) -> HttpPolicy:
    """How an inspection asks: over one connection, and soon giving up where none comes about.

    Somebody waits for it, who may have mistyped the host.
    """
    return HttpPolicy(
        connections=1,
        read_timeout_s=read_timeout_s,
        retries=retries,
        connect_retries=CONNECT_RETRIES,
        endpoints=endpoints,
    )


@dataclass(frozen=True)
class Inspection:
    """What was found at `target`: `images` (of a pyramid, its levels, finest first), names of label images.

    `size` is that of the file in bytes, None for containers. `bytes_read` in `requests` is what it took.
    `notes` are sentences on what is unusual or unknown.
    """

    target: str
    kind: str
    size: int | None
    images: tuple[ImageHeaders, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    bytes_read: int
    requests: int


@dataclass(frozen=True)
class _Found:
    kind: str
    images: Sequence[ImageHeaders]
    size: int | None = None
    labels: Sequence[str] = ()
    notes: Sequence[str] = ()


def inspect(target: str, policy: HttpPolicy, note: Callable[[str], None]) -> Inspection:
    """Inspect a path, or an http(s), s3:// or gs:// address; `note` is told of every retry.

    An address costs at most `MOST_BYTES` in `MOST_REQUESTS`; where that is too little, `notes` say what is
    not known. Raises `NotFound`, `UnsupportedFormat`, `SourceUnavailable` for an outage or a web page in
    place of data, and `InputRefused` for a server that sends no parts of large files.
    """
    remote = is_url(target) and not target.lower().startswith("file:")
    limits = (MOST_BYTES, MOST_REQUESTS) if remote else (MOST_LOCAL_BYTES, MOST_LOCAL_READS)
    meter = Meter(*limits)
    try:
        with Transport(policy, note) as transport:
            found = _remote(target, transport, meter) if remote else _local(_path(target), meter)
    except NotFound as error:
        raise NotFound(f"Inspect {target}", f"{error.tried}: {error.found}", error.to_do) from error
    return Inspection(
        target=target,
        kind=found.kind,
        size=found.size,
        images=tuple(found.images),
        labels=tuple(found.labels),
        notes=tuple(found.notes),
        bytes_read=meter.bytes,
        requests=meter.requests,
    )


def voxel_size_of(image: ImageHeaders) -> PartialVoxelSize:
    """What the headers say of the voxel size, nm; the first claim per axis."""
    said = {claim.field: claim.value for claim in reversed(image.claims)}
    return PartialVoxelSize(**{axis: said.get(f"core.voxel_size_nm.{axis}") for axis in "zyx"})


def _path(target: str) -> Path:
    text = url2pathname(urlsplit(target).path) if target.lower().startswith("file:") else target
    return Path(text).expanduser()


def _local(path: Path, meter: Meter) -> _Found:
    if not path.exists():
        raise NotFound(f"Open {path}", "there is no such file or folder", "Check the path")
    if not path.is_dir():
        return _file(RangedFile(LocalRanges(path, meter)))
    slug = sniff(path)
    if slug == "precomputed":
        return _arrays(precomputed_images(FolderDocuments(path, meter).fetch))
    if slug in FOLDERS or CONTAINER.search(path.absolute().as_posix()):
        root, inside = _split(path.absolute().as_posix())
        there = images_in(Path(root))
        return _arrays(zarr_or_n5(FolderDocuments(Path(root), meter).fetch, inside, there))
    return _folder(path, meter)


def _folder(path: Path, meter: Meter) -> _Found:
    """The first file in number order speaks for a folder of planes."""
    files = sorted(
        (p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES), key=natural_key
    )
    if not files:
        raise InputRefused(f"Inspect {path}", "it holds no file of a format that is read", "Name a file")
    found = _file(RangedFile(LocalRanges(files[0], meter)))
    note = f"a folder of {counted(len(files), 'file')}; only {files[0].name} was looked at"
    notes = [note, *filter(None, [lost_sections(files)]), *found.notes]
    return replace(found, size=sum(file.stat().st_size for file in files), notes=notes)


def _remote(target: str, transport: Transport, meter: Meter) -> _Found:
    address = target.removeprefix(PRECOMPUTED)
    scheme = address.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise InputRefused(
            f"Inspect {target}",
            f"addresses of the kind {scheme}:// are not read in parts",
            f"Give a path or an address of the kind {', '.join(SCHEMES)}",
        )
    url = https_url(address, transport.policy.endpoints)
    path = unquote(urlsplit(url).path)
    if DVID.search(path):
        return _arrays(dvid_image(WebDocuments(re.sub(r"/info/?$", "", url), transport, meter).fetch))
    if address != target or path.endswith("/") or CONTAINER.search(path):
        return _container(url, transport, meter, precomputed=address != target)
    try:
        ranges = HttpRanges(url, transport, meter)
    except NotFound:
        if Path(path).suffix.lower() in SUFFIXES:
            raise
        return _container(url, transport, meter, precomputed=False)
    return _file(RangedFile(ranges))


def _container(url: str, transport: Transport, meter: Meter, *, precomputed: bool) -> _Found:
    root, inside = _split(url)
    documents = WebDocuments(root, transport, meter)
    with _refusals_of(documents):
        if not CONTAINER.search(urlsplit(url).path):
            # One request tells a precomputed volume; what no document of zarr or N5 tells takes many.
            try:
                return _arrays(precomputed_images(documents.fetch))
            except NotFound:
                if precomputed:
                    raise
        return _arrays(zarr_or_n5(documents.fetch, unquote(inside)))


@contextmanager
def _refusals_of(documents: WebDocuments) -> Iterator[None]:
    """Say that access was refused, where nothing was found and that may be why."""
    try:
        yield
    except NotFound as error:
        if documents.refusal is not None:
            raise documents.refusal from error
        raise


def _split(address: str) -> tuple[str, str]:
    """The container, and the path inside it: what follows the last part that ends in .zarr or .n5."""
    found = list(CONTAINER.finditer(address))
    if not found:
        return address.rstrip("/"), ""
    end = found[-1].end()
    return address[:end].rstrip("/"), address[end:].strip("/")


def _file(file: RangedFile) -> _Found:
    head = file.read(HEAD_BYTES) or b""
    found = recognised(Path(unquote(file.name)), head)
    try:
        images = read_headers(file, unquote(file.name), file.size)  # type: ignore[arg-type]
        file.check_outage()
    except (BudgetSpent, UnsupportedFormat):
        # A reader may take the end of what it was allowed to read, or an outage, for damage.
        file.check_outage()
        if file.failure is None:
            raise
        unknown = f"what it holds is not known: {file.failure.tried}: {file.failure.found}"
        return _Found(found.title, (), file.size, notes=[unknown])
    return _Found(images[0].file_format, images, file.size)


def _arrays(found: Arrays) -> _Found:
    return _Found(found.kind, found.images, labels=found.labels, notes=found.notes)
