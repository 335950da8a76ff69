"""Forgetting a dataset: what goes, what stays, and that it can be had again."""

import pytest

from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.errors import Busy, InputRefused, NotFound
from em_pipeline.domain.record import Status
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.damage import discard
from em_pipeline.ingest.forget import Kept, forget, take_back
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage.lock import dataset_lock
from em_pipeline_tests.ingest.chain import run_chain

CORNER = DatasetSpec(
    source="empiar",
    accession="11759",
    dataset_id="empiar-11759-corner",
    bounding_box={"start": (0, 0, 0), "stop": (4, 32, 32)},
)


def folders(workspace: Workspace) -> set[str]:
    places = ("raw", "staging", "volumes")
    return {p for p in places if workspace.store.local_path(f"{p}/{CORNER.dataset_id}").exists()}


def test_one_that_was_never_ingested(workspace: Workspace) -> None:
    workspace.catalog.save_spec(CORNER)
    workspace.catalog.begin(CORNER.dataset_id, "empiar")
    assert forget(workspace, CORNER.dataset_id).folders == ()
    assert workspace.catalog.spec(CORNER.dataset_id) is None
    assert workspace.catalog.all_datasets() == []
    with pytest.raises(NotFound, match="empiar-11759"):
        forget(workspace, CORNER.dataset_id)


@pytest.mark.integration
def test_a_published_one_only_with_its_volume(workspace: Workspace) -> None:
    workspace.catalog.save_spec(CORNER)
    run_chain(workspace, CORNER)
    with pytest.raises(InputRefused, match="--volume"):
        forget(workspace, CORNER.dataset_id, {Kept.RAW})
    assert workspace.catalog.published_version(CORNER.dataset_id) is not None
    assert {"raw", "volumes"} <= folders(workspace)
    assert f"volumes/{CORNER.dataset_id}" in forget(workspace, CORNER.dataset_id, {Kept.VOLUMES}).folders
    assert workspace.catalog.published_version(CORNER.dataset_id) is None
    assert folders(workspace) == {"raw"}
    # What is left of one that the catalogue has forgotten can still be deleted, as after a kill.
    assert forget(workspace, CORNER.dataset_id, {Kept.RAW}).folders == (f"raw/{CORNER.dataset_id}",)
    assert folders(workspace) == set()
    workspace.catalog.save_spec(CORNER)
    run_chain(workspace, CORNER)
    assert workspace.catalog.published_version(CORNER.dataset_id) is not None


def test_a_curated_one_stays_known(workspace: Workspace) -> None:
    assert forget(workspace, "empiar-11759").curated
    assert not _knows(workspace.catalog, "empiar-11759")


def _knows(catalog: Catalog, dataset_id: str) -> bool:
    return catalog.spec(dataset_id) is not None


def test_not_while_somebody_works_on_it(workspace: Workspace) -> None:
    workspace.catalog.save_spec(CORNER)
    with dataset_lock(workspace.store, CORNER.dataset_id), pytest.raises(Busy):
        forget(workspace, CORNER.dataset_id)
    assert workspace.catalog.spec(CORNER.dataset_id) == CORNER


def test_a_refused_wish_leaves_a_new_dataset_unknown(workspace: Workspace) -> None:
    workspace.catalog.save_spec(CORNER)
    workspace.catalog.begin(CORNER.dataset_id, "empiar")
    assert take_back(workspace, CORNER.dataset_id, None)
    assert workspace.catalog.spec(CORNER.dataset_id) is None
    assert workspace.catalog.all_datasets() == []


@pytest.mark.integration
def test_a_refused_wish_leaves_a_published_dataset_as_it_was(workspace: Workspace) -> None:
    workspace.catalog.save_spec(CORNER)
    run_chain(workspace, CORNER)
    workspace.catalog.save_spec(CORNER.model_copy(update={"image_set": 7}))
    workspace.catalog.set_status(
        CORNER.dataset_id, Status.FAILED, progress=0.0, message="7 is not one of them"
    )
    assert not take_back(workspace, CORNER.dataset_id, CORNER)
    assert workspace.catalog.spec(CORNER.dataset_id) == CORNER
    summary = workspace.catalog.dataset(CORNER.dataset_id).summary
    assert (summary.status, summary.progress) == (Status.COMPLETE, 1.0)


@pytest.mark.integration
def test_a_refused_wish_does_not_complete_a_discarded_volume(workspace: Workspace) -> None:
    run_chain(workspace, CORNER)
    published = workspace.catalog.published_version(CORNER.dataset_id)
    assert published is not None
    discard(workspace.catalog, workspace.store, published)
    workspace.catalog.set_status(CORNER.dataset_id, Status.FAILED, message="7 is not one of them")
    assert not take_back(workspace, CORNER.dataset_id, CORNER)
    summary = workspace.catalog.dataset(CORNER.dataset_id).summary
    assert (summary.status, summary.version) == (Status.PENDING, published.version)
    assert not run_chain(workspace, CORNER).changed
    assert workspace.catalog.dataset(CORNER.dataset_id).summary.status is Status.COMPLETE
