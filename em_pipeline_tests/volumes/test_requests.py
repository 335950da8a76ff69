"""The requests that the cost model counts, against those that a rechunk makes of a server that speaks S3."""

from dataclasses import replace
from itertools import pairwise

import pytest

from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.object_client import ObjectAccess
from em_pipeline.volumes.cost import Machine, Ratios, requests_of, unit_costs
from em_pipeline.volumes.rechunk import rechunk
from em_pipeline.volumes.scratch_requests import units_by_requests
from em_pipeline.volumes.store_requests import Requests, frame_requests
from em_pipeline_tests.buckets import BUCKET, POLICY
from em_pipeline_tests.object_stores import StoreInBucket
from em_pipeline_tests.volumes.arrays import ArrayVolume
from em_pipeline_tests.volumes.written import random_voxels, small_plan

pytestmark = pytest.mark.integration
SCRATCH = "work/scratch-"

ARRAY = random_voxels((13, 20, 33), "uint16")


@pytest.mark.parametrize(("depth", "shard"), [(8, 8), (40, 8), (8, 12)])
def test_a_rechunk_makes_the_requests_that_are_counted(
    s3_bucket: StoreInBucket, depth: int, shard: int
) -> None:
    shards = Shape(shard, shard, shard)  # of three chunks, or of two: then all eight parts lie together
    plan = small_plan(ARRAY, voxel_size=VoxelSize(z=depth, y=8, x=8), shard_shape=shards)
    place = ObjectBlobs(ObjectAccess("s3", BUCKET, s3_bucket.endpoints, POLICY), f"of {depth} nm in {shard}")
    rechunk(ArrayVolume(ARRAY), BoundingBox.of_shape(ARRAY.shape), plan, place, name="v", progress=Silent())
    levels = unit_costs(plan, Machine(), Ratios())
    counted = requests_of(unit for level in levels for unit in level) + frame_requests(plan)
    source, pointer = plan.levels[0].unit_count, 1  # the source is no store here, and nothing is published
    made = requests_made(s3_bucket.proxy.requests)
    assert made == replace(counted, get=counted.get - source, put=counted.put - pointer)
    assert s3_bucket.proxy.count("GET", SCRATCH) == sum(
        gets * count
        for finer, level in pairwise(plan.levels)
        for _, gets, count in units_by_requests(level, finer)
    )


def test_parts_side_by_side_are_one_request_and_two_chunks_of_requests_are_under_way(
    s3_bucket: StoreInBucket,
) -> None:
    """Level 1 is two chunks, each of eight parts by twos: the one thread asks for all eight pairs at once."""
    array = random_voxels((8, 8, 16), "uint16")
    plan = small_plan(array, threads=1, level_count=2, shard_shape=Shape(8, 8, 16))
    assert [tuple(level.chunk_grid) for level in plan.levels] == [(2, 2, 4), (1, 1, 2)]
    patient = replace(POLICY, timeout_s=30)
    place = ObjectBlobs(ObjectAccess("s3", BUCKET, s3_bucket.endpoints, patient), "two levels")
    s3_bucket.proxy.gather("GET", SCRATCH, 8)
    rechunk(ArrayVolume(array), BoundingBox.of_shape(array.shape), plan, place, name="v", progress=Silent())
    assert s3_bucket.proxy.count("GET", SCRATCH) == 8


def requests_made(asked: list[str]) -> Requests:
    """Without those of the lock, and those that ask whether one object is there."""
    made = Requests()
    for each in asked:
        method, _, address = each.partition(" ")
        if ".em-tmp-lock" in address or method == "HEAD" or "max-keys=1&" in address:
            continue
        listed = "list-type=" in address or "uploads&" in address
        made += {
            "GET": Requests(list=1) if listed else Requests(get=1),
            "PUT": Requests(put=1),
            "POST": Requests(delete=1),
            "DELETE": Requests(delete=1),
        }[method]
    return made
