"""Step 1: ask the portal, and keep what it said."""

import json
from dataclasses import dataclass

from em_pipeline.domain.errors import NotFound
from em_pipeline.domain.record import DatasetRecord, Status
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.claims import spec_claims
from em_pipeline.ingest.kept import read_kept
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.base import PortalRecord
from em_pipeline.storage import keys
from em_pipeline.storage.lock import dataset_lock
from em_pipeline.storage.store import Store


@dataclass(frozen=True)
class Scraped:
    """The portal's answer that is kept, and the record as far as it is known before any file is read."""

    portal: PortalRecord
    record: DatasetRecord


def scrape(workspace: Workspace, spec: DatasetSpec) -> Scraped:
    """Fetch the record of a dataset and point its raw folder at the revision found.

    Of one revision, a record that lacks a document because its server was down never replaces one with it.
    Raises `SourceUnavailable`, `NotFound` or `RecordInvalid` from the source, `Busy` where another
    process works on the dataset.
    """
    source = workspace.source(spec.source)
    with dataset_lock(workspace.store, spec.dataset_id):
        workspace.catalog.begin(spec.dataset_id, spec.source, message=f"asking {spec.source}")
        portal = _fullest(workspace, spec, source.fetch_record(spec))
        record = DatasetRecord.resolve(spec.dataset_id, portal.revision, [*spec_claims(spec), *portal.claims])
        _keep(workspace, spec, portal)
        workspace.catalog.set_status(
            spec.dataset_id,
            Status.PROCESSING,
            progress=0.1,
            message="record fetched",
            revision=portal.revision,
        )
    return Scraped(portal, record)


def latest_portal_record(workspace: Workspace, spec: DatasetSpec) -> PortalRecord:
    """What the newest scrape kept. Raises `NotFound` where there was none."""
    try:
        pointer = json.loads(workspace.store.read(keys.raw_pointer(spec.dataset_id)))
        text = workspace.store.read(keys.portal_record(spec.dataset_id, pointer["revision"]))
    except NotFound as error:
        raise NotFound(
            f"Read the portal's record of {spec.dataset_id}",
            "it was never fetched",
            f"Materialize {spec.source}/record first, or run `em ingest {spec.dataset_id}`",
        ) from error
    return PortalRecord.model_validate_json(text)


def portal_record_at(store: Store, dataset_id: str, revision: str) -> PortalRecord | None:
    """What was kept of a portal's answers at `revision`; None where that is gone or cannot be understood."""
    return read_kept(PortalRecord, store, keys.portal_record(dataset_id, revision))


def _fullest(workspace: Workspace, spec: DatasetSpec, portal: PortalRecord) -> PortalRecord:
    """The record just fetched, or the one kept of its revision where that has what is unavailable now."""
    for name, why in portal.unavailable.items():
        workspace.progress.note(f"done without {name}: {why}")
    kept = portal_record_at(workspace.store, spec.dataset_id, portal.revision)
    if kept is None or portal.unavailable.keys() <= kept.unavailable.keys():
        return portal
    workspace.progress.note(f"the record of revision {portal.revision} stays as it was when all answered")
    return kept


def _keep(workspace: Workspace, spec: DatasetSpec, portal: PortalRecord) -> None:
    folder = keys.raw_folder(spec.dataset_id, portal.revision)
    for name, text in portal.documents.items():
        workspace.store.write(f"{folder}/portal/{name}", text.encode())
    workspace.store.write(
        keys.portal_record(spec.dataset_id, portal.revision), portal.model_dump_json(indent=2).encode()
    )
    pointer = json.dumps({"revision": portal.revision}).encode()
    workspace.store.write(keys.raw_pointer(spec.dataset_id), pointer)
