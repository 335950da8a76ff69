"""A public S3 bucket over a folder, as anonymous readers see one: listings, objects and their errors.

Answers follow the S3 API reference: ListObjectsV2 (prefix, delimiter, pages), GetObject, HeadObject and the
XML error documents.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

from em_pipeline.demo.replay import Reply, Request, text

LARGEST_PAGE = 1000
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True)
class StoredObject:
    """One key. `etag` is the MD5 of the bytes in quotes, as S3 gives for objects put in one part."""

    key: str
    path: Path
    etag: str

    @cached_property
    def size(self) -> int:
        return self.path.stat().st_size

    @cached_property
    def modified(self) -> str:
        return datetime.fromtimestamp(self.path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Bucket:
    """Every file below `folder` is an object; `name` is the bucket's. Listings come `page` keys at a time."""

    def __init__(self, name: str, folder: Path, *, page: int = LARGEST_PAGE) -> None:
        self.name = name
        self.folder = folder
        self.page = page

    @cached_property
    def objects(self) -> dict[str, StoredObject]:
        """By key, in the order that S3 lists: that of the keys' UTF-8 bytes."""
        files = sorted(
            (path for path in self.folder.rglob("*") if path.is_file()),
            key=lambda path: path.relative_to(self.folder).as_posix().encode(),
        )
        return {
            (key := path.relative_to(self.folder).as_posix()): StoredObject(
                key, path, f'"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}"'
            )
            for path in files
        }

    def answer(self, request: Request) -> Reply:
        """What S3 says to a path-style request, `/<bucket>/<key>`; without a key it is a listing."""
        key = request.path.removeprefix(f"/{self.name}").removeprefix("/")
        if not key:
            return self._listing(request)
        found = self.objects.get(key)
        if found is None:
            return _error(404, "NoSuchKey", "The specified key does not exist.", key)
        return Reply(found.path, headers={"ETag": found.etag})

    def _listing(self, request: Request) -> Reply:
        asked = {name: values[0] for name, values in request.query.items()}
        if asked.get("list-type") != "2":
            return _error(400, "InvalidArgument", "Only ListObjectsV2 is answered here.", "")
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        size = min(self.page, int(asked.get("max-keys", LARGEST_PAGE)))
        after = asked.get("continuation-token") or asked.get("start-after", "")
        entries = [entry for entry in self._entries(prefix, delimiter) if entry.encode() > after.encode()]
        encoded = quote if asked.get("encoding-type") == "url" else escape
        shown = entries[:size]
        parts = [
            f"<Name>{self.name}</Name>",
            f"<Prefix>{encoded(prefix)}</Prefix>",
            f"<KeyCount>{len(shown)}</KeyCount>",
            f"<MaxKeys>{size}</MaxKeys>",
            f"<IsTruncated>{str(len(entries) > size).lower()}</IsTruncated>",
        ]
        if len(entries) > size:
            parts.append(f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>")
        parts += [self._entry(entry, encoded(entry)) for entry in shown]
        return _xml(f'<ListBucketResult xmlns="{NAMESPACE}">{"".join(parts)}</ListBucketResult>')

    def _entries(self, prefix: str, delimiter: str) -> Iterator[str]:
        """Keys below `prefix`, those that share a next `delimiter` rolled up into one common prefix."""
        seen = ""
        for key in self.objects:
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if not found:
                yield key
            elif (common := f"{prefix}{head}{delimiter}") != seen:
                seen = common
                yield common

    def _entry(self, entry: str, shown: str) -> str:
        stored = self.objects.get(entry)
        if stored is None:
            return f"<CommonPrefixes><Prefix>{shown}</Prefix></CommonPrefixes>"
        return (
            f"<Contents><Key>{shown}</Key><LastModified>{stored.modified}</LastModified>"
            f"<ETag>{escape(stored.etag, {chr(34): '&quot;'})}</ETag><Size>{stored.size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )


def _xml(body: str, status: int = 200) -> Reply:
    return text(f'<?xml version="1.0" encoding="UTF-8"?>\n{body}', "application/xml", status)


def _error(status: int, code: str, message: str, key: str) -> Reply:
    key = f"<Key>{escape(key)}</Key>" if key else ""
    return _xml(f"<Error><Code>{code}</Code><Message>{message}</Message>{key}</Error>", status)
