"""What to do about a published version that is not what was published."""

from em_pipeline.catalog.entries import PublishedVersion
from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.record import DatasetRecord, Status
from em_pipeline.domain.report import ValidationReport
from em_pipeline.ingest.kept import read_kept
from em_pipeline.ingest.versions import VersionFiles
from em_pipeline.storage.lock import dataset_lock
from em_pipeline.storage.store import Store


def damaged_documents(store: Store, published: PublishedVersion) -> list[str]:
    """Keys of the record, report and preview beside the volume that are missing or cannot be understood."""
    files = VersionFiles.published(store, published.dataset_id, published.version)
    sound = {
        files.record: read_kept(DatasetRecord, store, files.record) is not None,
        files.report: read_kept(ValidationReport, store, files.report) is not None,
        files.preview: store.exists(files.preview),
    }
    return [key for key, is_sound in sound.items() if not is_sound]


def discard(catalog: Catalog, store: Store, published: PublishedVersion) -> None:
    """Delete a published volume, so that the next ingest writes it again; the catalogue keeps its entry.

    Until then it is listed as pending, and reading it is an error. Raises `Busy` where another process works
    on the dataset.
    """
    with dataset_lock(store, published.dataset_id):
        # First: what is half deleted must not be listed as complete.
        set_pending(catalog, published)
        store.delete_tree(published.volume_key)


def set_pending(catalog: Catalog, published: PublishedVersion) -> None:
    """Let the catalogue say that the published volume is not there, and what writes it again."""
    to_do = f"`em ingest {published.dataset_id}` writes it again"
    message = f"volume {published.version} was discarded; {to_do}"
    catalog.set_status(published.dataset_id, Status.PENDING, progress=0.0, message=message)
