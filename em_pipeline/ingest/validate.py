"""Step 4: look for every reason not to publish a staged volume."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC
from functools import cache

import numpy as np

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import EmError, StorageFailed
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.record import Status
from em_pipeline.domain.report import CheckResult, Severity, ValidationReport
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.domain.wording import counted
from em_pipeline.ingest.build import Built, current_build, open_source_volume
from em_pipeline.ingest.claims import voxel_size_of
from em_pipeline.ingest.cuts import Cut, image_cut, opened_labels
from em_pipeline.ingest.fetch import held_files, latest_manifest
from em_pipeline.ingest.kept import read_kept
from em_pipeline.ingest.versions import VersionFiles
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage import keys
from em_pipeline.storage.lock import dataset_lock
from em_pipeline.volumes.allocator import give_freed_memory_back
from em_pipeline.volumes.conformance import ngff_faults, read_elsewhere
from em_pipeline.volumes.ledger import ChunkState, Ledger
from em_pipeline.volumes.memory import for_voxels
from em_pipeline.volumes.metadata import FILL_VALUE
from em_pipeline.volumes.plan import CHUNK
from em_pipeline.volumes.pyramid_check import coarser_faults
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.verify import verify_stored

# Chunks compared voxel by voxel with the raw files; the others rest on the ledger's checksums.
SAMPLED_CHUNKS = 8

Ledgers = Mapping[str | None, Ledger]
"""The image's ledger under None, each label image's under its folder."""


def validate(workspace: Workspace, spec: DatasetSpec) -> ValidationReport:
    """Check the current volume of a dataset and keep the report beside it.

    A published volume's report is the one it was published with. A check that the data do not allow has
    failed: the report says why. Raises `NotFound` where nothing was built; `StorageFailed` and any transient
    error where a check could not be made, which says nothing of the volume: no report is written.
    """
    with dataset_lock(workspace.store, spec.dataset_id):
        built = current_build(workspace, spec)
        published = VersionFiles.published(workspace.store, spec.dataset_id, built.version)
        kept = read_kept(ValidationReport, workspace.store, published.report)
        if built.files == published and kept is not None:
            workspace.progress.note(
                f"validation: {kept}. These checks were made when it was published"
                f"{_first_published(workspace, built)}; no byte was looked at now: "
                f"`em verify {spec.dataset_id}` looks again"
            )
            return kept
        labels = keys.label_folders(spec.label_names).values()
        images = {label: built.files.image(label) for label in (None, *labels)}
        ledgers = {label: Ledger.read(image.ledgers, image.name) for label, image in images.items()}
        report = ValidationReport(
            dataset_id=spec.dataset_id,
            version=built.version,
            ledger_sha256=ledgers[None].sha256,
            label_ledgers={label: ledgers[label].sha256 for label in labels},
            checks=_checks(workspace, spec, built, ledgers),
        )
        workspace.store.write(built.files.report, report.model_dump_json(indent=2).encode())
        status = Status.SAVING_DATA if report.passed else Status.FAILED
        failed = "; ".join(f"{check.name}: {check.message}" for check in report.failures)
        message = "validated" if report.passed else f"validation failed: {failed}"
        workspace.catalog.set_status(spec.dataset_id, status, progress=0.9, message=message)
        workspace.progress.note(f"validation: {report}")
    return report


def _first_published(workspace: Workspace, built: Built) -> str:
    """The day (UTC) in brackets, where the catalogue knows it: a volume may be deleted and written again."""
    entry = workspace.catalog.published_version(built.record.dataset_id)
    if entry is None or entry.version != built.version:
        return ""
    return f" (first on {entry.published_at.astimezone(UTC):%Y-%m-%d})"


def _checks(
    workspace: Workspace, spec: DatasetSpec, built: Built, ledgers: Ledgers
) -> tuple[CheckResult, ...]:
    with ExitStack() as opened:

        @cache
        def cuts() -> tuple[Cut, ...]:
            return opened.enter_context(_opened_cuts(workspace, spec, built))

        checks: list[tuple[str, Callable[[], CheckResult]]] = [
            ("conformant", lambda: _conformant(built)),
            ("stored", lambda: _stored(workspace, built, ledgers)),
            ("complete", lambda: _complete(ledgers, cuts())),
            ("geometry", lambda: _geometry(built, cuts())),
            ("faithful", lambda: _faithful(built, cuts())),
            ("pyramid", lambda: _pyramid(built, ledgers)),
            ("contrast", lambda: _contrast(built)),
            ("coverage", lambda: _coverage(ledgers, cuts())),
            ("agreement", lambda: _agreement(built)),
        ]
        return tuple(_made(name, check) for name, check in checks)


CHECK_NAMES = (
    "conformant",
    "stored",
    "complete",
    "geometry",
    "faithful",
    "pyramid",
    "contrast",
    "coverage",
    "agreement",
)
WARNINGS = frozenset({"contrast", "coverage", "agreement"})
NOT_STORED = (
    "Their chunks are not there: writers leave out chunks that are all fill value, and lost ones look alike"
)

LOST = "Sections may be lost there, and all behind lie nearer to the first than they did"


def _made(name: str, check: Callable[[], CheckResult]) -> CheckResult:
    give_freed_memory_back()  # of what came before, which read with other buffers in other threads
    try:
        return check()
    except EmError as error:
        if error.transient or isinstance(error, StorageFailed):  # no verdict on the volume
            raise
        return CheckResult(name=name, passed=False, message=f"could not be checked: {error}")


@contextmanager
def _opened_cuts(workspace: Workspace, spec: DatasetSpec, built: Built) -> Iterator[tuple[Cut, ...]]:
    """What the image and each label image were made from."""
    manifest = latest_manifest(workspace, spec)
    voxel_size = voxel_size_of(built.record, [file.path for file in manifest.files])
    with open_source_volume(workspace, spec, manifest) as volume:
        image = image_cut(spec, volume, voxel_size, spec.dataset_id)
        with opened_labels(workspace, spec, held_files(workspace, manifest), image) as labels:
            yield (image, *labels)


def _conformant(built: Built) -> CheckResult:
    faults = ngff_faults(built.files.image().volume)
    message = faults[0] if faults else "OME-Zarr 0.5"
    return CheckResult(name="conformant", passed=not faults, message=message, details={"faults": faults})


def _stored(workspace: Workspace, built: Built, ledgers: Ledgers) -> CheckResult:
    chunks, nbytes, faults = 0, 0, []
    _, threads = for_voxels(workspace.memory_budget, workspace.threads)
    for label in ledgers:
        result = verify_stored(*built.files.image(label), threads=threads, progress=workspace.progress)
        chunks, nbytes = chunks + result.chunks, nbytes + result.bytes
        faults += [_of(label, str(fault)) for fault in result.faults]
    return CheckResult(
        name="stored",
        passed=not faults,
        message=faults[0]
        if faults
        else f"{counted(chunks, 'chunk has', 'chunks have')} the ledger's checksums",
        details={"chunks": chunks, "bytes": nbytes, "faults": faults[:20]},
    )


def _complete(ledgers: Ledgers, cuts: Sequence[Cut]) -> CheckResult:
    """Every chunk holds what the source has, and exactly what the source lacks is absent."""
    faults = []
    for cut in cuts:
        ledger = ledgers[cut.label]
        if corrupt := ledger.states()[ChunkState.CORRUPT]:
            faults.append(_of(cut.label, f"{counted(corrupt, 'chunk')} could not be read from the source"))
        lacking = [missing and missing.to_json() for missing in (cut.missing, ledger.missing)]
        if lacking[0] != lacking[1]:
            faults.append(_of(cut.label, "other voxels are recorded as absent than the source lacks"))
    return CheckResult(
        name="complete",
        passed=not faults,
        message=faults[0] if faults else "every chunk has data, true fill, or is absent at the source",
        details={str(state): n for state, n in ledgers[None].states().items()},
    )


def _coverage(ledgers: Ledgers, cuts: Sequence[Cut]) -> CheckResult:
    """A source may lack chunks (sparse arrays store none that is all fill) or sections, and say so itself or
    leave it to be guessed from names; but nobody shall overlook it.
    """
    shares = {_of(label, "coverage"): ledger.coverage for label, ledger in ledgers.items()}
    lacking = [
        _of(label, f"{1 - ledger.coverage:.3%} of the voxels are absent at the source")
        for label, ledger in ledgers.items()
        if ledger.missing is not None
    ]
    lost = [_of(cut.label, f"{cut.lost_sections}. {LOST}") for cut in cuts if cut.lost_sections]
    told = [f"{'; '.join(lacking)}. {NOT_STORED}"] if lacking else []
    return CheckResult(
        name="coverage",
        passed=not lacking and not lost,
        severity=Severity.WARNING,
        message=". ".join([*told, *lost]) or "the source holds every voxel",
        details=shares,
    )


def _geometry(built: Built, cuts: Sequence[Cut]) -> CheckResult:
    found = [_placed(built, cut) for cut in cuts]
    wrong = [
        _of(cut.label, f"{name}: stored {stored[name]}, expected {expected[name]}")
        for cut, (expected, stored) in zip(cuts, found, strict=True)
        for name in expected
        if expected[name] != stored[name]
    ]
    _, image = found[0]
    message = f"{image['shape']} {image['dtype']}, {image['voxel_size_nm']} nm, as the source"
    partial = [f"{cut} does not cover the whole image" for cut in cuts if not cut.whole]
    return CheckResult(name="geometry", passed=not wrong, message="; ".join(wrong or [message, *partial]))


def _placed(built: Built, cut: Cut) -> tuple[dict[str, object], dict[str, object]]:
    """Shape, type and place as they should be, and as they are stored and recorded."""
    with VolumeReader.open(*built.files.image(cut.label)) as reader:
        level = reader.levels[0]
    expected: dict[str, object] = {
        "shape": tuple(cut.box.shape),
        "dtype": cut.volume.dtype.name,
        "voxel_size_nm": tuple(cut.voxel_size),
        "translation_nm": cut.translation_nm,
    }
    stored: dict[str, object] = {
        "shape": tuple(level.shape),
        "dtype": np.dtype(level.dtype).name,
        "voxel_size_nm": tuple(level.voxel_size),
        "translation_nm": level.translation_nm,
    }
    if cut.label is None:
        core = built.record.fields.core
        expected |= {"recorded shape": stored["shape"], "recorded dtype": stored["dtype"]}
        stored |= {
            "recorded shape": tuple(core.volume_shape.model_dump().values()),
            "recorded dtype": core.data_type,
        }
    return expected, stored


def _faithful(built: Built, cuts: Sequence[Cut]) -> CheckResult:
    compared = total = 0
    for cut in cuts:
        boxes = list(BoundingBox.of_shape(cut.box.shape).tiles(CHUNK))
        sample = random.Random(built.version).sample(boxes, min(SAMPLED_CHUNKS, len(boxes)))  # noqa: S311
        for box in sample:
            if not _same(cut, built.files.image(cut.label).volume, box):
                at = tuple(box.start)
                message = f"level 0 differs from the raw files in the chunk at voxel {at} (z-y-x)"
                return CheckResult(name="faithful", passed=False, message=_of(cut.label, message))
        compared, total = compared + len(sample), total + len(boxes)
    message = f"{compared} of {total} chunks, read by tensorstore, equal the raw files voxel by voxel"
    return CheckResult(name="faithful", passed=True, message=message)


def _same(cut: Cut, volume: Blobs, box: BoundingBox) -> bool:
    stored = read_elsewhere(volume, "0", box)
    raw = cut.volume.read(box.shifted(cut.box.start))
    missing = cut.missing
    absent = None if missing is None else missing.within(box)
    if absent is not None:
        raw = np.where(absent, stored.dtype.type(FILL_VALUE), raw)
    floats = np.issubdtype(stored.dtype, np.floating)
    return bool(np.array_equal(stored, raw, equal_nan=bool(floats)))


def _pyramid(built: Built, ledgers: Ledgers) -> CheckResult:
    faults = []
    for label in ledgers:
        image = built.files.image(label)
        found = coarser_faults(*image, sample=SAMPLED_CHUNKS, seed=built.version)
        faults += [_of(label, fault) for fault in found]
    message = faults[0] if faults else f"up to {SAMPLED_CHUNKS} chunks a level follow from the level below"
    return CheckResult(name="pyramid", passed=not faults, message=message, details={"faults": faults})


def _contrast(built: Built) -> CheckResult:
    """An image of one value shows nothing; of labels that may be one object, and means nothing."""
    with VolumeReader.open(*built.files.image()) as reader:
        if reader.info.kind == "labels":
            message = "not of labels, whose ids are no brightness"
            return CheckResult(name="contrast", passed=True, severity=Severity.WARNING, message=message)
    statistics = built.record.fields.technical.statistics
    flat = statistics.min == statistics.max
    message = f"every voxel is {statistics.min}" if flat else f"values {statistics.min}–{statistics.max}"
    return CheckResult(name="contrast", passed=not flat, severity=Severity.WARNING, message=message)


def _agreement(built: Built) -> CheckResult:
    conflicts = [str(conflict) for conflict in built.record.conflicts]
    message = "; ".join(conflicts) or "portal and files agree wherever both speak"
    return CheckResult(
        name="agreement",
        passed=not conflicts,
        severity=Severity.WARNING,
        message=message,
        details={"conflicts": conflicts},
    )


def _of(label: str | None, said: str) -> str:
    return said if label is None else f"labels/{label}: {said}"
