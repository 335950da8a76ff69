"""Step 2: hold every raw file, whole and hashed."""

from collections.abc import Sequence
from dataclasses import dataclass

from em_pipeline.domain.errors import NotFound
from em_pipeline.domain.files import Manifest, RawFile, RemoteFile
from em_pipeline.domain.record import DatasetRecord, Status
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.domain.wording import counted
from em_pipeline.ingest.claims import spec_claims, voxel_size_of
from em_pipeline.ingest.cuts import box_of
from em_pipeline.ingest.kept import read_kept
from em_pipeline.ingest.raw_files import RawFiles, held_by, raw_files
from em_pipeline.ingest.scrape import latest_portal_record
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.base import HeldFile
from em_pipeline.storage import keys
from em_pipeline.storage.download import download
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
            raw = raw_files(workspace, spec.dataset_id, portal.revision)
            earlier = read_kept(Manifest, workspace.store, keys.manifest(spec.dataset_id, portal.revision))
            if earlier is not None:
                raw.recall(earlier)
            with raw.taking() as take:
                manifest = download(
                    files,
                    raw.folder,
                    dataset_id=spec.dataset_id,
                    revision=portal.revision,
                    policy=workspace.policy_for(source),
                    progress=workspace.progress,
                    arrived=take,
                )
            raw.keep(manifest)
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
    """The manifest's files with their paths on this machine, brought back from the store where need be."""
    return held_by(_raw(workspace, manifest), manifest)


def changed_while_read(workspace: Workspace, manifest: Manifest) -> list[str]:
    """Paths of the files of `held_files` that are gone from this machine or no longer what it says."""
    return _raw(workspace, manifest).changed_here(manifest)


def let_go(workspace: Workspace, manifest: Manifest) -> None:
    """Delete what this machine holds of the manifest's files beside the store."""
    _raw(workspace, manifest).let_go(manifest)


def _raw(workspace: Workspace, manifest: Manifest) -> RawFiles:
    return raw_files(workspace, manifest.dataset_id, manifest.revision)


def _whole_manifest(workspace: Workspace, spec: DatasetSpec, revision: str) -> Manifest | None:
    manifest = read_kept(Manifest, workspace.store, keys.manifest(spec.dataset_id, revision))
    if manifest is None:
        return None
    changed = _raw(workspace, manifest).changed(manifest)
    if changed:
        workspace.progress.note(
            f"{changed[0]} is not what the manifest says ({counted(len(changed), 'such file')})"
        )
        return None
    return manifest
