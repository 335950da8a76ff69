"""Folders of buckets for tests, on servers of the session: moto for S3, our own for Google's."""

import os
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.object_client import ObjectAccess, ObjectPolicy
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline_tests.portals.gcs import GcsServer, gcs_server

BUCKET = "em-tests"
POLICY = ObjectPolicy(part_bytes=5 << 20, attempts=4, backoff_s=0.01, longest_wait_s=0.05, timeout_s=20.0)
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}

_numbers = count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a server that speaks S3, with the bucket `em-tests`; it takes the credentials `CREDENTIALS`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    s3_administrator(url).create_bucket(Bucket=BUCKET)
    yield url
    server.stop()


@pytest.fixture(scope="session")
def gcs_service() -> Iterator[GcsServer]:
    """A server that speaks Google's JSON API, with the bucket `em-tests`."""
    with gcs_server(BUCKET) as server:
        yield server


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment in which this process and those that it starts may use the S3 server."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture
def s3_blobs(s3_server: str, s3_credentials: dict[str, str]) -> ObjectBlobs:
    """A fresh folder of the bucket."""
    return fresh_folder("s3", ObjectEndpoints(s3=s3_server))


@pytest.fixture
def gcs_blobs(gcs_service: GcsServer) -> ObjectBlobs:
    return fresh_folder("gs", ObjectEndpoints(gs=gcs_service.url))


def fresh_folder(scheme: str, endpoints: ObjectEndpoints, policy: ObjectPolicy = POLICY) -> ObjectBlobs:
    return ObjectBlobs(ObjectAccess(scheme, BUCKET, endpoints, policy), f"test {next(_numbers)}")


def s3_administrator(url: str) -> Any:
    """A client of botocore's own, to look at what is there."""
    import botocore.session  # type: ignore[import-untyped]

    session = botocore.session.Session()
    session.set_credentials("testing", "testing")
    return session.create_client("s3", endpoint_url=url, region_name="us-east-1")
