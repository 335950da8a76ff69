"""Step 2: hold every raw file, whole and hashed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from em_pipeline.domain.errors import NotFound
from em_pipeline.domain.files import Manifest, RawFile, RemoteFile
from em_pipeline.domain.record import DatasetRecord, Status
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.claims import spec_claims, voxel_size_of
from em_pipeline.ingest.cuts import box_of
from em_pipeline.ingest.kept import read_kept
from em_pipeline.ingest.scrape import latest_portal_record
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.base import HeldFile
from em_pipeline.storage import keys
from em_pipeline.storage.download import changed_since, download
from em_pipeline.storage.local_files import path_of_file_url
from em_pipeline.storage.lock import dataset_lock


@dataclass(frozen=True)
class Fetched:
    """The manifest, and whether every file was already held."""

    manifest: Manifest
    already_held: bool


def fetch(workspace: Workspace, spec: DatasetSpec) -> Fetched:
    """Download what the portal lists, continuing where an earlier try stopped.

    The manifest is written last: where it exists and its files have their sizes, nothing is asked of
    the portal. Raises what `download` and the source raise, and `Busy`.
    """
    portal = latest_portal_record(workspace, spec)
    source = workspace.source(spec.source)
    with dataset_lock(workspace.store, spec.dataset_id):
        manifest = _whole_manifest(workspace, spec, portal.revision)
        already_held = manifest is not None
        if manifest is None:
            workspace.catalog.set_status(
                spec.dataset_id, Status.PROCESSING, progress=0.2, message="downloading"
            )
            files = source.list_files(spec, portal)
            _look_first(workspace, spec, files)
            manifest = download(
                files,
                workspace.store.local_path(keys.raw_files(spec.dataset_id, portal.revision)),
                dataset_id=spec.dataset_id,
                revision=portal.revision,
                policy=workspace.policy_for(source),
                progress=workspace.progress,
            )
            workspace.store.write(
                keys.manifest(spec.dataset_id, portal.revision), manifest.model_dump_json(indent=2).encode()
            )
        workspace.catalog.set_status(
            spec.dataset_id, Status.PROCESSING, progress=0.4, message="raw files held"
        )
    return Fetched(manifest, already_held)


def _look_first(workspace: Workspace, spec: DatasetSpec, files: Sequence[RemoteFile]) -> None:
    """Refuse files on this machine that cannot become a volume, before hours go into hashing them.

    Raises `UnsupportedFormat`, or `InputRefused` where neither they nor the spec say the voxel size, and like
    `box_of`.
    """
    if not all(file.url.startswith("file://") for file in files):
        return
    held = [
        HeldFile(
            RawFile(url=file.url, path=file.path, size=file.size or 0, sha256=""), path_of_file_url(file.url)
        )
        for file in files
    ]
    with workspace.source(spec.source).open_volume(spec, held) as volume:
        record = DatasetRecord.resolve(spec.dataset_id, "unhashed", [*spec_claims(spec), *volume.claims])
        voxel_size_of(record, [file.path for file in files])
        box_of(spec, volume)


def latest_manifest(workspace: Workspace, spec: DatasetSpec) -> Manifest:
    """The manifest of the newest revision. Raises `NotFound` where its files are not all held as it says."""
    revision = latest_portal_record(workspace, spec).revision
    manifest = _whole_manifest(workspace, spec, revision)
    if manifest is None:
        raise NotFound(
            f"Find the raw files of {spec.dataset_id} at revision {revision}",
            "they are not all held as they were downloaded or hashed",
            f"Materialize {spec.source}/raw_files first, or run `em ingest {spec.dataset_id}`",
        )
    return manifest


def held_files(workspace: Workspace, manifest: Manifest) -> Sequence[HeldFile]:
    """The manifest's files with their paths on this machine."""
    folder = workspace.store.local_path(keys.raw_files(manifest.dataset_id, manifest.revision))
    return [HeldFile(file, _path(file, folder)) for file in manifest.files]


def changed_files(workspace: Workspace, manifest: Manifest) -> list[str]:
    """Paths of the manifest's files that are gone or no longer what it says."""
    folder = workspace.store.local_path(keys.raw_files(manifest.dataset_id, manifest.revision))
    return changed_since(manifest, folder) if folder.exists() else [file.path for file in manifest.files]


def _whole_manifest(workspace: Workspace, spec: DatasetSpec, revision: str) -> Manifest | None:
    path = workspace.store.local_path(keys.manifest(spec.dataset_id, revision))
    manifest = read_kept(Manifest, path)
    if manifest is None:
        return None
    changed = changed_files(workspace, manifest)
    if changed:
        workspace.progress.note(f"{changed[0]} is not what the manifest says ({len(changed)} such files)")
        return None
    return manifest


def _path(file: RawFile, folder: Path) -> Path:
    return path_of_file_url(file.url) if file.in_place else folder / file.path
