"""Answers that are not the store's own: nothing is taken for done or absent that the store did not say."""

import json
from collections.abc import Callable, Iterator

import pytest

from em_pipeline.domain.errors import StorageFailed, StoreUnavailable
from em_pipeline.ingest.workspace import store_of
from em_pipeline.settings import Settings
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.object_client import client_of
from em_pipeline.storage.object_store import ObjectStore
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline_tests.buckets import POLICY, fresh_folder
from em_pipeline_tests.portals.gcs import GcsServer
from em_pipeline_tests.portals.proxy import Break, BreakingProxy, breaking_proxy

SOURCE, TARGET = "staging/a/v/volume.ome.zarr", "volumes/a/v.ome.zarr"
NOBODY = "http://127.0.0.1:9"
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
HTML = b"<html><body>maintenance</body></html>"
ERROR = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


@pytest.fixture(scope="module")
def lone_proxy() -> Iterator[BreakingProxy]:
    with breaking_proxy(NOBODY) as proxy:
        yield proxy


@pytest.fixture
def proxy(lone_proxy: BreakingProxy) -> BreakingProxy:
    """In front of nobody: it is told all that is answered."""
    lone_proxy.heal()
    lone_proxy.requests.clear()
    return lone_proxy


@pytest.fixture
def s3(proxy: BreakingProxy, s3_credentials: dict[str, str]) -> ObjectBlobs:
    return fresh_folder("s3", ObjectEndpoints(s3=proxy.url))


@pytest.fixture
def gcs(proxy: BreakingProxy) -> ObjectBlobs:
    return fresh_folder("gs", ObjectEndpoints(gs=proxy.url))


@pytest.fixture(params=["s3", "gcs"])
def blobs(request: pytest.FixtureRequest) -> ObjectBlobs:
    found: ObjectBlobs = request.getfixturevalue(request.param)
    return found


def answer(proxy: BreakingProxy, how: Break) -> None:
    for method in METHODS:
        proxy.fail(method, "", how, times=999)


def write_parts(blobs: ObjectBlobs) -> None:
    sink = blobs.create("x")
    sink.append(bytes(POLICY.part_bytes + 1))
    sink.commit()


CALLS: dict[str, Callable[[ObjectBlobs], object]] = {
    "read": lambda blobs: blobs.read("x"),
    "read a range": lambda blobs: blobs.read_range("x", 1, 2),
    "size": lambda blobs: blobs.size("x"),
    "list": lambda blobs: list(blobs.names()),
    "write": lambda blobs: blobs.write("x", b"123"),
    "write parts": write_parts,
    "delete": lambda blobs: blobs.delete("x"),
    "delete many": lambda blobs: blobs.delete_each(["x", "y"]),
    "copy": lambda blobs: client_of(blobs.access).copy("x", "y"),
    "lock": lambda blobs: blobs.hold().__enter__(),
    "put a lock": lambda blobs: client_of(blobs.access).put_if("x", b"", None),
    "remove a lock": lambda blobs: client_of(blobs.access).delete_if("x", "1"),
}


@pytest.mark.parametrize("body", [HTML, b"", b"<html>", b"{}", b"[]"])
@pytest.mark.parametrize("call", CALLS)
def test_a_200_of_somebody_else_is_a_fault(
    blobs: ObjectBlobs, proxy: BreakingProxy, call: str, body: bytes
) -> None:
    answer(proxy, Break(status=200, body=body))
    with pytest.raises(StoreUnavailable, match="4 attempts failed"):
        CALLS[call](blobs)
    assert len(proxy.requests) >= POLICY.attempts


def s3_page(inner: str) -> bytes:
    return f"<ListBucketResult>{inner}</ListBucketResult>".encode()


def s3_entry(key: str = "{prefix}/x", modified: str = "2026-01-01T00:00:00.000Z") -> str:
    told = f"<Key>{key}</Key><LastModified>{modified}</LastModified><ETag>1</ETag><Size>1</Size>"
    return f"<Contents>{told}</Contents>"


ENDED, GOES_ON = "<IsTruncated>false</IsTruncated>", "<IsTruncated>true</IsTruncated>"
S3_PAGES = {
    "says not whether it is all": s3_page(s3_entry()),
    "goes on nowhere": s3_page(GOES_ON + s3_entry()),
    "goes on with itself": s3_page(f"{GOES_ON}<NextContinuationToken>a</NextContinuationToken>"),
    "is cut": s3_page(ENDED + s3_entry())[:-30],
    "has an object without a time": s3_page(
        f"{ENDED}<Contents><Key>{{prefix}}/x</Key><ETag>1</ETag><Size>1</Size></Contents>"
    ),
    "has a time that is none": s3_page(ENDED + s3_entry(modified="yesterday")),
    "has a size that is none": s3_page(ENDED + s3_entry()).replace(b"<Size>1", b"<Size>one"),
    "is of another folder": s3_page(ENDED + s3_entry(key="other/x")),
}


@pytest.mark.parametrize("page", S3_PAGES)
def test_a_listing_of_s3_that_is_not_whole_is_a_fault(
    s3: ObjectBlobs, proxy: BreakingProxy, page: str
) -> None:
    body = S3_PAGES[page].replace(b"{prefix}", s3.prefix.encode())
    answer(proxy, Break(status=200, body=body))
    with pytest.raises(StoreUnavailable, match="4 attempts failed"):
        list(s3.names())


@pytest.mark.parametrize(
    "inner",
    [
        "",
        GOES_ON,
        f"{GOES_ON}<NextKeyMarker>x</NextKeyMarker>",
        f"{GOES_ON}<NextKeyMarker>x</NextKeyMarker><NextUploadIdMarker>1</NextUploadIdMarker>",
        f"{ENDED}<Upload><Key>x</Key></Upload>",
    ],
)
def test_a_listing_of_uploads_that_is_not_whole_is_a_fault(
    s3: ObjectBlobs, proxy: BreakingProxy, inner: str
) -> None:
    body = f"<ListMultipartUploadsResult>{inner}</ListMultipartUploadsResult>".encode()
    answer(proxy, Break(status=200, body=body))
    with pytest.raises(StoreUnavailable, match="4 attempts failed"):
        s3.clear_unfinished()


def test_a_deletion_that_leaves_one_out_is_a_fault(s3: ObjectBlobs, proxy: BreakingProxy) -> None:
    body = b"<DeleteResult><Deleted><Key>x</Key></Deleted></DeleteResult>"
    answer(proxy, Break(status=200, body=body))
    with pytest.raises(StoreUnavailable, match="of 2 objects the answer says 1 are deleted"):
        s3.delete_each(["x", "y"])


GOOGLE_PAGE = {"kind": "storage#objects"}
GOOGLE_ENTRY = {"name": "{prefix}/x", "size": "1", "crc32c": "AA==", "updated": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        *(
            ("list", {**GOOGLE_PAGE, "items": [{k: v for k, v in GOOGLE_ENTRY.items() if k != left}]})
            for left in GOOGLE_ENTRY
        ),
        ("list", {"items": [GOOGLE_ENTRY]}),
        ("list", {"kind": "storage#object"}),
        ("list", {**GOOGLE_PAGE, "items": [{**GOOGLE_ENTRY, "name": "other/x"}]}),
        ("list", {**GOOGLE_PAGE, "items": [{**GOOGLE_ENTRY, "updated": 7}]}),
        ("list", {**GOOGLE_PAGE, "items": "none"}),
        ("list", {**GOOGLE_PAGE, "nextPageToken": "a"}),
        ("size", {"size": "1"}),
        ("size", {"generation": "1"}),
        ("size", {"generation": "1", "size": None}),
        ("copy", {"done": True}),
        ("copy", {"done": True, "resource": {}}),
        ("copy", {"done": False}),
        ("write", {"size": "3"}),
    ],
)
def test_an_answer_of_google_that_lacks_something_is_a_fault(
    gcs: ObjectBlobs, proxy: BreakingProxy, call: str, told: dict[str, object]
) -> None:
    body = json.dumps(told).replace("{prefix}", gcs.prefix).encode()
    answer(proxy, Break(status=200, body=body))
    with pytest.raises(StoreUnavailable, match="4 attempts failed"):
        CALLS[call](gcs)


@pytest.mark.parametrize("status", [301, 302, 307])
@pytest.mark.parametrize("place", ["https://minio.lab/x", ""])
@pytest.mark.parametrize("call", ["size", "list", "write", "copy", "delete"])
def test_a_redirect_is_refused_at_once_with_what_to_set(
    blobs: ObjectBlobs, proxy: BreakingProxy, call: str, place: str, status: int
) -> None:
    answer(proxy, Break(status=status, headers=(("Location", place),) if place else ()))
    said = rf"HTTP {status} and sends us to {place or 'elsewhere'}.*EM_STORE_ENDPOINT"
    with pytest.raises(StorageFailed, match=said) as caught:
        CALLS[call](blobs)
    assert not isinstance(caught.value, StoreUnavailable)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("setting", ["store_endpoint", "own"])
def test_a_refusal_names_the_setting_that_gave_the_address(
    proxy: BreakingProxy, s3_credentials: dict[str, str], scheme: str, setting: str
) -> None:
    name = f"{scheme}_endpoint" if setting == "own" else setting
    store = store_of(Settings.model_validate({"store_url": f"{scheme}://em-tests/x", name: proxy.url}))
    answer(proxy, Break(status=400))
    with pytest.raises(StorageFailed, match=f"Check EM_STORE_URL and EM_{name.upper()}$"):
        store.read("x")


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.integration), "gcs"])
def published(request: pytest.FixtureRequest) -> Iterator[tuple[ObjectStore, BreakingProxy]]:
    """A store behind a proxy, with a staged volume."""
    if request.param == "s3":
        request.getfixturevalue("s3_credentials")
        url: str = request.getfixturevalue("s3_server")
    else:
        gcs: GcsServer = request.getfixturevalue("gcs_service")
        url = gcs.url
    with breaking_proxy(url) as proxy:
        scheme = {"s3": "s3", "gcs": "gs"}[request.param]
        folder = fresh_folder(scheme, ObjectEndpoints(s3=proxy.url, gs=proxy.url))
        store = ObjectStore(folder.access, folder.prefix)
        for name in FILES:
            store.write(f"{SOURCE}/{name}", FILES[name])
        yield store, proxy


FILES = {"0/zarr.json": b"{0}", "0/c/0": b"shard" * 9, "zarr.json": b"{root}"}


def fail_copies(proxy: BreakingProxy, how: Break, times: int) -> None:
    proxy.fail("PUT", TARGET, how, times)
    proxy.fail("POST", "rewriteTo", how, times)


@pytest.mark.parametrize("body", [HTML, b"", ERROR])
def test_a_200_that_copied_nothing_deletes_nothing(
    published: tuple[ObjectStore, BreakingProxy], body: bytes
) -> None:
    store, proxy = published
    fail_copies(proxy, Break(status=200, body=body), times=99)
    with pytest.raises(StoreUnavailable):
        store.publish_tree(SOURCE, TARGET)
    assert [key.removeprefix(f"{SOURCE}/") for key in store.list("")] == sorted(FILES)
    proxy.heal()
    fail_copies(proxy, Break(status=200, body=body), times=2)
    store.publish_tree(SOURCE, TARGET)
    assert {key: store.read(key) for key in store.list("")} == {f"{TARGET}/{n}": FILES[n] for n in FILES}


@pytest.mark.parametrize("lost", FILES)
def test_a_volume_whose_copy_is_not_listed_keeps_its_source(
    published: tuple[ObjectStore, BreakingProxy], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    store, _ = published
    kind = type(client_of(store.blobs("x").access))
    really = kind.copy

    def copy(self: object, source: str, target: str) -> None:
        if not target.endswith(f"{TARGET}/{lost}"):
            really(self, source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(kind, "copy", copy)
        with pytest.raises(StorageFailed, match=rf"{TARGET}/{lost} is not as it was.*Nothing was deleted"):
            store.publish_tree(SOURCE, TARGET)
    assert not store.blobs(TARGET).size("zarr.json")
    assert [key.removeprefix(f"{SOURCE}/") for key in store.list(SOURCE)] == sorted(FILES)
    store.publish_tree(SOURCE, TARGET)
    assert {key: store.read(key) for key in store.list("")} == {f"{TARGET}/{n}": FILES[n] for n in FILES}


@pytest.mark.integration
@pytest.mark.parametrize("body", [HTML, b"", ERROR])
def test_an_upload_that_a_200_did_not_complete_is_completed(
    s3_server: str, s3_credentials: dict[str, str], body: bytes
) -> None:
    with breaking_proxy(s3_server) as proxy:
        blobs = fresh_folder("s3", ObjectEndpoints(s3=proxy.url))
        proxy.fail("POST", "?uploadId=", Break(status=200, body=body), times=2)
        write_parts(blobs)
        assert blobs.size("x") == POLICY.part_bytes + 1


def test_a_part_of_an_upload_is_not_taken_before_google_says_so(gcs_service: GcsServer) -> None:
    with breaking_proxy(gcs_service.url) as proxy:
        blobs = fresh_folder("gs", ObjectEndpoints(gs=proxy.url))
        proxy.fail("PUT", "upload_id", Break(status=200, body=HTML), times=2)
        write_parts(blobs)
        assert blobs.size("x") == POLICY.part_bytes + 1
