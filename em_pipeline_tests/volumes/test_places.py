"""Volumes in object stores: read, verified and judged as on a disk, with few requests."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from em_pipeline.domain.errors import ChunkCorrupt, StorageFailed, StoreUnavailable
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.object_client import ObjectAccess
from em_pipeline.volumes import conformance
from em_pipeline.volumes.conformance import ngff_faults, read_elsewhere
from em_pipeline.volumes.preview import preview_png
from em_pipeline.volumes.pyramid_check import coarser_faults
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.verify import FaultKind, verify_decoded, verify_stored
from em_pipeline_tests.buckets import BUCKET, POLICY
from em_pipeline_tests.object_stores import StoreInBucket
from em_pipeline_tests.portals.proxy import Break
from em_pipeline_tests.volumes.written import open_in, random_voxels, write

pytestmark = pytest.mark.integration

ARRAY = random_voxels((13, 20, 33), "uint16")
BOX = BoundingBox.at((3, 5, 7), (9, 11, 20))
NAME = "ledger.parquet"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    write(ARRAY, folder)
    return folder


@pytest.fixture
def place(here: Path, bucket: StoreInBucket) -> ObjectBlobs:
    """The volume in a bucket, that the test may damage."""
    scheme, _, rest = bucket.url.partition("://")
    access = ObjectAccess(scheme, BUCKET, bucket.endpoints, POLICY)
    place = ObjectBlobs(access, rest.partition("/")[2])
    local = LocalBlobs(here)
    for name in local.names():
        place.write(name, local.read(name))
    bucket.proxy.requests.clear()
    return place


def test_it_is_read_verified_and_judged_as_on_a_disk(here: Path, place: ObjectBlobs) -> None:
    volume = place.below("volume.ome.zarr")
    with VolumeReader.open(volume, place, NAME) as reader, open_in(here) as on_disk:
        np.testing.assert_array_equal(reader.read_block(0, BOX).data, ARRAY[BOX.slices])
        assert preview_png(reader, reader.ledger.statistics) == preview_png(
            on_disk, on_disk.ledger.statistics
        )
        files = [path for path in (here / "volume.ome.zarr").rglob("*") if path.is_file()]
        assert reader.stored_bytes == sum(path.stat().st_size for path in files)
    assert verify_decoded(volume, place, NAME, threads=2, progress=Silent()).passed
    assert coarser_faults(volume, place, NAME, sample=3, seed="s") == []
    assert ngff_faults(volume) == []
    np.testing.assert_array_equal(read_elsewhere(volume, "0", BOX), ARRAY[BOX.slices])


def test_shards_of_any_size_pass_through_little_memory(
    place: ObjectBlobs, bucket: StoreInBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "_PIECE", 100)
    shard = place.size("volume.ome.zarr/0/c/0/0/0")
    assert shard is not None
    assert shard > 1000
    bucket.proxy.requests.clear()
    box = BoundingBox.at((1, 2, 3), (5, 6, 7))
    read = read_elsewhere(place.below("volume.ome.zarr"), "0", box)
    np.testing.assert_array_equal(read, ARRAY[box.slices])
    assert len(bucket.proxy.requests) > shard // 100


def test_no_room_for_copies_is_no_verdict_on_the_volume(
    place: ObjectBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with pytest.raises(StorageFailed, match=r"/no/such/folder.*TMPDIR"):
        read_elsewhere(place.below("volume.ome.zarr"), "0", BOX)


def test_a_chunk_costs_one_request_and_a_shard_one_more(place: ObjectBlobs, bucket: StoreInBucket) -> None:
    with VolumeReader.open(place.below("volume.ome.zarr"), place, NAME) as reader:
        for chunk, requests in (((1, 1, 1), 2), ((1, 1, 0), 1), ((1, 1, 1), 1), ((2, 1, 1), 2)):
            bucket.proxy.requests.clear()
            reader.read_chunk(0, chunk)
            assert len(bucket.proxy.requests) == requests, bucket.proxy.requests


def test_verifying_costs_a_request_for_each_shard(place: ObjectBlobs, bucket: StoreInBucket) -> None:
    verify_stored(place.below("volume.ome.zarr"), place, NAME, threads=2, progress=Silent())
    shards = [name for name in place.names() if "/c/" in name]
    assert sum("/c/" in one or "%2Fc%2F" in one for one in bucket.proxy.requests) == len(shards)
    assert len(bucket.proxy.requests) < len(shards) + 12


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_damage_is_found_and_an_outage_is_none(place: ObjectBlobs, bucket: StoreInBucket) -> None:
    volume = place.below("volume.ome.zarr")
    volume.delete("0/c/0/1/2")
    shard = volume.read("0/c/0/1/1")
    volume.write("0/c/0/1/1", shard[:9] + bytes([shard[9] ^ 1]) + shard[10:])
    volume.write("0/c/0/0/1", volume.read("0/c/0/0/1")[:-1])
    volume.write("notes.txt", b"?")
    result = verify_stored(volume, place, NAME, threads=2, progress=Silent())
    assert {(fault.kind, fault.shard) for fault in result.faults} == {
        (FaultKind.MISSING_SHARD, "0/c/0/1/2"),
        (FaultKind.CHUNK, "0/c/0/1/1"),
        (FaultKind.TRUNCATED_SHARD, "0/c/0/0/1"),
        (FaultKind.UNEXPECTED_FILE, "notes.txt"),
    }
    with VolumeReader.open(volume, place, NAME) as reader:
        for chunk in ((0, 2, 4), (0, 2, 2), (0, 0, 2)):
            with pytest.raises(ChunkCorrupt):
                reader.read_chunk(0, chunk)
        bucket.proxy.fail("GET", "/0/c/1/", Break(status=503), times=10**6)
        with pytest.raises(StoreUnavailable) as outage:
            reader.read_chunk(0, (2, 0, 0))
        assert (outage.value.status, outage.value.transient) == (503, True)
    with pytest.raises(StoreUnavailable):
        verify_stored(volume, place, NAME, threads=2, progress=Silent())
