"""Where redirects may lead, and who is asked with whose credentials."""

from collections.abc import Iterator

import httpx
import pytest

from em_pipeline.demo.replay import Replay, Reply, Request, text
from em_pipeline.domain.errors import InputRefused, RecordInvalid
from em_pipeline.storage import signing
from em_pipeline.storage.answers import is_private, redirected
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline.storage.objects import ObjectStoreClient


@pytest.mark.parametrize(
    ("base", "location", "target"),
    [
        ("https://a.org/x", "/y", "https://a.org/y"),
        ("https://a.org/x", "https://b.org/y", "https://b.org/y"),
        ("http://a.org/x", "http://b.org/y", "http://b.org/y"),
        ("http://a.org/x", "https://b.org/y", "https://b.org/y"),
        ("http://127.0.0.1:1/x", "http://127.0.0.1:2/y", "http://127.0.0.1:2/y"),
    ],
)
def test_redirects_that_are_followed(base: str, location: str, target: str) -> None:
    assert str(redirected(base, httpx.URL(base), location)) == target


@pytest.mark.parametrize(
    ("base", "location", "why"),
    [
        ("https://a.org/x", "file:///etc/passwd", "not http"),
        ("https://a.org/x", "ftp://b.org/x", "not http"),
        ("https://a.org/x", "http://a.org/x", "no longer encrypted"),
        ("http://a.org/x", "http://127.0.0.1/x", "this machine"),
        ("http://a.org/x", "http://localhost/x", "this machine"),
        ("http://a.org/x", "http://169.254.169.254/latest/meta-data", "this machine"),
        ("http://a.org/x", "http://10.1.2.3/x", "this machine"),
        ("https://a.org/x", "https://[::1]/x", "this machine"),
        ("https://a.org/x", "https://[fd00::1]/x", "this machine"),
    ],
)
def test_redirects_that_are_refused(base: str, location: str, why: str) -> None:
    with pytest.raises(RecordInvalid, match=why):
        redirected(base, httpx.URL(base), location)


def test_public_addresses_are_not_private() -> None:
    assert not is_private("8.8.8.8")
    assert not is_private("ftp.ebi.ac.uk")


class Vault(Replay):
    """Objects for those who sign, below `/em/`; `/em/away` is at another server."""

    def __init__(self, away: str = "") -> None:
        super().__init__()
        self.authorizations: list[str] = []
        self._away = away

    def answer(self, request: Request) -> Reply:
        self.authorizations.append(request.headers.get("Authorization", ""))
        if request.path == "/em/away":
            return Reply(b"", status=307, headers={"Location": f"{self._away}/em/key"})
        if request.path == "/em/abroad":
            return Reply(b"", status=301, headers={"x-amz-bucket-region": "eu-west-3"})
        return Reply(b"secret") if self.authorizations[-1] else text("no", status=403)


@pytest.fixture
def elsewhere() -> Iterator[Vault]:
    with Vault() as running:
        yield running


@pytest.fixture
def vault(elsewhere: Vault) -> Iterator[Vault]:
    with Vault(elsewhere.url) as running:
        yield running


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    signing._session.cache_clear()
    yield
    signing._session.cache_clear()


def client(endpoints: ObjectEndpoints) -> PortalClient:
    return PortalClient(connections=1, timeout_s=5, retries=0, endpoints=endpoints)


@pytest.mark.usefixtures("credentials")
def test_requests_are_signed_only_where_that_is_asked_for_and_only_for_s3(
    vault: Vault, elsewhere: Vault
) -> None:
    with client(ObjectEndpoints(s3=vault.url)) as anonymous, pytest.raises(InputRefused):
        ObjectStoreClient(anonymous).get("s3://em/key")
    assert vault.authorizations == [""]
    endpoints = ObjectEndpoints(s3=vault.url, gs=elsewhere.url, s3_region="eu-west-1", s3_anonymous=False)
    with client(endpoints) as signer:
        assert ObjectStoreClient(signer).get("s3://em/key") == b"secret"
        assert "Credential=AKEXAMPLE/" in vault.authorizations[-1]
        assert "/eu-west-1/s3/aws4_request" in vault.authorizations[-1]
        with pytest.raises(InputRefused):
            ObjectStoreClient(signer).get("gs://em/key")
        with pytest.raises(InputRefused):
            ObjectStoreClient(signer).get("s3://em/away")
    assert elsewhere.authorizations == ["", ""]


def test_signing_without_credentials_says_so(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, credentials: None
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with (
        client(ObjectEndpoints(s3=vault.url, s3_anonymous=False)) as signer,
        pytest.raises(InputRefused, match="no AWS credentials"),
    ):
        ObjectStoreClient(signer).get("s3://em/key")
    assert vault.authorizations == []


def test_a_bucket_of_another_region_is_named(vault: Vault) -> None:
    with (
        client(ObjectEndpoints(s3=vault.url)) as anonymous,
        pytest.raises(InputRefused, match="EM_S3_REGION=eu-west-3"),
    ):
        ObjectStoreClient(anonymous).get("s3://em/abroad")
