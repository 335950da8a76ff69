"""What an ingest will write, decided and estimated before it does: the plans of an image and its labels."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np

from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.domain.files import RawFile
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import UNCOMPRESSED, DatasetSpec
from em_pipeline.domain.wording import counted
from em_pipeline.formats.dvid import check_not_dvid
from em_pipeline.formats.headers import ImageHeaders
from em_pipeline.ingest.claims import spec_claims, voxel_size_of
from em_pipeline.ingest.cuts import Cut, image_cut, opened_labels
from em_pipeline.ingest.fetch import held_files, latest_manifest
from em_pipeline.ingest.inspection import Inspection, inspect, policy_for_a_look
from em_pipeline.ingest.inspection_target import Whereabouts, portal_address
from em_pipeline.ingest.kinds import kind_of
from em_pipeline.ingest.scrape import latest_portal_record
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.settings import LEAST_MEMORY
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.region_size import LimitedSource, check_bytes, check_extent
from em_pipeline.storage.local_files import path_of_file_url
from em_pipeline.storage.ranged import is_url
from em_pipeline.volumes.memory import Means, budget_of, check_publication, for_voxels
from em_pipeline.volumes.plan import Layout, RechunkPlan, plan_rechunk
from em_pipeline.volumes.plan_report import PlanReport, report
from em_pipeline.volumes.sampling import take_sample

_FILE = "file://"
PLAIN = ("", "none", "raw")
MOST_MIB = 1 << 24  # 16 TiB: more than any machine has


@dataclass(frozen=True)
class Outlook:
    """What an ingest of a dataset would write: for each image its name and what it takes.

    `memory_budget` is in bytes; `store` is the URL of where the volume will lie;
    `notes` are sentences on what was looked at and what is not known.
    """

    dataset_id: str
    memory_budget: int
    store: str
    images: tuple[tuple[str, PlanReport], ...]
    notes: tuple[str, ...]


def plan_cuts(
    workspace: Workspace, spec: DatasetSpec, image: Cut, labels: Sequence[Cut]
) -> tuple[RechunkPlan, ...]:
    """The plan of the image, then those of its label images, within the workspace's memory and threads.

    Raises `InputRefused` where the memory is too little, with what is enough for all of them, or they cannot
    be written.
    """

    def fits(given: Workspace) -> bool:
        _plans(given, spec, image, labels)
        return all(cut.is_decodable(given.memory_budget) for cut in (image, *labels))

    for cut in (image, *labels):
        if not cut.is_decodable(workspace.memory_budget):
            raise cut.not_decodable(workspace.memory_budget, _enough(workspace, fits))
    with _enough_told(workspace, fits):
        return _plans(workspace, spec, image, labels)


@contextmanager
def _enough_told(workspace: Workspace, fits: Callable[[Workspace], bool]) -> Iterator[None]:
    """Refuse what is refused for its memory with what is enough for all that has to fit."""
    try:
        yield
    except InputRefused as refused:
        enough = _enough(workspace, fits)
        raise InputRefused(refused.tried, refused.found, budget_of(enough << 20)) from refused


def _enough(workspace: Workspace, fits: Callable[[Workspace], bool]) -> int:
    """The least memory budget, MiB, that one thread can read and write all in.

    Raises `InputRefused` where it would be refused with any.
    """

    def in_budget(mebibytes: int) -> bool:
        return fits(replace(workspace, memory_budget=mebibytes << 20, threads=1))

    def suffices(mebibytes: int) -> bool:
        with suppress(InputRefused):
            return in_budget(mebibytes)
        return False

    in_budget(MOST_MIB)
    least = LEAST_MEMORY >> 20
    return least + bisect_left(range(least, MOST_MIB), True, key=suffices)


def _plans(
    workspace: Workspace, spec: DatasetSpec, image: Cut, labels: Sequence[Cut]
) -> tuple[RechunkPlan, ...]:
    folders = tuple(label.label for label in labels if label.label is not None)
    plan = _plan(workspace, image, Layout(image.chosen.kind, spec.codec, folders))
    # NGFF 0.5, "labels": a label image has as many levels as its image.
    same = Layout(codec=_label_codec(spec), level_count=len(plan.levels))
    return plan, *(_plan(workspace, label, replace(same, kind=label.chosen.kind)) for label in labels)


def outlook(workspace: Workspace, spec: DatasetSpec) -> Outlook:
    """What `em ingest` would write of a dataset. Nothing is written, and no voxel is downloaded.

    Files that this machine holds are opened and sampled; of others, headers are read. Raises `InputRefused`
    where these do not say enough, and like reading and inspecting.
    """
    held = _held(workspace, spec)
    if held is None:
        return _from_headers(workspace, spec)
    with _opened(workspace, spec, held) as cuts:
        plans = plan_cuts(workspace, spec, cuts[0], cuts[1:])
        images = tuple(
            (str(cut), report(plan, take_sample(cut.volume, cut.box, plan), threads_asked=workspace.threads))
            for cut, plan in zip(cuts, plans, strict=True)
        )
        notes = [f"{cut} is {cut.chosen}" for cut in cuts[:1] if cut.chosen.because]
        notes += cuts[0].notes
    notes += _elsewhere(workspace)
    return Outlook(spec.dataset_id, workspace.memory_budget, workspace.store.url, images, tuple(notes))


def _elsewhere(workspace: Workspace) -> list[str]:
    """That threads and time are not of the machines that will write, where others do."""
    if not workspace.compute.elsewhere:
        return []
    return [
        f"the units will go to {workspace.compute.elsewhere}: threads and time are of this machine's cores "
        "alone (docs/costs.md for N machines)"
    ]


def _label_codec(spec: DatasetSpec) -> str | None:
    """Whoever wants no codec wants none at all; any other is chosen for the voxels of an image."""
    return UNCOMPRESSED if spec.codec == UNCOMPRESSED else None


def _plan(workspace: Workspace, cut: Cut, layout: Layout) -> RechunkPlan:
    return _planned(
        workspace,
        cut.volume.scratch_bytes,
        lambda means: plan_rechunk(
            cut.box.shape,
            cut.volume.dtype.name,
            cut.voxel_size,
            translation_nm=cut.translation_nm,
            source_chunk=cut.volume.decode_shape,
            means=means,
            layout=layout,
        ),
    )


def _planned(workspace: Workspace, read_scratch: int, plan: Callable[[Means], RechunkPlan]) -> RechunkPlan:
    """With as many of the workspace's threads as its memory is enough for, which may be one.

    The source's reader takes `read_scratch` bytes in each reading thread.
    """
    place = workspace.store.blobs("staging")

    def means(threads: int) -> Means:
        voxel_budget, threads = for_voxels(workspace.memory_budget, threads)
        return Means(voxel_budget, threads, read_scratch, place.sink_bytes, place.requests_at_once)

    found = None
    for threads in range(workspace.threads, 1, -1):
        with suppress(InputRefused):  # by what one thread is refused for, if that is too
            found = plan(means(threads))
            break
    found = found or plan(means(1))
    check_publication(found.chunk_count, found.chunk_bytes, workspace.memory_budget)
    return found


def _held(workspace: Workspace, spec: DatasetSpec) -> Sequence[HeldFile] | None:
    """The raw files, where this machine has them; None where they would have to be downloaded."""
    source = workspace.source(spec.source)
    # An address may be of a volume with millions of files, which nobody wants listed for a plan.
    if spec.location is not None and (spec.location.startswith(_FILE) or not is_url(spec.location)):
        files = source.list_files(spec, source.fetch_record(spec))
        if all(file.url.startswith(_FILE) for file in files):
            return [
                HeldFile(
                    RawFile(url=file.url, path=file.path, size=file.size or 0, sha256=""),
                    path_of_file_url(file.url),
                )
                for file in files
            ]
    if not workspace.store.url.startswith(_FILE):
        return None  # from an object store they would have to be brought first
    try:
        return held_files(workspace, latest_manifest(workspace, spec))
    except NotFound:
        return None


@contextmanager
def _opened(workspace: Workspace, spec: DatasetSpec, held: Sequence[HeldFile]) -> Iterator[tuple[Cut, ...]]:
    try:
        portal = latest_portal_record(workspace, spec).claims
    except NotFound:
        portal = ()
    with ExitStack() as opened:
        volume = opened.enter_context(workspace.source(spec.source).open_volume(spec, held))
        claims = [*spec_claims(spec), *volume.claims, *portal]
        record = DatasetRecord.resolve(spec.dataset_id, "planned", claims)
        voxel_size = voxel_size_of(record, [one.file.path for one in held])
        image = image_cut(spec, volume, voxel_size, spec.dataset_id)
        yield image, *opened.enter_context(opened_labels(workspace, spec, held, image))


def _from_headers(workspace: Workspace, spec: DatasetSpec) -> Outlook:
    told = Whereabouts(spec.location or "", claims=tuple(spec_claims(spec)))
    if spec.location is None:
        told = portal_address(workspace.source(spec.source), spec)
    address = told.address
    policy = policy_for_a_look(
        read_timeout_s=workspace.policy.read_timeout_s,
        retries=workspace.policy.retries,
        endpoints=workspace.policy.endpoints,
    )
    found = inspect(address, policy, workspace.progress.note)
    image = _level(spec, found.images, address)
    if None in image.shape or image.decode_shape is None:
        raise InputRefused(
            f"Plan {spec.dataset_id}",
            "its headers do not say its whole shape",
            "Download it first: em ingest",
        )
    shape = Shape(*(int(n or 0) for n in image.shape))
    record = DatasetRecord.resolve(spec.dataset_id, "planned", [*told.claims, *image.claims])
    box = spec.bounding_box or BoundingBox.of_shape(shape)
    if not box.within(shape):
        raise InputRefused(
            f"Cut {tuple(box.start)}..{tuple(box.stop)} (z-y-x voxels) out of {spec.dataset_id}",
            f"the volume is {tuple(shape)}",
            "Give a box inside it",
        )
    _check_size(workspace, spec, found, image, box)
    chosen = kind_of(spec, np.dtype(image.dtype), image.metadata)
    decoded = Shape(*image.decode_shape)

    def planned(given: Workspace) -> RechunkPlan:
        return _planned(
            given,
            0 if image.compression in PLAIN else _chunk_bytes(image),
            lambda means: plan_rechunk(
                box.shape,
                image.dtype,
                voxel_size_of(record, [address]),
                source_chunk=decoded,
                means=means,
                layout=Layout(chosen.kind, spec.codec),
            ),
        )

    with _enough_told(workspace, lambda given: bool(planned(given))):
        plan = planned(workspace)
    notes = [
        told.note,
        f"planned from headers: {counted(found.requests, 'request')}, {counted(found.bytes_read, 'byte')}",
    ]
    if chosen.because:
        notes.append(f"the image is {chosen}")
    if spec.label_images:
        notes.append(f"label images are not planned before download: {', '.join(spec.label_names)}")
    notes += [*found.notes, *image.notes, *_elsewhere(workspace)]
    images = (("the image", report(plan, threads_asked=workspace.threads)),)
    return Outlook(
        spec.dataset_id, workspace.memory_budget, workspace.store.url, images, tuple(filter(None, notes))
    )


def _check_size(
    workspace: Workspace, spec: DatasetSpec, found: Inspection, image: ImageHeaders, box: BoundingBox
) -> None:
    """Refuse what an ingest would refuse for its size, or since it is only inspected."""
    tried = f"Plan {spec.dataset_id}"
    if spec.location is not None:
        check_not_dvid(image.metadata, tried)
    name = f"level {image.name}" if image.name else "the volume"
    check_extent(spec.dataset_id, name, box.shape)
    source = workspace.source(spec.source)
    # A file is taken whole, however large; what has no size is an array.
    if found.size is None and isinstance(source, LimitedSource):
        size = box.shape.voxels * np.dtype(image.dtype).itemsize
        check_bytes(spec.dataset_id, name, size, source.size_limit)


def _chunk_bytes(image: ImageHeaders) -> int:
    """What decoding a chunk takes besides the voxels wanted, as far as headers tell."""
    return math.prod(image.chunk_shape or ()) * np.dtype(image.dtype).itemsize


def _level(spec: DatasetSpec, images: Sequence[ImageHeaders], address: str) -> ImageHeaders:
    """The level that the spec asks for; of a pyramid the finest comes first."""
    level = spec.level or 0
    if isinstance(level, int) and level < len(images):
        return images[level]
    named = [image for image in images if image.name == level]
    if named:
        return named[0]
    raise InputRefused(
        f"Plan level {level!r} of {spec.dataset_id}",
        f"{address} has {', '.join(image.name or str(n) for n, image in enumerate(images)) or 'no image'}",
        "Give one of these with --level",
    )
