"""A dataset from its portal to the catalogue, with everything in a bucket."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from em_pipeline.api.readers import open_published
from em_pipeline.catalog.repository import Catalog
from em_pipeline.demo.portal import DemoPortal
from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import (
    ChecksumMismatch,
    ChunkCorrupt,
    NotFound,
    SourceUnavailable,
    StorageFailed,
)
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize
from em_pipeline.domain.progress import Progress
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.build import build, current_build, open_source_volume
from em_pipeline.ingest.damage import damaged_documents, discard
from em_pipeline.ingest.fetch import fetch, latest_manifest
from em_pipeline.ingest.forget import Kept, forget
from em_pipeline.ingest.publish import publish
from em_pipeline.ingest.scrape import scrape
from em_pipeline.ingest.validate import validate
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.files import spec_for
from em_pipeline.storage import holdings
from em_pipeline.storage.object_client import ObjectAccess
from em_pipeline.storage.object_store import ObjectStore
from em_pipeline.volumes.compute import Job, ThisProcess
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline_tests.buckets import BUCKET, POLICY
from em_pipeline_tests.ingest.chain import STEPS, run_chain
from em_pipeline_tests.object_stores import StoreInBucket
from em_pipeline_tests.portals.proxy import Break

pytestmark = pytest.mark.integration
on_s3 = pytest.mark.parametrize("bucket", ["s3"], indirect=True)

CORNER = DatasetSpec(
    source="empiar",
    accession="11759",
    dataset_id="empiar-11759-corner",
    bounding_box={"start": (0, 0, 0), "stop": (16, 64, 64)},
)
ID = CORNER.dataset_id
BOX = BoundingBox.at((0, 0, 0), (16, 64, 64))


def stored(workspace: Workspace) -> np.ndarray:
    published = workspace.catalog.published_version(ID)
    assert published is not None
    with open_published(workspace.store, published) as reader:
        return reader.read_block(0, BOX).data


def asked_for(portal: DemoPortal) -> int:
    return sum(path.endswith(".dm3") for path in portal.requests)


def moved(bucket: StoreInBucket) -> list[str]:
    """Requests that send or fetch a raw file's bytes."""
    return [one for one in bucket.proxy.requests if one[:4] in ("GET ", "PUT ", "POST") and ".dm3" in one]


def test_everything_lies_in_the_bucket_and_a_second_run_moves_nothing(
    remote: Workspace, portal: DemoPortal, bucket: StoreInBucket
) -> None:
    assert run_chain(remote, CORNER).changed
    assert not list(remote.spool.rglob("*.dm3"))
    with open_source_volume(remote, CORNER, latest_manifest(remote, CORNER)) as volume:
        np.testing.assert_array_equal(stored(remote), volume.read(BOX))
    assert {key.split("/")[0] for key in remote.store.list("")} == {"raw", "volumes"}
    pointer = json.loads(remote.store.read(f"volumes/{ID}/latest.json"))
    assert pointer["version"] == current_build(remote, CORNER).version
    bucket.proxy.requests.clear()
    portal.requests.clear()
    assert not run_chain(remote, CORNER).changed
    assert (asked_for(portal), moved(bucket)) == (0, [])
    written = [one for one in bucket.proxy.requests if one.startswith("PUT ") and "/volumes/" in one]
    assert all(one.endswith("latest.json") for one in written)


@on_s3
def test_raw_files_come_back_from_the_bucket_and_not_from_the_portal(
    remote: Workspace, portal: DemoPortal, bucket: StoreInBucket
) -> None:
    for step in STEPS[:2]:
        step(remote, CORNER)
    shutil.rmtree(remote.spool)
    portal.requests.clear()
    for step in STEPS[2:]:
        step(remote, CORNER)
    assert asked_for(portal) == 0
    assert stored(remote).any()
    assert not list(remote.spool.rglob("*.dm3"))


@on_s3
def test_one_raw_file_that_changed_in_the_bucket_is_fetched_again(
    remote: Workspace, portal: DemoPortal, bucket: StoreInBucket
) -> None:
    for step in STEPS[:2]:
        step(remote, CORNER)
    manifest = latest_manifest(remote, CORNER)
    key = f"raw/{ID}/{manifest.revision}/files/{manifest.files[3].path}"
    whole = remote.store.read(key)
    remote.store.write(key, bytes(len(whole)))
    shutil.rmtree(remote.spool)
    portal.requests.clear()
    bucket.proxy.requests.clear()
    with pytest.raises(NotFound, match="not all held"):
        latest_manifest(remote, CORNER)
    assert moved(bucket) == []
    before = portal.bytes_served
    assert not fetch(remote, CORNER).already_held
    assert portal.bytes_served - before < 2 * len(whole)
    assert remote.store.read(key) == whole
    assert latest_manifest(remote, CORNER) == manifest
    assert sum(one.startswith("PUT ") for one in moved(bucket)) == 1


@on_s3
def test_an_upload_that_breaks_off_goes_on_where_it_was(
    remote: Workspace, portal: DemoPortal, bucket: StoreInBucket
) -> None:
    scrape(remote, CORNER)
    bucket.proxy.fail("PUT", "0012.dm3", Break(status=403), times=99)
    with pytest.raises(StorageFailed):
        fetch(remote, CORNER)
    with pytest.raises(NotFound):
        latest_manifest(remote, CORNER)
    bucket.proxy.heal()
    bucket.proxy.requests.clear()
    before = portal.bytes_served
    manifest = fetch(remote, CORNER).manifest
    assert portal.bytes_served - before < manifest.files[0].size
    assert 1 <= len(moved(bucket)) < len(manifest.files)
    assert latest_manifest(remote, CORNER) == manifest


@on_s3
def test_files_are_uploaded_while_others_are_still_downloaded(
    remote: Workspace, portal: DemoPortal, bucket: StoreInBucket
) -> None:
    scrape(remote, CORNER)
    portal.trouble(Trouble.SERVER_ERROR, "0012.dm3", after=1)  # the listing's HEAD goes well
    with pytest.raises(SourceUnavailable):
        fetch(remote, CORNER)
    (receipt,) = (key for key in remote.store.list("raw") if key.endswith("uploads.json"))
    early = set(json.loads(remote.store.read(receipt)))
    assert {f"{receipt.removesuffix('uploads.json')}files/{path}" for path in early} <= set(
        remote.store.list("raw")
    )
    assert early
    portal.heal()
    manifest = fetch(remote, CORNER).manifest
    uploads = [one for one in moved(bucket) if one.startswith("PUT ")]
    assert len(uploads) == len(manifest.files)
    assert latest_manifest(remote, CORNER) == manifest


@on_s3
def test_a_raw_file_that_changes_in_the_spool_while_it_is_read_is_noticed(remote: Workspace) -> None:
    class Meddling(ThisProcess):
        def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
            spooled = min(remote.spool.rglob("*.dm3"))
            data = bytearray(spooled.read_bytes())
            data[len(data) // 2] ^= 1
            spooled.write_bytes(data)
            super().run(job, level, units, progress)

    for step in STEPS[:2]:
        step(remote, CORNER)
    with pytest.raises(ChecksumMismatch, match=r"changed while they were read: .*0000\.dm3 \(1 such"):
        build(replace(remote, compute=Meddling()), CORNER)
    assert not list(remote.store.list(f"staging/{ID}"))
    for step in STEPS[2:]:
        step(remote, CORNER)
    assert stored(remote).any()


@on_s3
@pytest.mark.parametrize(("blob", "answer"), [("0/c/0/0/0", 503), ("0012.dm3", 503), ("0/c/0/0/0", 403)])
def test_a_store_that_fails_during_validation_is_no_verdict(
    remote: Workspace, bucket: StoreInBucket, blob: str, answer: int
) -> None:
    folder = bucket.url.removeprefix(f"s3://{BUCKET}/")
    store = ObjectStore(ObjectAccess("s3", BUCKET, bucket.endpoints, POLICY), folder)
    hasty = replace(remote, store=store)
    for step in STEPS[:3]:
        step(hasty, CORNER)
    before = store.blobs(f"staging/{ID}").entries()
    shutil.rmtree(remote.spool)
    bucket.proxy.fail("GET", blob, Break(status=answer), times=10**6)
    with pytest.raises(StorageFailed) as outage:
        validate(hasty, CORNER)
    assert outage.value.transient is (answer == 503)
    bucket.proxy.heal()
    assert build(hasty, CORNER).written is None
    assert store.blobs(f"staging/{ID}").entries() == before
    assert validate(hasty, CORNER).passed


@on_s3
def test_a_publication_cut_off_among_its_copies_is_finished_by_the_next(
    remote: Workspace, bucket: StoreInBucket
) -> None:
    for step in STEPS[:4]:
        step(remote, CORNER)
    bucket.proxy.fail("PUT", ".ome.zarr/0/zarr.json", Break(status=403), times=99)
    with pytest.raises(StorageFailed):
        publish(remote, CORNER)
    version = current_build(remote, CORNER).version
    assert remote.store.exists(f"volumes/{ID}/{version}.ome.zarr/0/c/0/0/0")
    assert not remote.store.exists(f"volumes/{ID}/{version}.ome.zarr/zarr.json")
    assert remote.catalog.published() == []
    bucket.proxy.heal()
    assert publish(remote, CORNER).changed
    assert stored(remote).any()
    assert not list(remote.store.list(f"staging/{ID}"))


@on_s3
def test_a_publication_killed_before_the_catalogue_is_finished_by_the_next(
    remote: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in STEPS[:4]:
        step(remote, CORNER)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(remote, CORNER)
    assert remote.catalog.published() == []
    assert not remote.store.exists(f"volumes/{ID}/latest.json")
    assert publish(remote, CORNER).changed
    assert stored(remote).any()


@on_s3
def test_a_damaged_volume_is_discarded_and_written_again(remote: Workspace) -> None:
    run_chain(remote, CORNER)
    published = remote.catalog.published_version(ID)
    assert published is not None
    assert damaged_documents(remote.store, published) == []
    before = {key: remote.store.read(key) for key in remote.store.list(published.volume_key)}
    remote.store.delete(f"{published.volume_key}/0/c/0/0/0")
    with pytest.raises(ChunkCorrupt, match=r"s3://.*\.ome\.zarr"):
        stored(remote)
    discard(remote.catalog, remote.store, published)
    with pytest.raises(ChunkCorrupt):
        stored(remote)
    assert not run_chain(remote, CORNER).changed
    assert {key: remote.store.read(key) for key in remote.store.list(published.volume_key)} == before
    spooled = remote.spool / ID / "revision" / "a.dm3"
    spooled.parent.mkdir(parents=True)
    spooled.write_bytes(b"half")
    forget(remote, ID, set(Kept))
    assert list(remote.store.list("")) == []
    assert not spooled.exists()


@on_s3
def test_a_file_given_in_place_stays_there_and_is_hashed_once(
    remote: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.full((3, 40, 40), 7, np.uint8), photometric="minisblack")
    spec = spec_for(stack, name="s", voxel_size=PartialVoxelSize(z=1, y=1, x=1))
    assert run_chain(remote, spec).changed
    assert not [key for key in remote.store.list("raw") if "/files/" in key]

    def read_again(*_: object) -> None:
        raise AssertionError("it was read again")

    with monkeypatch.context() as patch:
        patch.setattr(holdings, "RunningDigest", read_again)
        latest_manifest(remote, spec)
    stack.write_bytes(stack.read_bytes()[:-1] + b"x")
    with pytest.raises(NotFound, match="not all held"):
        latest_manifest(remote, spec)
