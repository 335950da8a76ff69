"""A workspace whose store is in a bucket, behind a proxy that counts what is asked of it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import pytest

from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline.storage.store import open_store
from em_pipeline_tests.portals.gcs import gcs_server
from em_pipeline_tests.portals.proxy import BreakingProxy

_numbers = count()


@dataclass(frozen=True)
class Bucket:
    """Where a store may lie, `url`, and who answers for it, `proxy`, in front of the server."""

    url: str
    endpoint: str
    proxy: BreakingProxy

    @property
    def endpoints(self) -> ObjectEndpoints:
        return ObjectEndpoints(s3=self.endpoint, gs=self.endpoint)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of moto's server, which takes any credentials."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import boto3  # type: ignore[import-untyped]

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    name = f"store-{next(_numbers)}"
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=name)
    with BreakingProxy(s3_server) as proxy:
        yield Bucket(f"s3://{name}/em", proxy.url, proxy)


@pytest.fixture
def gcs_bucket() -> Iterator[Bucket]:
    with gcs_server("store") as server, BreakingProxy(server.url) as proxy:
        yield Bucket("gs://store/em", proxy.url, proxy)


@pytest.fixture(params=["s3", "gcs"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return found


@pytest.fixture
def remote(workspace: Workspace, bucket: Bucket) -> Workspace:
    return replace(workspace, store=open_store(bucket.url, bucket.endpoints))
