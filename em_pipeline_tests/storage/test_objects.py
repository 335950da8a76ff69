"""Object stores as they answer, and as they fail: a listing is whole or an error."""

import gzip
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import quote

import pytest

from em_pipeline.demo.replay import Replay, Reply, Request, Trouble, text
from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.ingest.workspace import store_of
from em_pipeline.settings import Settings
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import ObjectEndpoints, https_url
from em_pipeline.storage.objects import ObjectStoreClient
from em_pipeline.storage.store import open_store

AWS = ObjectEndpoints()
KEYS = ("a/0", "a/b c+d", "a/x/0", "a/x/1", "a/é%20", "b")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("s3://bucket/a/b", "https://bucket.s3.amazonaws.com/a/b"),
        ("s3://bucket/a b#c?d%20", "https://bucket.s3.amazonaws.com/a%20b%23c%3Fd%2520"),
        ("s3://bucket.with.dots/a", "https://s3.amazonaws.com/bucket.with.dots/a"),
        ("gs://bucket/a b", "https://storage.googleapis.com/bucket/a%20b"),
        ("https://host/a%20b?c", "https://host/a%20b?c"),
    ],
)
def test_addresses_of_public_stores(address: str, url: str) -> None:
    assert https_url(address, AWS) == url


def test_addresses_follow_the_settings() -> None:
    assert https_url("s3://b-1/k", ObjectEndpoints(s3="http://here:1/")) == "http://here:1/b-1/k"
    assert https_url("gs://b-1/k", ObjectEndpoints(gs="http://here:1")) == "http://here:1/b-1/k"
    region = ObjectEndpoints(s3_region="eu-west-1")
    assert https_url("s3://b-1/k", region) == "https://b-1.s3.eu-west-1.amazonaws.com/k"
    assert https_url("s3://b.1/k", region) == "https://s3.eu-west-1.amazonaws.com/b.1/k"


@pytest.mark.parametrize(
    "base",
    [
        "http://[::1",
        "http://",
        "http:///x",
        "http://:9000",
        "https://x y",
        "https://x\n",
        "http://h:abc",
        "http://h:99999",
        "http://h:0",
        "http://h:-1",
        "http://h?x",
        "http://h/x?y",
        "http://h/x#y",
        "http://user:secret@h",
        "http:h",
        "ftp://h",
        "minio.lab:9000",
        "http://h:" + "9" * 5000,
    ],
)
def test_a_base_to_which_no_key_can_be_appended_is_refused(base: str) -> None:
    for scheme in ("s3", "gs"):
        with pytest.raises(InputRefused, match=rf"Set EM_{scheme.upper()}_ENDPOINT to http\(s\)://<host>"):
            ObjectEndpoints(**{scheme: base})
    with pytest.raises(InputRefused, match="Set EM_STORE_ENDPOINT"):
        store_of(Settings(store_endpoint=base))


@pytest.mark.parametrize(
    "base", ["http://h", "https://h.lab:9000/", "http://[::1]:9000", "http://h/path/to", "http://my_host:1"]
)
def test_bases_of_servers(base: str) -> None:
    endpoints = ObjectEndpoints(s3=base, gs=base)
    assert https_url("s3://b-1/k", endpoints) == https_url("gs://b-1/k", endpoints)
    assert https_url("s3://b-1/k", endpoints).startswith(base)


def test_a_host_that_botocore_takes_for_none_is_refused() -> None:
    store = open_store("s3://bucket/em", ObjectEndpoints(s3="http://a..b", setting="EM_STORE_ENDPOINT"))
    with pytest.raises(InputRefused, match=r"a\.\.b.*Correct EM_STORE_ENDPOINT"):
        store.exists("x")


@pytest.mark.parametrize(
    "address",
    [
        "s3://evil.com#/k",
        "s3://a@b/k",
        "s3:///k",
        "s3://bucket/../other/k",
        "s3://bucket/a/./k",
        "ftp://host/k",
        "bucket/key",
    ],
)
def test_what_is_no_address_of_an_object_is_refused(address: str) -> None:
    with pytest.raises(InputRefused):
        https_url(address, AWS)


def test_settings_that_are_no_endpoints_are_refused() -> None:
    for wrong in ("s3://x", "host", "ftp://host"):
        with pytest.raises(InputRefused):
            replace(AWS, gs=wrong)


class Store(Replay):
    """A bucket `em` whose listings come two at a time, and whatever `answers` says instead."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Callable[[str], str]] = []
        self.page = 2
        self.objects = {key: Reply(key.encode()) for key in KEYS}

    def answer(self, request: Request) -> Reply:
        if not request.path.startswith("/em/"):
            return text("<Error><Code>NoSuchBucket</Code></Error>", "application/xml", 404)
        key = request.path.removeprefix("/em/")
        if not key:
            with self._lock:
                change = self.answers.pop(0) if self.answers else str
            return text(change(self._listing(request)), "application/xml")
        missing = text("<Error><Code>NoSuchKey</Code></Error>", "application/xml", 404)
        return self.objects.get(key, missing)

    def _listing(self, request: Request) -> str:
        asked = {name: values[0] for name, values in request.query.items()}
        prefix, delimiter = asked["prefix"], asked["delimiter"]
        entries = []
        for key in self.objects:
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            entry = (
                f"<CommonPrefixes><Prefix>{quote(prefix + head + delimiter)}</Prefix></CommonPrefixes>"
                if found
                else f"<Contents><Key>{quote(key)}</Key><Size>{len(key.encode())}</Size>"
                "<ETag>&quot;1&quot;</ETag><LastModified>2024-05-06T07:08:09.500Z</LastModified></Contents>"
            )
            if entry not in entries:
                entries.append(entry)
        at = int(asked.get("continuation-token", "0"))
        page = entries[at : at + self.page]
        more = at + self.page < len(entries)
        token = f"<NextContinuationToken>{at + self.page}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<EncodingType>url</EncodingType><KeyCount>{len(page)}</KeyCount>{''.join(page)}"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}</ListBucketResult>"
        )


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as running:
        yield running


@pytest.fixture
def client(store: Store) -> Iterator[ObjectStoreClient]:
    endpoints = ObjectEndpoints(s3=store.url, gs=store.url)
    with PortalClient(connections=2, timeout_s=20, retries=1, backoff_s=0.01, endpoints=endpoints) as portal:
        yield ObjectStoreClient(portal)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_listing_goes_on_to_its_last_page_and_decodes_keys(
    store: Store, client: ObjectStoreClient, scheme: str
) -> None:
    listing = client.list(f"{scheme}://em/a/")
    assert [entry.key for entry in listing.objects] == [key for key in KEYS if key.startswith("a/")]
    assert listing.prefixes == ()
    first = listing.objects[0]
    assert (first.url, first.size, first.etag) == (f"{scheme}://em/a/0", 3, '"1"')
    assert first.modified == "Mon, 06 May 2024 07:08:09 GMT"
    assert store.requests["/em/"] == 3


def test_a_delimiter_rolls_up_what_lies_deeper(client: ObjectStoreClient) -> None:
    listing = client.list("s3://em/a/", "/")
    assert [entry.key for entry in listing.objects] == ["a/0", "a/b c+d", "a/é%20"]
    assert listing.prefixes == ("a/x/",)


def test_nothing_below_a_prefix_is_an_empty_listing_and_no_bucket_is_an_error(
    client: ObjectStoreClient,
) -> None:
    assert client.list("s3://em/none/").objects == ()
    with pytest.raises(NotFound):
        client.list("s3://other/")


def test_a_web_server_is_not_listed(store: Store, client: ObjectStoreClient) -> None:
    with pytest.raises(InputRefused, match="no listing"):
        client.list(f"{store.url}/em/")
    assert client.get(f"{store.url}/em/b") == b"b"


DAMAGED: dict[str, Callable[[str], str]] = {
    "cut": lambda xml: xml[: len(xml) // 2],
    "cut between entries": lambda xml: xml.replace("<KeyCount>2", "<KeyCount>3"),
    "web page": lambda _: "<!DOCTYPE html><html>Back soon</html>",
    "another document": lambda _: "<x/>",
    "busy": lambda _: "<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>",
    "no end said": lambda xml: xml.replace("IsTruncated", "X"),
    "no next page said": lambda xml: xml.replace("NextContinuationToken", "X"),
    "no key": lambda xml: xml.replace("Key>", "X>").replace("XCount", "KeyCount"),
    "no size": lambda xml: xml.replace("Size>", "X>"),
    "no date": lambda xml: xml.replace("2024-", "x"),
    "no count": lambda xml: xml.replace("<KeyCount>2", "<KeyCount>abc"),
    "a date beyond all": lambda xml: xml.replace("2024-05-06T07:08:09.500Z", "9999-12-31T23:59:59-23:00"),
    "a size of 5000 digits": lambda xml: xml.replace("<Size>", f"<Size>{'9' * 5000}"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_listing_is_asked_for_again_and_never_taken_for_a_whole_one(
    store: Store, client: ObjectStoreClient, name: str
) -> None:
    whole = client.list("s3://em/a/")
    store.answers = [DAMAGED[name]]
    assert client.list("s3://em/a/") == whole
    store.answers = [DAMAGED[name]] * 9
    with pytest.raises(SourceUnavailable):
        client.list("s3://em/a/")


def test_a_listing_without_end_and_a_store_that_refuses_are_said(
    store: Store, client: ObjectStoreClient
) -> None:
    def first_page_again(xml: str) -> str:
        return xml.replace(">4</Next", ">2</Next").replace(
            "<IsTruncated>false</IsTruncated>",
            "<IsTruncated>true</IsTruncated><NextContinuationToken>2</NextContinuationToken>",
        )

    store.answers = [first_page_again] * 9
    with pytest.raises(SourceUnavailable, match="never end"):
        client.list("s3://em/a/")
    fresh = itertools.count(2)

    def always_another_token(xml: str) -> str:
        goes_on = (
            f"<IsTruncated>true</IsTruncated><NextContinuationToken>{next(fresh)}</NextContinuationToken>"
        )
        return re.sub(r"<(?:IsTr|Contents|CommonP|KeyC|NextC).*(?=</ListB)", goes_on, xml)

    store.answers = [always_another_token] * 9
    with pytest.raises(SourceUnavailable, match="never end"):
        client.list("s3://em/a/")
    assert len(store.answers) == 8
    store.answers.clear()
    store.answers = [lambda _: "<Error><Code>InvalidRequest</Code><Message>No</Message></Error>"]
    with pytest.raises(RecordInvalid, match="InvalidRequest"):
        client.list("s3://em/a/")
    store.answers = [lambda xml: xml.replace("<ListB", '<!DOCTYPE x [<!ENTITY e "x">]><ListB')] * 9
    with pytest.raises(SourceUnavailable):
        client.list("s3://em/a/")


def test_only_what_is_said_to_be_absent_is_absent(store: Store, client: ObjectStoreClient) -> None:
    assert client.get("s3://em/a/x/1") == b"a/x/1"
    assert client.get("s3://em/none") is None
    assert client.head("s3://em/none") is None
    with pytest.raises(NotFound, match="bucket"):
        client.get("s3://other/none")
    store.objects["private"] = text("<Error><Code>AccessDenied</Code></Error>", status=403)
    with pytest.raises(InputRefused):
        client.get("s3://em/private")
    with pytest.raises(InputRefused):
        client.head("s3://em/private")
    for trouble in (Trouble.UNAVAILABLE, Trouble.RESET, Trouble.CUT):
        store.heal()
        store.trouble(trouble, "/em/b")
        with pytest.raises(SourceUnavailable):
            client.get("s3://em/b")
    store.heal()
    store.trouble(Trouble.STALL, "/em/b")
    endpoints = ObjectEndpoints(s3=store.url)
    with (
        PortalClient(connections=1, timeout_s=0.5, retries=1, backoff_s=0.01, endpoints=endpoints) as hasty,
        pytest.raises(SourceUnavailable),
    ):
        ObjectStoreClient(hasty).get("s3://em/b")


def test_an_object_kept_compressed_has_its_stored_size_and_is_read_decoded(
    store: Store, client: ObjectStoreClient
) -> None:
    stored = gzip.compress(b"{}" * 100)
    store.objects["info"] = Reply(stored, headers={"Content-Encoding": "gzip"})
    told = client.head("gs://em/info")
    assert told is not None
    assert told.size == len(stored)
    assert client.get("gs://em/info") == b"{}" * 100


@pytest.mark.integration
def test_moto_lists_as_we_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3  # type: ignore[import-untyped]
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        bucket = boto3.resource("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="em-1")
        for key in KEYS:
            bucket.put_object(Key=key, Body=key.encode(), ACL="public-read")
        endpoints = ObjectEndpoints(s3=url)
        with PortalClient(connections=2, endpoints=endpoints) as portal:
            client = ObjectStoreClient(portal)
            listing = client.list("s3://em-1/")
            assert {entry.key: entry.size for entry in listing.objects} == {
                key: len(key.encode()) for key in KEYS
            }
            told = client.head("s3://em-1/a/b c+d")
            assert told is not None
            listed = next(entry for entry in listing.objects if entry.key == "a/b c+d")
            assert (told.size, told.etag, told.modified) == (listed.size, listed.etag, listed.modified)
            assert client.get("s3://em-1/a/é%20") == "a/é%20".encode()
            assert client.get("s3://em-1/a/none") is None
    finally:
        server.stop()
