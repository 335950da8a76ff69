"""The client against a server of plain HTTP: what it makes of true answers, lies and failures."""

import json
import pickle
import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest

from em_client import (
    AnswerInvalid,
    ChunkCorrupt,
    EMClient,
    EMError,
    NotFound,
    RequestRefused,
    ServerFailed,
    ServerUnavailable,
)
from em_client.errors import AnswerDamaged

DATASET = "files-tiny"


def fail_with(status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> Any:
    def fault(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return fault


def problem(status: int, slug: str, headers: dict[str, str] | None = None) -> Any:
    document = {"slug": slug, "status": status, "tried": "Read it", "found": "something", "to_do": "Do this"}
    return fail_with(status, json.dumps(document).encode(), "application/problem+json", headers)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


class TestBlocks:
    def test_a_block_is_the_array(self, client: EMClient, volume: np.ndarray) -> None:
        block = client.get_block(DATASET, 1, 2, 3, size=(2, 3, 2))
        np.testing.assert_array_equal(block.data, volume[1:3, 2:5, 3:5])
        assert block.box == (slice(1, 3), slice(2, 5), slice(3, 5))
        assert (block.version, block.level, block.voxel_size_nm) == ("v1", 0, (40.0, 8.25, 8.25))
        assert (block.valid_fraction, block.states) == (1.0, {"data": 1})

    def test_it_is_clipped_at_the_far_edges(self, client: EMClient, volume: np.ndarray) -> None:
        np.testing.assert_array_equal(client.get_block(DATASET, 3, 0, 0), volume[3:])

    def test_the_data_is_native_writable_and_its_own(self, client: EMClient, volume: np.ndarray) -> None:
        block = client.get_block(DATASET, 0, 0, 0)
        assert block.data.dtype.isnative
        assert block.data.flags.c_contiguous
        block.data[:] = 0
        np.testing.assert_array_equal(client.get_block(DATASET, 0, 0, 0), volume)

    def test_numpy_integers_are_coordinates(self, client: EMClient, volume: np.ndarray) -> None:
        one = np.int64(1)
        block = client.get_block(DATASET, one, one, one, size=np.array([1, 1, 1]))
        assert block.data.item() == volume[1, 1, 1]

    def test_the_metadata_is_asked_for_once(self, client: EMClient, sidecar: Any) -> None:
        for _ in range(3):
            client.get_block(DATASET, 0, 0, 0)
        assert sum("metadata" in path for path in sidecar.requests) == 1

    def test_a_new_version_makes_it_ask_again(self, client: EMClient, sidecar: Any) -> None:
        client.get_block(DATASET, 0, 0, 0)
        sidecar.metadata["version"] = sidecar.headers["X-EM-Version"] = "v2"
        assert client.get_block(DATASET, 0, 0, 0).version == "v2"

    @pytest.mark.parametrize("start", [(0.5, 0, 0), ("0", 0, 0), (float("nan"), 0, 0), (None, 0, 0)])
    def test_only_whole_numbers_are_coordinates(self, client: EMClient, start: Any) -> None:
        with pytest.raises(RequestRefused, match="whole numbers"):
            client.get_block(DATASET, *start)

    @pytest.mark.parametrize("size", [(1, 1), 128, "128,128,128", (1.5, 1, 1)])
    def test_a_size_is_three_whole_numbers(self, client: EMClient, size: Any) -> None:
        with pytest.raises(RequestRefused, match="whole numbers"):
            client.get_block(DATASET, 0, 0, 0, size=size)


class TestLies:
    """A server whose answer contradicts itself or the metadata never gets its voxels through."""

    @pytest.mark.parametrize(
        ("header", "value"),
        [
            ("X-EM-Dtype", "int16"),
            ("X-EM-Dtype", "object"),
            ("X-EM-Shape", "5,7,6"),
            ("X-EM-Shape", "5,6"),
            ("X-EM-Shape", "-5,-6,7"),
            ("X-EM-Box", "0:5,0:6,1:8"),
            ("X-EM-Level", "1"),
            ("X-EM-Voxel-Size-Nm", "8.25,8.25,40.0"),
            ("X-EM-Voxel-Size-Nm", "nan,nan,nan"),
            ("X-EM-Valid-Fraction", "1.5"),
            ("X-EM-Valid-Fraction", "nan"),
            ("X-EM-States", ""),
            ("X-EM-CRC32", "00000000"),
            ("X-EM-CRC32", "no number"),
            ("X-EM-Version", "v2"),
            ("Content-Length", "10"),
            *((f"X-EM-{name}", None) for name in ("Shape", "Dtype", "Box", "Level", "CRC32", "Version")),
        ],
    )
    def test_headers(self, client: EMClient, sidecar: Any, header: str, value: str | None) -> None:
        sidecar.headers[header] = value
        with pytest.raises(AnswerInvalid):
            client.get_block(DATASET, 0, 0, 0)

    @pytest.mark.parametrize("change", ["flipped", "short", "long", "empty"])
    def test_bodies(self, client: EMClient, sidecar: Any, volume: np.ndarray, change: str) -> None:
        true = volume.astype("<u2").tobytes()
        flipped = bytes([true[0] ^ 1]) + true[1:]
        sidecar.body = {"flipped": flipped, "short": true[:-2], "long": true + b"\0\0", "empty": b""}[change]
        with pytest.raises(AnswerInvalid):
            client.get_block(DATASET, 0, 0, 0)

    def test_an_endless_body_is_left_at_the_promised_size(self, client: EMClient, sidecar: Any) -> None:
        def endless(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n")
            for name, value in {
                "X-EM-Version": "v1",
                "X-EM-Shape": "5,6,7",
                "X-EM-Dtype": "uint16",
                "X-EM-Box": "0:5,0:6,0:7",
                "X-EM-Level": "0",
                "X-EM-Voxel-Size-Nm": "40.0,8.25,8.25",
                "X-EM-Valid-Fraction": "1.0",
                "X-EM-States": "data=1",
                "X-EM-CRC32": "00000000",
            }.items():
                handler.wfile.write(f"{name}: {value}\r\n".encode())
            handler.wfile.write(b"\r\n")
            while True:
                handler.wfile.write(b"100\r\n" + bytes(256) + b"\r\n")

        sidecar.faults = [endless] * 4
        with pytest.raises(AnswerDamaged, match="longer than"):
            client.get_block(DATASET, 0, 0, 0)

    def test_voxels_outside_the_volume(self, client: EMClient) -> None:
        with pytest.raises(AnswerInvalid, match="outside"):
            client.get_block(DATASET, 99, 99, 0, size=(1, 1, 1))

    def test_voxels_of_a_level_that_does_not_exist(self, client: EMClient) -> None:
        with pytest.raises(AnswerInvalid, match="level 3"):
            client.get_block(DATASET, 0, 0, 0, level=3)

    def test_another_version_than_insisted_on(self, client: EMClient) -> None:
        with pytest.raises(AnswerInvalid, match="v0"):
            client.get_block(DATASET, 0, 0, 0, version="v0")

    def test_html_in_place_of_voxels(self, client: EMClient, sidecar: Any) -> None:
        sidecar.faults = [fail_with(200, b"<html>Welcome to the hotel</html>", "text/html")] * 4
        with pytest.raises(AnswerInvalid, match="sidecar"):
            client.get_block(DATASET, 0, 0, 0)

    @pytest.mark.parametrize(
        "document", [b"<html>", b"[]", b"null", b"{}", b'{"dataset_id": 1}', b"\xff\xfe", b"1" * 5000]
    )
    def test_metadata_that_is_none(self, client: EMClient, sidecar: Any, document: bytes) -> None:
        sidecar.answer = fail_with(200, document, "text/html")
        with pytest.raises(AnswerInvalid):
            client.metadata(DATASET)

    def test_metadata_of_another_dataset(self, client: EMClient) -> None:
        with pytest.raises(AnswerInvalid, match="about files-tiny"):
            client.metadata("files-other")

    def test_a_listing_that_leads_in_a_circle(self, client: EMClient, sidecar: Any) -> None:
        sidecar.pages = {"": {"datasets": [], "next": "b"}, "b": {"datasets": [], "next": "b"}}
        with pytest.raises(AnswerInvalid, match="leads back"):
            client.list_datasets()


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "slug", "kind"),
        [
            (404, "not-found", NotFound),
            (500, "chunk-corrupt", ChunkCorrupt),
            (422, "input-refused", RequestRefused),
            (413, "block-too-large", RequestRefused),
            (404, "no-such-path", RequestRefused),
            (500, "internal-error", ServerFailed),
            (418, "never-heard-of", RequestRefused),
        ],
    )
    def test_problems_become_errors_at_once(
        self, client: EMClient, sidecar: Any, status: int, slug: str, kind: type[EMError]
    ) -> None:
        sidecar.faults = [problem(status, slug)] * 4
        with pytest.raises(kind) as caught:
            client.get_block(DATASET, 0, 0, 0)
        assert type(caught.value) is kind
        assert str(caught.value) == "Read it: something. Do this"
        assert (caught.value.status, caught.value.slug) == (status, slug)
        assert len(sidecar.faults) == 3

    @pytest.mark.parametrize(
        "fault",
        [
            problem(503, "service-unavailable"),
            problem(503, "schema-mismatch", {"Retry-After": "0"}),
            fail_with(502, b"<html>Bad gateway</html>", "text/html"),
            fail_with(504, b"", "text/plain"),
            problem(429, "busy"),
            hang_up,
        ],
    )
    def test_outages_pass(self, client: EMClient, sidecar: Any, volume: np.ndarray, fault: Any) -> None:
        sidecar.faults = [fault] * 3
        np.testing.assert_array_equal(client.get_block(DATASET, 0, 0, 0), volume)
        assert not sidecar.faults

    def test_a_lasting_outage_is_said(self, client: EMClient, sidecar: Any) -> None:
        sidecar.faults = [problem(503, "service-unavailable")] * 10
        with pytest.raises(ServerUnavailable, match="something"):
            client.get_block(DATASET, 0, 0, 0)
        assert len(sidecar.faults) == 6

    @pytest.mark.parametrize(
        ("announced", "raised", "says"),
        [("420", ServerUnavailable, "no whole answer"), (None, AnswerDamaged, "ends after 100 of 420")],
        ids=["sized", "unsized"],
    )
    def test_a_body_cut_short_is_never_a_block(
        self, client: EMClient, sidecar: Any, announced: str | None, raised: type[EMError], says: str
    ) -> None:
        def cut(handler: BaseHTTPRequestHandler) -> None:
            handler.close_connection = True
            sidecar._block(handler, {"z": "0", "y": "0", "x": "0", "size": "9,9,9", "level": "0"})

        sidecar.headers["Content-Length"] = announced
        sidecar.body = bytes(100)
        sidecar.faults = [cut] * 4
        with pytest.raises(raised, match=says):
            client.get_block(DATASET, 0, 0, 0)
        assert not sidecar.faults

    def test_a_flipped_bit_on_the_way_is_asked_for_again(
        self, client: EMClient, sidecar: Any, volume: np.ndarray
    ) -> None:
        def flip_once(handler: BaseHTTPRequestHandler) -> None:
            true = volume.astype("<u2").tobytes()
            sidecar.body = true[:-1] + bytes([true[-1] ^ 128])
            sidecar._block(handler, {"z": "0", "y": "0", "x": "0", "size": "9,9,9", "level": "0"})
            sidecar.body = None

        sidecar.faults = [flip_once]
        np.testing.assert_array_equal(client.get_block(DATASET, 0, 0, 0), volume)

    def test_the_server_says_how_long_to_wait(
        self, client: EMClient, sidecar: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pauses: list[float] = []
        monkeypatch.setattr("em_client.transport.time.sleep", pauses.append)
        sidecar.faults = [problem(503, "busy", {"Retry-After": wait}) for wait in ("2", "86400", "tomorrow")]
        client.get_block(DATASET, 0, 0, 0)
        assert pauses[:2] == [2.0, 10.0]
        assert pauses[2] < 0.1

    def test_404_of_another_server_is_not_missing_data(self, client: EMClient, sidecar: Any) -> None:
        sidecar.faults = [fail_with(404, b"<html>nginx</html>", "text/html")]
        with pytest.raises(AnswerInvalid, match="nginx"):
            client.get_block(DATASET, 0, 0, 0)

    def test_redirects_are_not_followed(self, client: EMClient, sidecar: Any) -> None:
        sidecar.faults = [fail_with(302, b"", "text/html", {"Location": "http://127.0.0.1:9/"})]
        with pytest.raises(AnswerInvalid, match="302"):
            client.get_block(DATASET, 0, 0, 0)

    def test_nobody_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("em_client.transport.FIRST_PAUSE_S", 0.001)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            with EMClient(url) as client, pytest.raises(ServerUnavailable, match="em serve"):
                client.health()

    def test_a_silent_server_times_out(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            started = time.monotonic()
            with EMClient(url, timeout_s=0.1, retries=0) as client, pytest.raises(ServerUnavailable):
                client.health()
            assert time.monotonic() - started < 20

    @pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "", "http://a:port"])
    def test_addresses_that_are_none(self, url: str) -> None:
        with pytest.raises(RequestRefused):
            EMClient(url).health()


class TestUse:
    def test_listings_are_paged_through(self, client: EMClient, sidecar: Any) -> None:
        def entry(name: str) -> dict[str, Any]:
            known = {
                "dataset_id": name,
                "source": "files",
                "version": "v1",
                "shape": [5, 6, 7],
                "dtype": "uint16",
            }
            return {**known, "voxel_size_nm": [40, 8.25, 8.25], "title": None, "something_new": 1}

        sidecar.pages = {
            "": {"datasets": [entry("a"), entry("b")], "next": "b"},
            "b": {"datasets": [entry("c")], "next": None},
        }
        found = client.list_datasets()
        assert [dataset.dataset_id for dataset in found] == ["a", "b", "c"]
        assert found[0].voxel_size_nm == (40.0, 8.25, 8.25)

    def test_metadata_keeps_the_evidence(self, client: EMClient) -> None:
        field = client.metadata(DATASET).fields["core.volume_shape.x"]
        assert field.value == 7
        assert field.evidence is not None
        assert (field.evidence.where, field.evidence.raw) == ("tiny.tif", "7")

    def test_a_closed_client_opens_again(self, client: EMClient, volume: np.ndarray) -> None:
        client.get_block(DATASET, 0, 0, 0)
        client.close()
        np.testing.assert_array_equal(client.get_block(DATASET, 0, 0, 0), volume)

    def test_it_is_pickled_for_workers(self, client: EMClient, volume: np.ndarray) -> None:
        client.get_block(DATASET, 0, 0, 0)
        with pickle.loads(pickle.dumps(client)) as copy:
            np.testing.assert_array_equal(copy.get_block(DATASET, 0, 0, 0), volume)

    def test_errors_are_pickled_for_workers(self) -> None:
        error = pickle.loads(pickle.dumps(NotFound("a", "b", "c", status=404, slug="not-found")))
        assert (str(error), error.status, error.slug) == ("a: b. c", 404, "not-found")

    def test_a_forked_worker_opens_its_own_connection(self, client: EMClient, sidecar: Any) -> None:
        client.get_block(DATASET, 0, 0, 0)
        client._transport._pid -= 1  # what a fork changes
        before = client._transport._http
        client.get_block(DATASET, 0, 0, 0)
        assert before is not None
        assert client._transport._http is not before
        assert not before.is_closed
        before.close()
