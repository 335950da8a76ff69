"""Step 3: rechunk the raw files into a staged OME-Zarr, with its ledger, record and preview."""

from collections.abc import Sequence
from dataclasses import dataclass

from em_pipeline.domain.errors import ChecksumMismatch, ChunkCorrupt, NotFound, RecordInvalid
from em_pipeline.domain.files import Manifest
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.record import DatasetRecord, Status
from em_pipeline.domain.report import ValidationReport
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.domain.wording import counted
from em_pipeline.ingest.claims import volume_record, voxel_size_of, with_statistics
from em_pipeline.ingest.cuts import Cut, box_of, image_cut, opened_labels
from em_pipeline.ingest.fetch import changed_while_read, held_files, latest_manifest
from em_pipeline.ingest.kept import read_kept
from em_pipeline.ingest.kinds import kind_of
from em_pipeline.ingest.planning import plan_cuts
from em_pipeline.ingest.raw_files import for_any_machine
from em_pipeline.ingest.scrape import latest_portal_record
from em_pipeline.ingest.versions import ImageFiles, VersionFiles, version_of, version_without_voxels
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage import keys
from em_pipeline.storage.lock import dataset_lock
from em_pipeline.volumes.codec import ChunkCodec
from em_pipeline.volumes.ledger import Ledger
from em_pipeline.volumes.plan_report import PlanReport, report
from em_pipeline.volumes.preview import preview_png
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.rechunk import WrittenVolume, rechunk


@dataclass(frozen=True)
class Built:
    """A complete volume, staged or already published.

    `written`, and the `plan` of the image it was written by, are None where nothing had to be done.
    """

    version: str
    files: VersionFiles
    record: DatasetRecord
    written: WrittenVolume | None
    plan: PlanReport | None = None


def build(workspace: Workspace, spec: DatasetSpec) -> Built:
    """Rechunk a dataset and its label images, continuing at the first unit an earlier try did not finish.

    Raises `InputRefused` where no voxel size is known, the bounding box leaves the volume or a label image
    does not fit it, `UnsupportedFormat` from the reader, `Busy`.
    """
    with dataset_lock(workspace.store, spec.dataset_id):
        manifest = latest_manifest(workspace, spec)
        version = version_without_voxels(workspace.store, spec, manifest)
        version = version or _version_by_voxels(workspace, spec, manifest)
        _discard_refused(workspace, spec, version)
        done = _complete(workspace, spec, version)
        if done is not None:
            return done
        workspace.catalog.set_status(
            spec.dataset_id, Status.SAVING_DATA, progress=0.5, message=f"rechunking to {version}"
        )
        built = _rechunk(workspace, spec, manifest, version)
        workspace.catalog.set_status(
            spec.dataset_id, Status.SAVING_DATA, progress=0.8, message=f"volume {version} staged"
        )
    return built


def current_build(workspace: Workspace, spec: DatasetSpec) -> Built:
    """The complete volume of the newest raw files. Raises `NotFound` where it was not built yet."""
    manifest = latest_manifest(workspace, spec)
    version = version_without_voxels(workspace.store, spec, manifest) or version_of(spec, manifest)
    done = _complete(workspace, spec, version)
    if done is None:
        raise NotFound(
            f"Find the volume {version} of {spec.dataset_id}",
            "it was not built",
            f"Materialize {spec.source}/ome_zarr first, or run `em ingest {spec.dataset_id}`",
        )
    return done


def open_source_volume(workspace: Workspace, spec: DatasetSpec, manifest: Manifest) -> LazyVolume:
    """The raw files of a manifest as a volume."""
    return workspace.source(spec.source).open_volume(spec, held_files(workspace, manifest))


def _version_by_voxels(workspace: Workspace, spec: DatasetSpec, manifest: Manifest) -> str:
    """The version of the spec, or of one without its codec, where that suits the voxels anyway."""
    with open_source_volume(workspace, spec, manifest) as volume:
        kind = kind_of(spec, volume.dtype, volume.metadata).kind
        usual = ChunkCodec.for_dtype(volume.dtype, kind).name
    return version_of(spec.without_codec if spec.codec == usual else spec, manifest)


def _complete(workspace: Workspace, spec: DatasetSpec, version: str) -> Built | None:
    """The version as it lies in the store; None where it is not there, or staged and damaged.

    Raises `RecordInvalid` where a published one is damaged: that is for a person to decide.
    """
    files = VersionFiles.found(workspace.store, spec.dataset_id, version)
    if files is None:
        return None
    record = read_kept(DatasetRecord, workspace.store, files.record)
    labels = keys.label_folders(spec.label_names).values()
    images = [files.image(label) for label in (None, *labels)]
    if record is not None and workspace.store.exists(files.preview) and all(map(_has_ledger, images)):
        return Built(version, files, record, None)
    if files == VersionFiles.published(workspace.store, spec.dataset_id, version):
        raise RecordInvalid(
            f"Read the published version {version} of {spec.dataset_id}",
            "its record, preview or one of its ledgers is missing or damaged",
            f"Run `em verify {spec.dataset_id} --discard`, then `em ingest {spec.dataset_id}`: it writes the "
            "same bytes again",
        )
    return None


def _has_ledger(image: ImageFiles) -> bool:
    try:
        Ledger.read(image.ledgers, image.name)
    except (ChunkCorrupt, NotFound):
        return False
    return True


def _discard_refused(workspace: Workspace, spec: DatasetSpec, version: str) -> None:
    """Drop a stage whose report did not pass: what is wrong with it may be the stage itself."""
    staged = VersionFiles.staged(workspace.store, spec.dataset_id, version)
    report = read_kept(ValidationReport, workspace.store, staged.report)
    if report is not None and not report.passed:
        workspace.progress.note(f"the stage of {version} did not pass validation ({report}); making it anew")
        workspace.store.delete_tree(keys.staging(spec.dataset_id, version))


def _rechunk(workspace: Workspace, spec: DatasetSpec, manifest: Manifest, version: str) -> Built:
    files = VersionFiles.staged(workspace.store, spec.dataset_id, version)
    portal = latest_portal_record(workspace, spec)
    held = held_files(workspace, manifest)
    with open_source_volume(workspace, spec, manifest) as volume:
        record = volume_record(spec, manifest, portal.claims, volume, box_of(spec, volume))
        voxel_size = voxel_size_of(record, [file.path for file in manifest.files])
        image = image_cut(spec, volume, voxel_size, record.fields.core.title or spec.dataset_id)
        with opened_labels(workspace, spec, held, image) as labels:
            written, planned = _write(workspace, spec, manifest, version, image, labels)
    if changed := changed_while_read(workspace, manifest):
        workspace.store.delete_tree(keys.staging(spec.dataset_id, version))
        raise ChecksumMismatch(
            f"Rechunk {spec.dataset_id}",
            f"its raw files changed while they were read: "
            f"{changed[0]} ({counted(len(changed), 'such file')})",
            f"Run `em ingest {spec.dataset_id}` again when they are at rest",
        )
    record = with_statistics(record, written.statistics, f"{version}.ledger.parquet")
    with VolumeReader.open(*files.image()) as reader:
        preview = preview_png(reader, written.statistics)
    workspace.store.write(files.preview, preview)
    workspace.store.write(files.record, record.model_dump_json(indent=2).encode())
    return Built(version, files, record, written, planned)


def _write(
    workspace: Workspace,
    spec: DatasetSpec,
    manifest: Manifest,
    version: str,
    image: Cut,
    labels: Sequence[Cut],
) -> tuple[WrittenVolume, PlanReport]:
    """Write the image and its label images, all of them planned before the first voxel is read."""
    plan, *plans = plan_cuts(workspace, spec, image, labels)
    planned = report(plan, threads_asked=workspace.threads)
    workspace.progress.note(str(planned))
    if image.chosen.because:
        workspace.progress.note(f"the image is {image.chosen}")
    for note in image.notes:
        workspace.progress.note(f"the image: {note}")
    place = workspace.store.blobs(keys.staging(spec.dataset_id, version))
    progress, compute = workspace.progress, workspace.compute
    source = for_any_machine(workspace, manifest, image.volume)
    written = rechunk(source, image.box, plan, place, name=image.name, progress=progress, compute=compute)
    for label, label_plan in zip(labels, plans, strict=True):
        ends = "" if label.whole else ", which does not cover the whole image"
        progress.note(f"{label}: {label.box.shape} voxels of {label.name!r}{ends}")
        rechunk(
            for_any_machine(workspace, manifest, label.volume),
            label.box,
            label_plan,
            place,
            name=label.name,
            progress=progress,
            label=label.label,
            compute=compute,
        )
    return written, planned
