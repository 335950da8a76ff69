"""A small sidecar of plain HTTP that tells the truth until a test makes it lie or fail."""

import json
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from em_client import EMClient

Fault = Callable[[BaseHTTPRequestHandler], None]

VOLUME = np.random.default_rng(7).integers(0, 2**16, (5, 6, 7), dtype=np.uint16)
DATASET = "files-tiny"
LEVEL: dict[str, Any] = {
    "level": 0,
    "shape": [5, 6, 7],
    "chunk_shape": [128, 128, 128],
    "dtype": "uint16",
    "voxel_size_nm": [40.0, 8.25, 8.25],
    "translation_nm": [0.0, 0.0, 0.0],
}


def metadata_document() -> dict[str, Any]:
    evidence = {"origin": "file", "where": "tiny.tif", "field": "ImageWidth", "extractor": "tiff", "raw": "7"}
    return {
        "dataset_id": DATASET,
        "source": "files",
        "version": "v1",
        "voxel_size_nm": LEVEL["voxel_size_nm"],
        "levels": [dict(LEVEL)],
        "statistics": {"min": 0, "max": 65535},
        "fields": {"core.volume_shape.x": {"value": 7, "evidence": evidence}},
        "conflicts": [],
        "checks": [{"name": "shape", "passed": True, "severity": "blocking", "message": "as planned"}],
    }


class TinySidecar:
    """What the server answers with. `faults` are used up first, one per request to `/api/v1/block`.

    `headers` replace those of a block (None removes one), `body` what it carries, `metadata` the document.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.headers: dict[str, str | None] = {}
        self.body: bytes | None = None
        self.metadata = metadata_document()
        self.pages: dict[str, Any] = {"": {"datasets": [], "next": None}}
        self.requests: list[str] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/api/v1/block" and self.faults:
            self.faults.pop(0)(handler)
        elif url.path == "/api/v1/block":
            self._block(handler, query)
        elif url.path == "/api/v1/datasets":
            send(handler, 200, json.dumps(self.pages[query.get("after", "")]).encode())
        else:
            send(handler, 200, json.dumps(self.metadata).encode())

    def _block(self, handler: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        start = [int(query[axis]) for axis in "zyx"]
        size = [int(n) for n in query["size"].split(",")]
        stop = [min(a + n, m) for a, n, m in zip(start, size, VOLUME.shape, strict=True)]
        box = list(zip(start, stop, strict=True))
        voxels = VOLUME[tuple(slice(*edge) for edge in box)].astype("<u2").tobytes()
        headers: dict[str, str | None] = {
            "X-EM-Version": "v1",
            "X-EM-Shape": ",".join(str(b - a) for a, b in box),
            "X-EM-Dtype": "uint16",
            "X-EM-Box": ",".join(f"{a}:{b}" for a, b in box),
            "X-EM-Level": query["level"],
            "X-EM-Voxel-Size-Nm": "40.0,8.25,8.25",
            "X-EM-Valid-Fraction": "1.0",
            "X-EM-States": "data=1",
            "X-EM-CRC32": f"{zlib.crc32(voxels):08x}",
        }
        headers |= self.headers
        send(handler, 200, voxels if self.body is None else self.body, headers, "application/octet-stream")


def send(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str | None] | None = None,
    kind: str = "application/json",
) -> None:
    handler.send_response(status)
    complete = {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}
    for name, value in complete.items():
        if value is not None:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def sidecar() -> Iterator[TinySidecar]:
    tiny = TinySidecar()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            tiny.answer(self)

        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None: ...  # clients that hang up are part of the tests

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        tiny.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield tiny
        server.shutdown()
        thread.join()


@pytest.fixture
def client(sidecar: TinySidecar, monkeypatch: pytest.MonkeyPatch) -> Iterator[EMClient]:
    monkeypatch.setattr("em_client.transport.FIRST_PAUSE_S", 0.001)
    with EMClient(sidecar.url, timeout_s=5) as em:
        yield em


@pytest.fixture
def volume() -> np.ndarray:
    return VOLUME
