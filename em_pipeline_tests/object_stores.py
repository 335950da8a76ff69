"""A workspace whose store is a fresh folder of a bucket, behind a proxy that counts what is asked of it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import pytest

from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline.storage.store import open_store
from em_pipeline_tests.buckets import BUCKET
from em_pipeline_tests.portals.gcs import GcsServer
from em_pipeline_tests.portals.proxy import BreakingProxy

_numbers = count()


@dataclass(frozen=True)
class StoreInBucket:
    """Where the store is, `url`, and what answers for it."""

    url: str
    proxy: BreakingProxy

    @property
    def endpoints(self) -> ObjectEndpoints:
        return ObjectEndpoints(s3=self.proxy.url, gs=self.proxy.url)


@pytest.fixture
def s3_bucket(s3_server: str, s3_credentials: dict[str, str]) -> Iterator[StoreInBucket]:
    with BreakingProxy(s3_server) as proxy:
        yield StoreInBucket(f"s3://{BUCKET}/store-{next(_numbers)}", proxy)


@pytest.fixture
def gcs_bucket(gcs_service: GcsServer) -> Iterator[StoreInBucket]:
    with BreakingProxy(gcs_service.url) as proxy:
        yield StoreInBucket(f"gs://{BUCKET}/store-{next(_numbers)}", proxy)


@pytest.fixture(params=["s3", "gcs"])
def bucket(request: pytest.FixtureRequest) -> StoreInBucket:
    found: StoreInBucket = request.getfixturevalue(f"{request.param}_bucket")
    return found


@pytest.fixture
def remote(workspace: Workspace, bucket: StoreInBucket) -> Workspace:
    return replace(workspace, store=open_store(bucket.url, bucket.endpoints))
