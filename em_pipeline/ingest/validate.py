"""Step 4: look for every reason not to publish a staged volume."""

import random
from collections.abc import Callable

import numpy as np

from em_pipeline.domain.errors import EmError
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.record import Status
from em_pipeline.domain.report import CheckResult, Severity, ValidationReport
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.build import Built, box_of, current_build, open_source_volume
from em_pipeline.ingest.fetch import latest_manifest
from em_pipeline.ingest.kept import read_kept
from em_pipeline.ingest.versions import VersionFiles
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage import keys
from em_pipeline.storage.lock import dataset_lock
from em_pipeline.volumes.conformance import ngff_faults, read_elsewhere
from em_pipeline.volumes.ledger import Ledger
from em_pipeline.volumes.plan import CHUNK
from em_pipeline.volumes.pyramid_check import coarser_faults
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.verify import verify_stored

# Chunks compared voxel by voxel with the raw files; the others rest on the ledger's checksums.
SAMPLED_CHUNKS = 8


def validate(workspace: Workspace, spec: DatasetSpec) -> ValidationReport:
    """Check the current volume of a dataset and keep the report beside it.

    A published volume's report is the one it was published with. A check that could not be made has
    failed: the report says why. Raises `NotFound` where nothing was built.
    """
    with dataset_lock(workspace.store, spec.dataset_id):
        built = current_build(workspace, spec)
        published = VersionFiles.published(workspace.store, spec.dataset_id, built.version)
        kept = read_kept(ValidationReport, published.report)
        if built.files == published and kept is not None:
            return kept
        ledger = Ledger.read(built.files.ledger)
        report = ValidationReport(
            dataset_id=spec.dataset_id,
            version=built.version,
            ledger_sha256=ledger.sha256,
            checks=_checks(workspace, spec, built, ledger),
        )
        workspace.store.write(_report_key(spec, built, published), report.model_dump_json(indent=2).encode())
        status = Status.SAVING_DATA if report.passed else Status.FAILED
        failed = "; ".join(f"{check.name}: {check.message}" for check in report.failures)
        message = "validated" if report.passed else f"validation failed: {failed}"
        workspace.catalog.set_status(spec.dataset_id, status, progress=0.9, message=message)
    return report


def _report_key(spec: DatasetSpec, built: Built, published: VersionFiles) -> str:
    if built.files == published:
        return keys.report(spec.dataset_id, built.version)
    return f"{keys.staging(spec.dataset_id, built.version)}/{built.files.report.name}"


def _checks(workspace: Workspace, spec: DatasetSpec, built: Built, ledger: Ledger) -> tuple[CheckResult, ...]:
    checks: list[tuple[str, Callable[[], CheckResult]]] = [
        ("conformant", lambda: _conformant(built)),
        ("stored", lambda: _stored(workspace, built)),
        ("complete", lambda: _complete(ledger)),
        ("geometry", lambda: _geometry(workspace, spec, built)),
        ("faithful", lambda: _faithful(workspace, spec, built)),
        ("pyramid", lambda: _pyramid(built)),
        ("contrast", lambda: _contrast(built)),
        ("agreement", lambda: _agreement(built)),
    ]
    return tuple(_made(name, check) for name, check in checks)


CHECK_NAMES = ("conformant", "stored", "complete", "geometry", "faithful", "pyramid", "contrast", "agreement")
WARNINGS = frozenset({"contrast", "agreement"})


def _made(name: str, check: Callable[[], CheckResult]) -> CheckResult:
    try:
        return check()
    except EmError as error:
        return CheckResult(name=name, passed=False, message=f"could not be checked: {error}")


def _conformant(built: Built) -> CheckResult:
    faults = ngff_faults(built.files.volume)
    message = faults[0] if faults else "OME-Zarr 0.5"
    return CheckResult(name="conformant", passed=not faults, message=message, details={"faults": faults})


def _stored(workspace: Workspace, built: Built) -> CheckResult:
    result = verify_stored(
        built.files.volume, built.files.ledger, threads=workspace.threads, progress=workspace.progress
    )
    first = str(result.faults[0]) if result.faults else f"{result.chunks} chunks have the ledger's checksums"
    return CheckResult(
        name="stored",
        passed=not result.faults,
        message=first,
        details={
            "chunks": result.chunks,
            "bytes": result.bytes,
            "faults": [str(f) for f in result.faults[:20]],
        },
    )


def _complete(ledger: Ledger) -> CheckResult:
    counts = ledger.states()
    missing = {str(state): n for state, n in counts.items() if str(state) in ("absent", "corrupt") and n}
    return CheckResult(
        name="complete",
        passed=not missing,
        message=f"not all chunks have data: {missing}" if missing else "every chunk has data or true fill",
        details={str(state): n for state, n in counts.items()},
    )


def _geometry(workspace: Workspace, spec: DatasetSpec, built: Built) -> CheckResult:
    with (
        open_source_volume(workspace, spec, latest_manifest(workspace, spec)) as volume,
        VolumeReader.open(built.files.volume, built.files.ledger) as reader,
    ):
        level = reader.levels[0]
        expected = {
            "shape": tuple(box_of(spec, volume).shape),
            "dtype": volume.dtype.name,
            "voxel_size_nm": tuple(built.record.fields.core.voxel_size_nm.model_dump().values()),
            "recorded shape": tuple(built.record.fields.core.volume_shape.model_dump().values()),
            "recorded dtype": built.record.fields.core.data_type,
        }
        found = {
            "shape": tuple(level.shape),
            "dtype": np.dtype(level.dtype).name,
            "voxel_size_nm": tuple(level.voxel_size),
            "recorded shape": tuple(level.shape),
            "recorded dtype": np.dtype(level.dtype).name,
        }
    wrong = [name for name in expected if expected[name] != found[name]]
    message = "; ".join(f"{name}: stored {found[name]}, expected {expected[name]}" for name in wrong)
    return CheckResult(
        name="geometry",
        passed=not wrong,
        message=message or f"{found['shape']} {found['dtype']}, {found['voxel_size_nm']} nm, as the source",
    )


def _faithful(workspace: Workspace, spec: DatasetSpec, built: Built) -> CheckResult:
    with open_source_volume(workspace, spec, latest_manifest(workspace, spec)) as volume:
        whole = box_of(spec, volume)
        boxes = list(BoundingBox.of_shape(whole.shape).tiles(CHUNK))
        sample = random.Random(built.version).sample(boxes, min(SAMPLED_CHUNKS, len(boxes)))  # noqa: S311
        for box in sample:
            if not _same(volume, built, box, whole.start):
                at = tuple(box.start)
                message = f"level 0 differs from the raw files in the chunk at voxel {at} (z-y-x)"
                return CheckResult(name="faithful", passed=False, message=message)
    message = f"{len(sample)} of {len(boxes)} chunks, read by tensorstore, equal the raw files voxel by voxel"
    return CheckResult(name="faithful", passed=True, message=message)


def _same(volume: LazyVolume, built: Built, box: BoundingBox, corner: Shape) -> bool:
    stored = read_elsewhere(built.files.volume, "0", box)
    raw = volume.read(box.shifted(corner))
    floats = np.issubdtype(stored.dtype, np.floating)
    return bool(np.array_equal(stored, raw, equal_nan=bool(floats)))


def _pyramid(built: Built) -> CheckResult:
    faults = coarser_faults(built.files.volume, built.files.ledger, sample=SAMPLED_CHUNKS, seed=built.version)
    message = faults[0] if faults else f"up to {SAMPLED_CHUNKS} chunks a level follow from the level below"
    return CheckResult(name="pyramid", passed=not faults, message=message, details={"faults": faults})


def _contrast(built: Built) -> CheckResult:
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
