"""Step 5: make a validated volume visible, at once or not at all."""

import json
from dataclasses import replace

from em_pipeline import __version__
from em_pipeline.catalog.entries import LabelImage, LevelRow, PublishOutcome, VersionToPublish
from em_pipeline.domain.errors import NotPublishable
from em_pipeline.domain.files import Manifest
from em_pipeline.domain.record import Status
from em_pipeline.domain.report import ValidationReport
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.build import Built, current_build
from em_pipeline.ingest.fetch import latest_manifest, let_go
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
    `NotPublishable`, and moves nothing, where the volume has no report or one that did not pass, or where its
    version was published with other bytes; `NotFound` where there is no volume.
    """
    with dataset_lock(workspace.store, spec.dataset_id):
        built = current_build(workspace, spec)
        report = _passed_report(workspace, spec, built)
        workspace.catalog.refuse_other_bytes(report)
        files = _move(workspace, spec, built)
        manifest = latest_manifest(workspace, spec)
        outcome = workspace.catalog.publish(_to_publish(spec, built, files, manifest, report))
        pointer = json.dumps({"version": built.version}).encode()
        workspace.store.write(keys.pointer(spec.dataset_id), pointer)
        workspace.store.delete_tree(keys.staging(spec.dataset_id, built.version))
        workspace.store.delete_empty(keys.all_of("staging", spec.dataset_id))
        let_go(workspace, manifest)
        workspace.catalog.set_status(
            spec.dataset_id, Status.COMPLETE, progress=1.0, message=f"published {built.version}"
        )
    return replace(outcome, written_again=not outcome.changed and files != built.files)


def _passed_report(workspace: Workspace, spec: DatasetSpec, built: Built) -> ValidationReport:
    report = read_kept(ValidationReport, workspace.store, built.files.report)
    if report is None:
        raise NotPublishable(
            f"Publish {spec.dataset_id} {built.version}",
            "it was not validated",
            f"Materialize {spec.source}/validation_report first, or run `em ingest {spec.dataset_id}`",
        )
    sha256 = {
        label: _sealed(built.files.image(label)).sha256
        for label in keys.label_folders(spec.label_names).values()
    }
    image = _sealed(built.files.image()).sha256
    seals = (report.version, report.ledger_sha256, report.label_ledgers)
    if not report.passed or seals != (built.version, image, sha256):
        failed = ", ".join(check.name for check in report.failures) or "the report is of other bytes"
        raise NotPublishable(
            f"Publish {spec.dataset_id} {built.version}",
            f"validation did not pass: {failed}",
            "Mend what the checks found, then ingest again",
        )
    return report


def _sealed(image: ImageFiles) -> Ledger:
    return Ledger.read(image.ledgers, image.name)


def _move(workspace: Workspace, spec: DatasetSpec, built: Built) -> VersionFiles:
    """Files first and the volume last, so that `VersionFiles.found` sees either place whole."""
    published = VersionFiles.published(workspace.store, spec.dataset_id, built.version)
    if built.files == published:
        return published
    store, staged = workspace.store, built.files
    for source, target in (
        (staged.record, published.record),
        (staged.report, published.report),
        (staged.preview, published.preview),
        *(
            (staged.label_ledger(label), published.label_ledger(label))
            for label in keys.label_folders(spec.label_names).values()
        ),
        (staged.ledger, published.ledger),
    ):
        store.write(target, store.read(source))
    store.publish_tree(staged.volume, published.volume)
    return published


def _to_publish(
    spec: DatasetSpec, built: Built, files: VersionFiles, manifest: Manifest, report: ValidationReport
) -> VersionToPublish:
    labels = [
        _label_image(files.image(folder), files, name, folder)
        for name, folder in keys.label_folders(spec.label_names).items()
    ]
    with VolumeReader.open(*files.image()) as reader:
        ledger, levels = reader.ledger, [LevelRow.of(level) for level in reader.levels]
        stored_bytes = reader.stored_bytes + sum(label.stored_bytes for label in labels)
    return VersionToPublish(
        dataset_id=spec.dataset_id,
        version=built.version,
        revision=built.record.revision,
        spec=spec,
        record=built.record,
        manifest=manifest,
        report=report,
        levels=levels,
        ledger=ledger.table(),
        statistics=built.record.fields.technical.statistics.model_dump(),
        ledger_sha256=ledger.sha256,
        volume_key=files.volume,
        ledger_key=files.ledger,
        stored_bytes=stored_bytes,
        writer_version=__version__,
        coverage=ledger.coverage,
        labels=labels,
    )


def _label_image(image: ImageFiles, files: VersionFiles, name: str, folder: str) -> LabelImage:
    with VolumeReader.open(*image) as reader:
        ledger, levels, stored_bytes = reader.ledger, reader.levels, reader.stored_bytes
    return LabelImage(
        folder=folder,
        name=name,
        data_type=levels[0].dtype.name,
        levels=tuple(LevelRow.of(level) for level in levels),
        coverage=ledger.coverage,
        ledger_sha256=ledger.sha256,
        volume_key=files.label(folder),
        ledger_key=files.label_ledger(folder),
        stored_bytes=stored_bytes,
    )
