"""Object stores that fail: what is written is whole or not there, and what fails is said."""

import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from em_pipeline.domain.errors import InputRefused, StorageFailed
from em_pipeline.storage import gcs_client, object_sink
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.object_client import ObjectPolicy, client_of
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline_tests.buckets import BUCKET, POLICY, fresh_folder, s3_administrator
from em_pipeline_tests.portals.gcs import GcsServer
from em_pipeline_tests.portals.proxy import Break, BreakingProxy, breaking_proxy

MIB = 1 << 20
PART = POLICY.part_bytes
CONTENT = bytes(range(251)) * ((2 * PART + 300) // 251)
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def s3_proxy(s3_server: str) -> Iterator[BreakingProxy]:
    with breaking_proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def google_proxy(gcs_service: GcsServer) -> Iterator[BreakingProxy]:
    with breaking_proxy(gcs_service.url) as proxy:
        yield proxy


@pytest.fixture
def proxy(s3_proxy: BreakingProxy) -> BreakingProxy:
    s3_proxy.heal()
    return s3_proxy


@pytest.fixture
def gcs_proxy(google_proxy: BreakingProxy) -> BreakingProxy:
    google_proxy.heal()
    return google_proxy


@pytest.fixture
def s3(proxy: BreakingProxy, s3_credentials: dict[str, str]) -> ObjectBlobs:
    """A folder of S3 behind the proxy."""
    return fresh_folder("s3", ObjectEndpoints(s3=proxy.url))


@pytest.fixture
def gcs(gcs_proxy: BreakingProxy) -> ObjectBlobs:
    """A folder of Google's store behind the proxy."""
    return fresh_folder("gs", ObjectEndpoints(gs=gcs_proxy.url))


def unfinished(server: str, blobs: ObjectBlobs) -> list[str]:
    told = s3_administrator(server).list_multipart_uploads(Bucket=BUCKET, Prefix=blobs.prefix)
    return [upload["Key"] for upload in told.get("Uploads", [])]


def write(blobs: ObjectBlobs, name: str = "x") -> None:
    sink = blobs.create(name)
    try:
        for at in range(0, len(CONTENT), MIB):
            sink.append(CONTENT[at : at + MIB])
        sink.commit()
    finally:
        sink.abandon()


HOW = {
    "503": Break(status=503),
    "500": Break(status=500),
    "429": Break(status=429),
    "reset at once": Break(reset_after=0),
    "reset within the part": Break(reset_after=3 * MIB),
    "answer lost": Break(lose_answer=True),
    "answer cut": Break(cut_answer=0),
}
S3_STEPS = {
    "begin": ("POST", "?uploads"),
    "first part": ("PUT", "partNumber=1"),
    "second part": ("PUT", "partNumber=2"),
    "last part": ("PUT", "partNumber=3"),
    "completion": ("POST", "?uploadId="),
}


BROKEN = [("second part", how) for how in HOW]
BROKEN += product(("begin", "last part", "completion"), ("503", "answer lost"))


@pytest.mark.parametrize(("step", "how"), BROKEN)
def test_a_part_that_fails_is_sent_again_and_the_object_is_whole(
    s3: ObjectBlobs, proxy: BreakingProxy, s3_server: str, step: str, how: str
) -> None:
    proxy.fail(*S3_STEPS[step], HOW[how], times=2)
    write(s3)
    assert s3.read("x") == CONTENT
    if step == "begin":  # one whose answer was lost is cleared as a killed writer's is
        s3.clear_unfinished()
    assert unfinished(s3_server, s3) == []


@pytest.mark.parametrize("step", ["begin", "last part", "completion"])
def test_a_part_that_goes_on_failing_leaves_no_object_and_no_upload(
    s3: ObjectBlobs, proxy: BreakingProxy, s3_server: str, step: str
) -> None:
    s3.write("x", b"old")
    proxy.fail(*S3_STEPS[step], Break(status=503), times=99)
    with pytest.raises(StorageFailed, match=r"4 attempts failed, .*: HTTP 503.*run the same again"):
        write(s3)
    proxy.heal()
    assert list(s3.names()) == ["x"]
    assert s3.read("x") == b"old"
    assert unfinished(s3_server, s3) == []


def test_a_blob_of_which_a_part_failed_is_never_completed(s3: ObjectBlobs, proxy: BreakingProxy) -> None:
    proxy.fail("PUT", "partNumber=1", Break(status=503), times=99)
    sink = s3.create("x")
    sink.append(CONTENT[: PART + 1])
    for use in (sink.commit, lambda: sink.append(b"x"), sink.commit):
        with pytest.raises(StorageFailed, match="Write part 1 of"):
            use()
    sink.abandon()
    assert proxy.count("POST", f"{quote(s3.prefix)}/x?uploadId=") == 0


def test_a_store_that_falls_silent_is_asked_again(s3_server: str, s3_credentials: dict[str, str]) -> None:
    with breaking_proxy(s3_server) as proxy:
        impatient = replace(POLICY, timeout_s=2.0)
        blobs = fresh_folder("s3", ObjectEndpoints(s3=proxy.url), impatient)
        proxy.fail("PUT", "partNumber=1", Break(stall_after=MIB))
        write(blobs)
        assert blobs.read("x") == CONTENT
        assert proxy.count("PUT", "partNumber=1") >= 2


def test_a_writer_in_an_outage_can_be_abandoned(
    s3: ObjectBlobs, proxy: BreakingProxy, s3_server: str
) -> None:
    sink = s3.create("x")
    sink.append(CONTENT[: PART + 1])
    proxy.fail("DELETE", "", Break(status=503), times=99)
    sink.abandon()
    proxy.heal()
    assert list(s3.names()) == []
    s3.clear_unfinished()
    assert unfinished(s3_server, s3) == []


READS = {
    "read": lambda blobs: blobs.read("x"),
    "read_range": lambda blobs: blobs.read_range("x", 1, 2),
    "size": lambda blobs: blobs.size("x"),
    "names": lambda blobs: list(blobs.names()),
    "read none": lambda blobs: blobs.read("none"),
    "size of none": lambda blobs: blobs.size("none"),
}


@pytest.mark.parametrize("place", ["s3", "gcs"])
@pytest.mark.parametrize("how", ["503", "answer cut"])
@pytest.mark.parametrize("read", READS)
def test_a_store_that_does_not_answer_is_never_taken_for_absence(
    request: pytest.FixtureRequest, place: str, how: str, read: str
) -> None:
    blobs: ObjectBlobs = request.getfixturevalue(place)
    proxy: BreakingProxy = request.getfixturevalue("proxy" if place == "s3" else "gcs_proxy")
    blobs.write("x", b"123")
    for method in ("GET", "HEAD"):
        # The answer to HEAD has no body that could be cut.
        proxy.fail(method, BUCKET, HOW[how] if method == "GET" else HOW["503"], times=99)
    with pytest.raises(StorageFailed, match="4 attempts failed"):
        READS[read](blobs)


@pytest.mark.parametrize("place", ["s3", "gcs"])
def test_what_is_cut_is_read_again(request: pytest.FixtureRequest, place: str) -> None:
    blobs: ObjectBlobs = request.getfixturevalue(place)
    proxy: BreakingProxy = request.getfixturevalue("proxy" if place == "s3" else "gcs_proxy")
    blobs.write("x", CONTENT)
    proxy.fail("GET", "/x" if place == "s3" else "%2Fx", Break(cut_answer=MIB), times=2)
    assert blobs.read("x") == CONTENT
    proxy.fail("GET", "/x" if place == "s3" else "%2Fx", Break(cut_answer=5), times=2)
    assert blobs.read_range("x", 7, 10) == CONTENT[7:17]


@pytest.mark.parametrize("step", [("PUT", "partNumber"), ("POST", "?uploads")])
def test_a_refusal_is_said_at_once(s3: ObjectBlobs, proxy: BreakingProxy, step: tuple[str, str]) -> None:
    before = proxy.count(*step)
    proxy.fail(*step, Break(status=403), times=99)
    with pytest.raises(StorageFailed, match=r"refused it \(HTTP 403.*credentials need to"):
        write(s3)
    assert proxy.count(*step) - before <= 2


@pytest.mark.parametrize("place", ["s3", "gcs"])
@pytest.mark.parametrize("read", READS)
def test_403_is_no_absence(request: pytest.FixtureRequest, place: str, read: str) -> None:
    blobs: ObjectBlobs = request.getfixturevalue(place)
    proxy: BreakingProxy = request.getfixturevalue("proxy" if place == "s3" else "gcs_proxy")
    for method in ("GET", "HEAD"):
        proxy.fail(method, BUCKET, Break(status=403), times=99)
    with pytest.raises(StorageFailed, match="refused"):
        READS[read](blobs)


@pytest.mark.parametrize("place", ["s3_blobs", "gcs_blobs"])
@pytest.mark.parametrize("read", READS)
def test_a_bucket_that_is_not_there_is_no_absence(
    request: pytest.FixtureRequest, place: str, read: str
) -> None:
    blobs: ObjectBlobs = request.getfixturevalue(place)
    elsewhere = ObjectBlobs(replace(blobs.access, bucket="em-other"), "x")
    with pytest.raises(StorageFailed, match="there is no bucket em-other"):
        READS[read](elsewhere)
    with pytest.raises(StorageFailed, match="there is no bucket em-other"):
        write(elsewhere)


def test_a_store_without_credentials_is_never_asked_anonymously(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/none")
    with breaking_proxy(s3_server) as proxy:
        blobs = fresh_folder("s3", ObjectEndpoints(s3=proxy.url))
        with pytest.raises(InputRefused, match=r"no AWS credentials.*AWS_ACCESS_KEY_ID"):
            blobs.read("x")
        assert proxy.requests == []
    google = fresh_folder("gs", ObjectEndpoints(gs="https://127.0.0.1:9"))
    with pytest.raises(InputRefused, match=r"no Google credentials.*GOOGLE_APPLICATION_CREDENTIALS"):
        google.read("x")


def test_requests_of_a_shard_are_few_and_known(
    s3: ObjectBlobs, proxy: BreakingProxy, gcs: ObjectBlobs, gcs_proxy: BreakingProxy
) -> None:
    for each in (proxy, gcs_proxy):
        each.requests.clear()
    write(s3, "shard")
    assert sorted(line.partition(" ")[0] for line in proxy.requests) == ["POST"] * 2 + ["PUT"] * 3
    write(gcs, "shard")
    assert [line.partition(" ")[0] for line in gcs_proxy.requests] == ["POST"] + ["PUT"] * 3
    for blobs, asked, puts in ((s3, proxy, "PUT"), (gcs, gcs_proxy, "POST")):
        asked.requests.clear()
        blobs.write("small", bytes(1000))
        sink = blobs.create("small")
        sink.append(bytes(PART))
        sink.commit()
        assert [line.partition(" ")[0] for line in asked.requests] == [puts] * 2
        asked.requests.clear()
        blobs.read("small")
        blobs.read_range("small", 5, 5)
        list(blobs.names())
        assert [line.partition(" ")[0] for line in asked.requests] == ["GET"] * 3


def test_no_more_parts_are_held_than_the_policy_says(
    s3_server: str, s3_credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(POLICY, parts_at_once=2)
    blobs = fresh_folder("s3", ObjectEndpoints(s3=s3_server), policy)
    made: list[int] = []

    class Counted(bytearray):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(len(self))

    monkeypatch.setattr(object_sink, "bytearray", Counted, raising=False)
    sink = blobs.create("x")
    for _ in range(5):
        sink.append(bytes(PART))
    sink.commit()
    assert blobs.size("x") == 5 * PART
    assert sum(made) <= 3 * PART


def test_parts_grow_so_that_no_object_has_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int, int]] = []

    class Client:
        access = fresh_folder("s3", ObjectEndpoints()).access
        parts_at_once = 1

        class executor:  # noqa: N801 - runs what it is given at once
            @staticmethod
            def submit(send: Any, part: Any) -> Any:
                from concurrent.futures import Future

                done: Future[None] = Future()
                done.set_result(send(part))
                return done

        def begin(self, key: str) -> "Client":
            return self

        def send(self, part: Any) -> None:
            sent.append((part.number, part.start, len(part.payload)))

        complete = send

    monkeypatch.setattr(object_sink, "PARTS_OF_ONE_SIZE", 2)
    sink = object_sink.ObjectSink(Client(), "x")  # type: ignore[arg-type]
    sink.append(bytes(12 * PART))
    sink.commit()
    assert [size // PART for _, _, size in sent] == [1, 1, 2, 2, 3, 3]
    assert [number for number, _, _ in sent] == [1, 2, 3, 4, 5, 6]
    assert all(start + size == next_start for (_, start, size), (_, next_start, _) in pairwise(sent))


WRITER = """
import pickle, sys, time
blobs = pickle.loads(bytes.fromhex(sys.argv[1]))
sink = blobs.create("volume/x")
sink.append(bytes(6 << 20))
while sink._flying:
    sink._land()
print("sent", flush=True)
time.sleep(60)
"""


def test_what_a_killed_writer_sent_is_cleared_by_who_holds_the_folder(
    s3: ObjectBlobs, s3_server: str, proxy: BreakingProxy
) -> None:
    command = [sys.executable, "-c", WRITER, pickle.dumps(s3).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"sent\n"
        writer.send_signal(signal.SIGKILL)
    assert list(s3.names()) == []
    assert unfinished(s3_server, s3) == [f"{s3.prefix}/volume/x"]
    s3.below("vol").clear_unfinished()
    assert len(unfinished(s3_server, s3)) == 1
    s3.below("volume").clear_unfinished()
    assert unfinished(s3_server, s3) == []


def test_a_forked_child_has_connections_of_its_own(s3_blobs: ObjectBlobs) -> None:
    import multiprocessing

    s3_blobs.write("parent", b"1")
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=s3_blobs.write, args=(str(number), b"x")) for number in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert list(s3_blobs.names()) == ["0", "1", "parent"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("after", [0, 2])
def test_a_resumable_upload_goes_on_where_the_store_says(
    gcs: ObjectBlobs, gcs_proxy: BreakingProxy, how: str, after: int
) -> None:
    gcs_proxy.fail("PUT", "upload_id", HOW[how], times=1, after=after)
    gcs_proxy.fail("POST", "resumable", HOW[how], times=1)
    write(gcs)
    assert gcs.read("x") == CONTENT


def test_a_resumable_upload_that_goes_on_failing_leaves_no_object_and_no_session(
    gcs: ObjectBlobs, gcs_proxy: BreakingProxy, gcs_service: GcsServer
) -> None:
    before = dict(gcs_service.sessions)
    gcs_proxy.fail("PUT", "upload_id", Break(status=503), times=99, after=1)
    with pytest.raises(StorageFailed, match="4 attempts failed"):
        write(gcs)
    assert list(gcs.names()) == []
    assert gcs_service.sessions == before


def test_a_large_object_is_copied_in_several_requests(gcs: ObjectBlobs, gcs_service: GcsServer) -> None:
    gcs.write("x", b"123")
    gcs_service.rewrites_left = 2
    client_of(gcs.access).copy(f"{gcs.prefix}/x", f"{gcs.prefix}/y")
    assert gcs.read("y") == b"123"


@pytest.mark.parametrize("place", ["s3_blobs", "gcs_blobs"])
def test_listings_of_many_pages_are_whole(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, place: str, gcs_service: GcsServer
) -> None:
    blobs: ObjectBlobs = request.getfixturevalue(place)
    names = [f"a/{number:03}" for number in range(7)]
    for name in names:
        blobs.write(name, b"")
    monkeypatch.setattr(gcs_service, "page", 3)
    client: Any = client_of(blobs.access)
    listed = [entry.key for entry in client._listed(f"{blobs.prefix}/", 3)]
    assert listed == [f"{blobs.prefix}/{name}" for name in names]
    assert len(list(client.list(f"{blobs.prefix}/", at_most=4))) == 4
    blobs.delete_all("a")
    assert list(blobs.names()) == []


@pytest.mark.parametrize("wrong", [{"part_bytes": MIB}, {"part_bytes": PART + 1}, {"attempts": 0}])
def test_a_policy_that_no_store_would_take_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputRefused):
        ObjectPolicy(**wrong)  # type: ignore[arg-type]


def test_a_profile_that_is_not_there_is_said(s3_blobs: ObjectBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputRefused, match=r"nobody.*Correct AWS_PROFILE"):
        ObjectBlobs(replace(s3_blobs.access, bucket="em-unknown"), "x").read("y")


def test_google_is_asked_with_the_token_that_its_tools_find(
    gcs_blobs: ObjectBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    import google.auth
    from google.auth.exceptions import RefreshError, TransportError
    from google.oauth2.credentials import Credentials

    class Found(Credentials):  # type: ignore[misc]
        failure: Exception | None = None

        def before_request(self, request: Any, method: str, url: str, headers: Any) -> None:
            if self.failure:
                raise self.failure
            super().before_request(request, method, url, headers)

    found = Found(token="secret")
    monkeypatch.setattr(google.auth, "default", lambda **_: (found, "project"))
    auth = gcs_client._GoogleAuth()
    request = next(auth.auth_flow(httpx.Request("GET", "https://storage.googleapis.com/x")))
    assert request.headers["Authorization"] == "Bearer secret"
    found.failure = RefreshError("revoked", retryable=False)
    with pytest.raises(InputRefused, match=r"refused the credentials.*revoked"):
        next(auth.auth_flow(request))
    found.failure = TransportError("no network", retryable=True)
    with pytest.raises(Fault, match="no network"):
        next(auth.auth_flow(request))
    # An emulator is spoken to in the clear, and never with a token.
    gcs_blobs.write("x", b"1")
    client: Any = client_of(gcs_blobs.access)
    assert client._auth is None
