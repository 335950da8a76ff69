"""Undoing `em register` and `em ingest`, and wishes that were refused."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.record import Status
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.damage import set_pending
from em_pipeline.ingest.raw_files import empty_spool
from em_pipeline.ingest.specs import known_specs, unknown
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.curated import curated_specs
from em_pipeline.storage import keys
from em_pipeline.storage.lock import dataset_lock


class Kept(StrEnum):
    """What a dataset leaves behind unless it is named too."""

    VOLUMES = "volumes"
    RAW = "raw"


@dataclass(frozen=True)
class Forgotten:
    """The folders of the store that were deleted, and whether the curated list still names the dataset."""

    folders: tuple[str, ...]
    curated: bool


def forget(workspace: Workspace, dataset_id: str, also: Collection[Kept] = ()) -> Forgotten:
    """Take a dataset out of the catalogue and delete its stage, and what `also` names.

    The catalogue forgets first, so nothing that it shows is ever half deleted; a second try deletes the rest.
    A curated dataset is known again at once, as the list describes it. Raises `NotFound` for what neither the
    catalogue nor the store knows, `InputRefused` for a published one whose volume is not named, `Busy`.
    """
    roots = ("staging", *map(str, Kept))
    places = {root: keys.all_of(root, dataset_id) for root in roots}
    folders = {root: key for root, key in places.items() if workspace.store.exists(key)}
    known = known_specs(workspace.catalog)
    if dataset_id not in known and not folders:
        raise unknown(dataset_id, known, workspace.sources)
    with dataset_lock(workspace.store, dataset_id):
        if Kept.VOLUMES not in also and workspace.catalog.published_version(dataset_id) is not None:
            raise InputRefused(
                f"Forget {dataset_id}",
                "it is published, and others may be reading it",
                "Say --volume to delete its published versions too",
            )
        workspace.catalog.forget(dataset_id)
        doomed = tuple(key for root, key in folders.items() if root == "staging" or root in also)
        for folder in doomed:
            workspace.store.delete_tree(folder)
        if Kept.RAW in also:
            empty_spool(workspace, dataset_id)
    return Forgotten(doomed, any(spec.dataset_id == dataset_id for spec in curated_specs()))


def take_back(workspace: Workspace, dataset_id: str, earlier: DatasetSpec | None) -> bool:
    """After a wish was refused, make the dataset what it was: its earlier spec, or unknown again.

    Files held stay, for the next wish. Gives whether the dataset is unknown now. Raises `Busy`.
    """
    with dataset_lock(workspace.store, dataset_id):
        published = workspace.catalog.published_version(dataset_id)
        if earlier is None and published is None:
            workspace.catalog.forget(dataset_id)
            return True
        if earlier is not None:
            workspace.catalog.save_spec(earlier)
        if published is not None and not workspace.store.exists(published.volume_key):
            set_pending(workspace.catalog, published)
        elif published is not None:
            message = f"published {published.version}; what was asked for since was refused"
            workspace.catalog.set_status(dataset_id, Status.COMPLETE, progress=1.0, message=message)
    return False
