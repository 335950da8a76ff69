"""A server on loopback that speaks as much of Google Cloud Storage's JSON API as we and tensorstore use.

Objects: get (metadata, media, ranges), list, delete, rewrite; uploads of kind media and resumable; the
precondition ifGenerationMatch. https://cloud.google.com/storage/docs/json_api/v1
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

from em_pipeline_tests.portals.loopback import LoopbackHandler, LoopbackServer

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_generations = itertools.count(1_700_000_000_000_000)
# Parts of a resumable upload but the last are multiples of this.
QUANTUM = 256 << 10


@dataclass(frozen=True)
class Stored:
    content: bytes
    generation: str = field(default_factory=lambda: str(next(_generations)))
    updated: datetime = field(default_factory=lambda: datetime.now(UTC))

    def told(self, bucket: str, name: str) -> dict[str, str]:
        md5 = hashlib.md5(self.content, usedforsecurity=False).digest()
        crc = google_crc32c.value(self.content).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(self.content)),
            "generation": self.generation,
            "metageneration": "1",
            "updated": self.updated.isoformat().replace("+00:00", "Z"),
            "md5Hash": base64.b64encode(md5).decode(),
            "crc32c": base64.b64encode(crc).decode(),
        }


@dataclass
class Session:
    bucket: str
    name: str
    arrived: bytearray = field(default_factory=bytearray)


class GcsServer(LoopbackServer):
    """`buckets` maps names to objects. `page` is the most entries of one page of a listing."""

    def __init__(self, *buckets: str) -> None:
        self.buckets: dict[str, dict[str, Stored]] = {name: {} for name in buckets}
        self.sessions: dict[str, Session] = {}
        self.page = 1000
        self.rewrites_left = 0
        owner = self

        class Handler(_Handler):
            gcs = owner

        super().__init__(Handler)


class _Handler(LoopbackHandler):
    gcs: GcsServer

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def do_PUT(self) -> None:
        self.serve()

    def do_DELETE(self) -> None:
        self.serve()

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, asked = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        with self.gcs.lock:
            upload = re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path)
            if upload:
                self.upload(upload[1], asked, body)
                return
            match = re.fullmatch(
                r"/storage/v1/b/([^/]+)/o(?:/([^/]+)(?:/rewriteTo/b/([^/]+)/o/([^/]+))?)?", path
            )
            bucket = self.gcs.buckets.get(match[1]) if match else None
            if match is None or bucket is None:
                self.answer(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
            elif match[2] is None:
                self.listing(match[1], bucket, asked)
            else:
                self.object(match, bucket, asked)

    def listing(self, bucket: str, objects: dict[str, Stored], asked: dict[str, str]) -> None:
        size = min(self.gcs.page, int(asked.get("maxResults", "1000")))
        after = asked.get("pageToken", "")
        first, end = asked.get("startOffset", ""), asked.get("endOffset")
        names = sorted(
            name
            for name in objects
            if name.startswith(asked.get("prefix", ""))
            and name > after
            and name >= first
            and (end is None or name < end)
        )
        page: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [objects[name].told(bucket, name) for name in names[:size]],
        }
        if len(names) > size:
            page["nextPageToken"] = names[size - 1]
        self.answer(200, page)

    def object(self, match: re.Match[str], objects: dict[str, Stored], asked: dict[str, str]) -> None:
        name = unquote(match[2])
        stored = objects.get(name)
        if stored is None:
            self.answer(404, {"error": {"code": 404, "message": f"No such object: {match[1]}/{name}"}})
        elif self.unmet(stored, asked):
            self.answer(412, {"error": {"code": 412}})
        elif self.command == "DELETE":
            del objects[name]
            self.answer(204, None)
        elif self.command == "POST":
            if self.gcs.rewrites_left:  # a large object is copied in several requests
                self.gcs.rewrites_left -= 1
                self.answer(200, {"done": False, "rewriteToken": "more"})
                return
            target = unquote(match[4])
            objects[target] = Stored(stored.content)
            self.answer(200, {"done": True, "resource": objects[target].told(match[3], target)})
        elif asked.get("alt") == "media":
            self.media(stored)
        else:
            self.answer(200, stored.told(match[1], name))

    def media(self, stored: Stored) -> None:
        size = len(stored.content)
        told = {
            "x-goog-generation": stored.generation,
            "Last-Modified": format_datetime(stored.updated, usegmt=True),
        }
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None or wanted[0] == "bytes=-":
            self.answer(200, stored.content, told)
            return
        if wanted[1]:
            first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        else:
            first, last = max(0, size - int(wanted[2])), size - 1
        if first > last:
            self.answer(416, b"", told)
            return
        told["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.answer(206, stored.content[first : last + 1], told)

    def upload(self, bucket: str, asked: dict[str, str], body: bytes) -> None:
        if bucket not in self.gcs.buckets:
            self.answer(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
        elif "upload_id" in asked:
            self.resume(asked["upload_id"], body)
        elif asked["uploadType"] == "resumable":
            session = secrets.token_hex(16)
            self.gcs.sessions[session] = Session(bucket, asked["name"])
            place = f"http://{self.headers['Host']}{self.path}&upload_id={session}"
            self.answer(200, b"", {"Location": place})
        elif self.unmet(self.gcs.buckets[bucket].get(asked["name"]), asked):
            self.answer(412, {"error": {"code": 412}})
        else:
            self.put(bucket, asked["name"], body)

    def resume(self, session_id: str, body: bytes) -> None:
        session = self.gcs.sessions.get(session_id)
        if session is None:
            self.answer(404, {"error": {"code": 404}})
            return
        if self.command == "DELETE":
            del self.gcs.sessions[session_id]
            self.answer(499, b"")
            return
        match = _CONTENT_RANGE.fullmatch(self.headers["Content-Range"])
        assert match is not None
        total = None if match[3] == "*" else int(match[3])
        finished = self.gcs.buckets[session.bucket].get(session.name)
        if total is not None and finished is not None and len(session.arrived) == total:
            self.answer(200, finished.told(session.bucket, session.name))
            return
        if match[1] is not None:
            assert int(match[1]) == len(session.arrived), "bytes out of order"
            assert int(match[2]) - int(match[1]) + 1 == len(body)
            assert total == int(match[2]) + 1 or len(body) % QUANTUM == 0
            session.arrived += body
        if total is not None and len(session.arrived) == total:
            self.put(session.bucket, session.name, bytes(session.arrived))
            return
        count = len(session.arrived)
        self.answer(308, b"", {"Range": f"bytes=0-{count - 1}"} if count else {})

    def put(self, bucket: str, name: str, content: bytes) -> None:
        self.gcs.buckets[bucket][name] = Stored(content)
        self.answer(200, self.gcs.buckets[bucket][name].told(bucket, name))

    def unmet(self, stored: Stored | None, asked: dict[str, str]) -> bool:
        wanted = asked.get("ifGenerationMatch")
        return wanted is not None and wanted != (stored.generation if stored else "0")

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


@contextlib.contextmanager
def gcs_server(*buckets: str) -> Iterator[GcsServer]:
    """A running server, stopped at the end of the block."""
    with GcsServer(*buckets) as server:
        yield server
