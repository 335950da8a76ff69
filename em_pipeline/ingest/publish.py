"""Step 5: make a validated volume visible, at once or not at all."""

import json
from pathlib import Path

from em_pipeline import __version__
from em_pipeline.catalog.entries import LabelImage, LevelRow, PublishOutcome, VersionToPublish
from em_pipeline.domain.errors import NotPublishable
from em_pipeline.domain.record import Status
from em_pipeline.domain.report import ValidationReport
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.build import Built, current_build
from em_pipeline.ingest.fetch import latest_manifest
from em_pipeline.ingest.kept import read_kept
from em_pipeline.ingest.versions import ImageFiles, VersionFiles
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage import keys
from em_pipeline.storage.lock import dataset_lock
from em_pipeline.volumes.ledger import Ledger
from em_pipeline.volumes.reader import VolumeReader


def publish(workspace: Workspace, spec: DatasetSpec) -> PublishOutcome:
    """Move the volume out of staging, record it in the catalogue, swap the pointer; in that order.

    Each part can be repeated, so a publication that was killed is finished by the next. Raises
    `NotPublishable` where the volume has no report or one that did not pass, `NotFound` where there is
    no volume.
    """
    with dataset_lock(workspace.store, spec.dataset_id):
        built = current_build(workspace, spec)
        report = _passed_report(spec, built)
        files = _move(workspace, spec, built)
        outcome = workspace.catalog.publish(_to_publish(workspace, spec, built, files, report))
        pointer = json.dumps({"version": built.version}).encode()
        workspace.store.write(keys.pointer(spec.dataset_id), pointer)
        workspace.store.delete_tree(keys.staging(spec.dataset_id, built.version))
        workspace.catalog.set_status(
            spec.dataset_id, Status.COMPLETE, progress=1.0, message=f"published {built.version}"
        )
    return outcome


def _passed_report(spec: DatasetSpec, built: Built) -> ValidationReport:
    report = read_kept(ValidationReport, built.files.report)
    if report is None:
        raise NotPublishable(
            f"Publish {spec.dataset_id} {built.version}",
            "it was not validated",
            f"Materialize {spec.source}/validation_report first, or run `em ingest {spec.dataset_id}`",
        )
    sha256 = {
        label: Ledger.read(built.files.image(label).ledger).sha256
        for label in keys.label_folders(spec.label_names).values()
    }
    image = Ledger.read(built.files.ledger).sha256
    seals = (report.version, report.ledger_sha256, report.label_ledgers)
    if not report.passed or seals != (built.version, image, sha256):
        failed = ", ".join(check.name for check in report.failures) or "the report is of other bytes"
        raise NotPublishable(
            f"Publish {spec.dataset_id} {built.version}",
            f"validation did not pass: {failed}",
            "Mend what the checks found, then ingest again",
        )
    return report


def _move(workspace: Workspace, spec: DatasetSpec, built: Built) -> VersionFiles:
    """Files first and the volume last, so that `VersionFiles.found` sees either place whole."""
    published = VersionFiles.published(workspace.store, spec.dataset_id, built.version)
    if built.files == published:
        return published
    store, dataset_id, version = workspace.store, spec.dataset_id, built.version
    staging = keys.staging(dataset_id, version)
    staged = VersionFiles.staged(store, dataset_id, version)
    for path, key in (
        (staged.record, keys.record(dataset_id, version)),
        (staged.report, keys.report(dataset_id, version)),
        (staged.preview, keys.preview(dataset_id, version)),
        *(
            (staged.image(label).ledger, keys.label_ledger(dataset_id, version, label))
            for label in keys.label_folders(spec.label_names).values()
        ),
        (staged.ledger, keys.ledger(dataset_id, version)),
    ):
        store.write(key, path.read_bytes())
    store.publish_tree(f"{staging}/{staged.volume.name}", keys.volume(dataset_id, version))
    return published


def _stored_bytes(volume: Path) -> int:
    return sum(path.stat().st_size for path in volume.rglob("*") if path.is_file())


def _to_publish(
    workspace: Workspace, spec: DatasetSpec, built: Built, files: VersionFiles, report: ValidationReport
) -> VersionToPublish:
    with VolumeReader.open(files.volume, files.ledger) as reader:
        ledger, levels = reader.ledger, [LevelRow.of(level) for level in reader.levels]
    return VersionToPublish(
        dataset_id=spec.dataset_id,
        version=built.version,
        revision=built.record.revision,
        spec=spec,
        record=built.record,
        manifest=latest_manifest(workspace, spec),
        report=report,
        levels=levels,
        ledger=ledger.table,
        statistics=built.record.fields.technical.statistics.model_dump(),
        ledger_sha256=ledger.sha256,
        volume_key=keys.volume(spec.dataset_id, built.version),
        ledger_key=keys.ledger(spec.dataset_id, built.version),
        stored_bytes=_stored_bytes(files.volume),
        writer_version=__version__,
        coverage=ledger.coverage,
        labels=[
            _label_image(spec, built.version, files.image(folder), name, folder)
            for name, folder in keys.label_folders(spec.label_names).items()
        ],
    )


def _label_image(spec: DatasetSpec, version: str, files: ImageFiles, name: str, folder: str) -> LabelImage:
    with VolumeReader.open(files.volume, files.ledger) as reader:
        ledger, levels = reader.ledger, reader.levels
    return LabelImage(
        folder=folder,
        name=name,
        data_type=levels[0].dtype.name,
        levels=tuple(LevelRow.of(level) for level in levels),
        coverage=ledger.coverage,
        ledger_sha256=ledger.sha256,
        volume_key=keys.label(spec.dataset_id, version, folder),
        ledger_key=keys.label_ledger(spec.dataset_id, version, folder),
        stored_bytes=_stored_bytes(files.volume),
    )
