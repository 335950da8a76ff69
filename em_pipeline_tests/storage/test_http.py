"""The portal client against a server that fails."""

import gzip
import socket
import time
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from em_pipeline.domain.errors import EmError, InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.storage.answers import retry_after
from em_pipeline.storage.http import HeadResult, PortalClient
from em_pipeline.storage.transport import HttpPolicy, Transport
from em_pipeline_tests.portals.faulty import MODIFIED, Fault, FaultyServer, faulty_server

JSON = b'{"name": "\xc2\xb5", "n": [1, 2]}'
HTML = b"\n <!doctype HTML><p>Down for maintenance"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server({"/a": JSON, "/latin": "µ".encode("latin-1"), "/page": HTML}) as running:
        yield running


@pytest.fixture
def client() -> Iterator[PortalClient]:
    with PortalClient(connections=2, timeout_s=20, retries=2, backoff_s=0.01, max_bytes=5000) as made:
        yield made


@pytest.fixture
def hasty() -> Iterator[PortalClient]:
    """For servers that fall silent; so soon, a busy machine may look like one."""
    with PortalClient(connections=2, timeout_s=0.3, retries=3, backoff_s=0.01) as made:
        yield made


def test_json_text_and_posts(server: FaultyServer, client: PortalClient) -> None:
    document = {"name": "µ", "n": [1, 2]}
    assert client.get_json(f"{server.url}/a") == document
    assert client.post_json(f"{server.url}/a", {"q": 1}) == document
    assert client.get_text(f"{server.url}/page") == HTML.decode()
    server.faults = [Fault(headers={"Content-Type": "text/plain; charset=iso-8859-1"})]
    assert client.get_text(f"{server.url}/latin") == "µ"
    packed = Fault(body=gzip.compress(JSON), headers={"Content-Encoding": "gzip"})
    server.faults = [packed]
    assert client.get_json(f"{server.url}/a") == document
    assert len({request.client for request in server.requests}) == 1


def test_connections_that_are_refused_are_counted_by_themselves() -> None:
    said: list[str] = []
    policy = HttpPolicy(retries=5, connect_retries=1, backoff_s=0.01)
    with socket.socket() as taken, Transport(policy, said.append) as transport:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a"
        with pytest.raises(SourceUnavailable, match="2 attempts failed") as raised:
            transport.retrying(url, lambda: transport.exchange("GET", url, {}).__enter__())
    assert raised.value.to_do == "Nothing is known about the data; try again later"
    assert len(said) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(reset_after=3),
        Fault(drop=3),
        Fault(chunked=True, drop=3),
        Fault(headers={"Content-Encoding": "gzip"}),
        Fault(status=302, headers={"Location": "/a"}),
    ],
)
def test_a_passing_fault_is_cured(server: FaultyServer, client: PortalClient, fault: Fault) -> None:
    server.faults = [fault]
    assert client.get_json(f"{server.url}/a")["n"] == [1, 2]


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (Fault(status=503), SourceUnavailable, "3 attempts failed, the last with: HTTP 503"),
        (Fault(status=404), NotFound, "HTTP 404"),
        (Fault(status=403), InputRefused, "HTTP 403"),
        (Fault(body=HTML), RecordInvalid, "an HTML page in place of JSON.*maintenance"),
        (Fault(body=b"{'a'" + b"x" * 500), RecordInvalid, "no JSON .*begins \"{'a'x{196}\""),
        (Fault(body=b""), RecordInvalid, "no JSON"),
        (Fault(body=b"[" * 4000), RecordInvalid, "no JSON"),
        (Fault(body=b" " * 6000), RecordInvalid, "larger than 5000 bytes"),
        (Fault(status=301, headers={"Location": "file:///etc/passwd"}), RecordInvalid, "not http"),
        (Fault(status=301, headers={"Location": "gopher://x/"}), RecordInvalid, "not http"),
        (Fault(status=301, headers={"Location": "/a"}), RecordInvalid, "more than 5 redirects"),
    ],
)
def test_a_lasting_fault_is_a_clear_error(
    server: FaultyServer, client: PortalClient, fault: Fault, error: type[EmError], said: str
) -> None:
    server.always = fault
    with pytest.raises(error, match=said) as caught:
        client.get_json(f"{server.url}/a")
    assert f"{server.url}/a" in str(caught.value)


def test_silence_is_cured_where_it_passes_and_an_outage_where_it_lasts(
    server: FaultyServer, hasty: PortalClient
) -> None:
    server.faults = [Fault(stall_after=3)]
    assert hasty.get_json(f"{server.url}/a")["n"] == [1, 2]
    server.always = Fault(stall_after=0)
    with pytest.raises(
        SourceUnavailable, match=rf"{server.url}/a: 4 attempts .*(no bytes for|within) 0\.\d s"
    ):
        hasty.get_json(f"{server.url}/a")


def test_text_in_another_charset_than_declared_is_refused(server: FaultyServer, client: PortalClient) -> None:
    with pytest.raises(RecordInvalid, match="not text in utf-8"):
        client.get_text(f"{server.url}/latin")
    with pytest.raises(InputRefused):
        client.get_text("file:///etc/passwd")
    with pytest.raises(InputRefused):
        client.get_text("http://")


@pytest.mark.parametrize("status", [405, 501])
def test_head_falls_back_to_one_byte(server: FaultyServer, client: PortalClient, status: int) -> None:
    whole = HeadResult(len(JSON), server.etags["/a"], MODIFIED, False)
    assert client.head(f"{server.url}/a") == whole
    server.faults = [Fault(status=status)]
    assert client.head(f"{server.url}/a") == HeadResult(len(JSON), server.etags["/a"], MODIFIED, True)
    assert server.requests[-1].range == "bytes=0-0"
    server.ranges = False
    server.faults = [Fault(status=status)]
    assert client.head(f"{server.url}/a") == whole
    with pytest.raises(NotFound):
        client.head(f"{server.url}/none")


def test_a_web_page_is_no_file(server: FaultyServer, client: PortalClient) -> None:
    page = {"Content-Type": "text/html; charset=utf-8"}
    server.faults = [Fault(headers=page), Fault(headers=page), None]
    assert client.head(f"{server.url}/a").size == len(JSON)
    server.faults = [Fault(status=405), Fault(headers=page), None]
    assert client.head(f"{server.url}/a").size == len(JSON)
    server.always = Fault(headers=page)
    with pytest.raises(SourceUnavailable, match="a web page in place of the file"):
        client.head(f"{server.url}/a")


def test_a_part_of_a_file_comes_exactly_or_not_at_all(server: FaultyServer, client: PortalClient) -> None:
    url = f"{server.url}/a"
    assert client.get_range(url, 3, 5) == JSON[3:8]
    server.faults = [Fault(drop=2), Fault(status=503), None]
    assert client.get_range(url, 0, len(JSON)) == JSON
    server.faults = [Fault(ignore_range=True)]
    with pytest.raises(RecordInvalid, match="sent no part"):
        client.get_range(url, 3, 5)
    with pytest.raises((RecordInvalid, SourceUnavailable)):
        client.get_range(url, 3, len(JSON))
    server.ranges = False
    with pytest.raises(SourceUnavailable, match="web page"):
        client.get_range(f"{server.url}/page", 0, 4)
    with pytest.raises(NotFound):
        client.get_range(f"{server.url}/none", 0, 4)


def test_a_redirect_is_followed_to_the_fragment_it_belongs_to(
    server: FaultyServer, client: PortalClient
) -> None:
    server.faults = [
        Fault(status=301, headers={"Location": "/page#!%7B%22a%22:1%7D"}),
        Fault(status=302, headers={"Location": "/a"}),
    ]
    assert unquote(client.final_url(f"{server.url}/short")) == f'{server.url}/a#!{{"a":1}}'
    assert [request.method for request in server.requests] == ["HEAD"] * 3
    server.faults = [Fault(status=301, headers={"Location": "file:///etc/passwd"})]
    with pytest.raises(RecordInvalid, match="not http"):
        client.final_url(f"{server.url}/short")


def test_the_rate_is_kept(server: FaultyServer) -> None:
    began = time.monotonic()
    with PortalClient(connections=2, requests_per_second=20) as client:
        for _ in range(5):
            client.get_json(f"{server.url}/a")
    assert time.monotonic() - began >= 4 / 20


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert retry_after("7") == 7
    assert retry_after(MODIFIED) == 0
    assert retry_after("soon") is None
    assert retry_after(None) is None


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"connections": 0},
        {"connections": 1, "requests_per_second": 0.0},
        {"connections": 1, "retries": -1},
    ):
        with pytest.raises(InputRefused):
            PortalClient(**wrong)  # type: ignore[arg-type]
