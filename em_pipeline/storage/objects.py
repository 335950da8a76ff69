"""Object stores: listings and single objects, for whoever may read without credentials or with them.

S3 and Google's XML API answer the same requests:
https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html and
https://cloud.google.com/storage/docs/xml-api/get-bucket-list.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus, urlencode

from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.http import Answer, PortalClient
from em_pipeline.storage.object_urls import ObjectEndpoints, bucket_and_key, https_url, is_object

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["ObjectEndpoints", "ObjectInfo", "ObjectListing", "ObjectStoreClient", "https_url"]

# Errors that pass: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
PASSING = frozenset({"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "OperationAborted"})

# Bytes, in no more digits than a file's offsets have (2⁶³).
SIZE = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True)
class ObjectInfo:
    """One object. `url` is its address in the scheme it was asked for by, as `RemoteFile.url` takes it.

    `size` is in bytes as stored (compressed, where it is kept with Content-Encoding gzip); None where the
    server does not say. `modified` is as the Last-Modified header would say it.
    """

    key: str
    url: str
    size: int | None
    etag: str | None
    modified: str | None


@dataclass(frozen=True)
class ObjectListing:
    """All objects below a prefix; with a delimiter, those directly below, and the prefixes of the others."""

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]


class ObjectStoreClient:
    """Asks object stores through `client`, which holds their endpoints. Safe to use from several threads.

    All methods raise like `PortalClient`; an answer that is cut, a web page, or a listing that does not hold
    together is an outage (`SourceUnavailable`). A refusal (403) is `InputRefused`, also for an object that
    does not exist: a store that may not be listed does not tell the two apart, and neither do we.
    """

    def __init__(self, client: PortalClient) -> None:
        self._client = client

    def list(self, address_prefix: str, delimiter: str = "") -> ObjectListing:
        """Everything whose address begins with `address_prefix` (s3:// or gs://), in the store's order.

        `prefixes` are keys, ending in the delimiter. Empty where there is nothing; `NotFound` where there is
        no such bucket. `InputRefused` for an http(s) address: only a store can be listed.
        """
        if not is_object(address_prefix):
            raise InputRefused(
                f"List {address_prefix}",
                "a web server has no listing of its files",
                "Give the address as s3:// or gs://",
            )
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        for page in self._pages(address_prefix, delimiter):
            objects += page.objects
            prefixes += page.prefixes
        return ObjectListing(tuple(objects), tuple(prefixes))

    def get(self, address: str) -> bytes | None:
        """The content of a small object, decoded where it is kept compressed; None where there is none.

        Absent is only what the store says is: 404 and 410, but not for a bucket that is not there
        (`NotFound`).
        """
        url = https_url(address, self._client.endpoints)

        def content(answer: Answer) -> bytes | None:
            if answer.status == 200:
                return answer.body
            if is_object(address) and _error_code(answer.body) == "NoSuchBucket":
                raise NotFound(f"Read {address}", "there is no such bucket", "Check the address")
            return None

        return self._client.ask(url, content, accept=frozenset({200, 404, 410}))

    def head(self, address: str) -> ObjectInfo | None:
        """What the store says of an object without sending it; None where there is none."""
        try:
            # Google decodes what is kept compressed, and hides its size, for those who do not take gzip.
            told = self._client.head(
                https_url(address, self._client.endpoints),
                accept_encoding="gzip" if is_object(address) else "identity",
            )
        except NotFound:
            return None
        key = bucket_and_key(address)[1] if is_object(address) else address.rpartition("/")[2]
        return ObjectInfo(key, address, told.size, told.etag, told.modified)

    def _pages(self, address: str, delimiter: str) -> Iterator[ObjectListing]:
        bucket, prefix = bucket_and_key(address)
        root = f"{address.partition('://')[0]}://{bucket}/"
        asked = {"list-type": "2", "prefix": prefix, "delimiter": delimiter, "encoding-type": "url"}
        last = ""
        while True:
            url = f"{https_url(root, self._client.endpoints)}?{urlencode(asked)}"
            page, token = self._client.ask(
                url, lambda answer: _page(answer.body, root), accept=frozenset({200})
            )
            last = _ascending(address, page, last, token)
            yield page
            if token is None:
                return
            asked["continuation-token"] = token


def _ascending(address: str, page: ObjectListing, last: str, token: str | None) -> str:
    """The page's last key. `SourceUnavailable` where it goes back, or goes on without having any key.

    Stores answer in the order of the keys' UTF-8 bytes, which is that of their code points; a listing that
    does not may never end.
    """
    keys = (*page.prefixes, *(entry.key for entry in page.objects))
    if (keys and min(keys) <= last) or (token is not None and not keys):
        raise SourceUnavailable(
            f"List {address}",
            f"its pages never end: after {last[:80]!r} came one without keys beyond it",
            "Nothing is concluded from a broken listing; try again later",
        )
    return max(keys, default=last)


def _page(body: bytes, root: str) -> tuple[ObjectListing, str | None]:
    """One page of a listing and the token of the next. Raises `Fault` where it is not whole."""
    answer = _parsed(body)
    encoded = answer.findtext("{*}EncodingType") == "url"

    def text(entry: "Element", name: str) -> str:
        value = entry.findtext(f"{{*}}{name}", "")
        return unquote_plus(value) if encoded else value

    objects = tuple(_object(text(entry, "Key"), entry, root) for entry in answer.iterfind("{*}Contents"))
    prefixes = tuple(text(entry, "Prefix") for entry in answer.iterfind("{*}CommonPrefixes"))
    count = answer.findtext("{*}KeyCount")
    if count is not None and count.strip() != str(len(objects) + len(prefixes)):
        raise Fault(f"a listing of {count:.40} keys that has {len(objects) + len(prefixes)}")
    more = answer.findtext("{*}IsTruncated")
    token = answer.findtext("{*}NextContinuationToken")
    if more not in ("true", "false") or (more == "true" and not token):
        raise Fault("a listing that does not say whether or where it goes on")
    return ObjectListing(objects, prefixes), token if more == "true" else None


def _object(key: str, entry: "Element", root: str) -> ObjectInfo:
    size, modified = entry.findtext("{*}Size", ""), entry.findtext("{*}LastModified", "")
    if not key or not SIZE.fullmatch(size):
        raise Fault(f"a listing with an object without key or size ({key!r}, {size[:40]!r})")
    try:
        date = (
            formatdate(int(datetime.fromisoformat(modified).timestamp()), usegmt=True) if modified else None
        )
    except (ValueError, OverflowError, OSError) as error:
        raise Fault(f"a listing with a date that is none ({modified[:80]!r})") from error
    return ObjectInfo(
        key=key,
        url=root + key,
        size=int(size),
        etag=entry.findtext("{*}ETag"),
        modified=date,
    )


def _parsed(body: bytes) -> "Element":
    from xml.etree.ElementTree import ParseError

    from defusedxml import ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        answer = ElementTree.fromstring(body)
    except (DefusedXmlException, ParseError, ValueError) as error:
        raise Fault(f"no whole listing ({error}); it begins {body[:80]!r}") from error
    name = answer.tag.rpartition("}")[2]
    if name == "Error":
        found = f"the store answered {answer.findtext('{*}Code')}: {answer.findtext('{*}Message')}"
        if answer.findtext("{*}Code") in PASSING:
            raise Fault(found)
        raise RecordInvalid("List objects", found, "Check the address")
    if name != "ListBucketResult":
        raise Fault(f"an element <{name}> in place of a listing")
    return answer


def _error_code(body: bytes) -> str | None:
    from xml.etree.ElementTree import ParseError

    from defusedxml import ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        return ElementTree.fromstring(body).findtext("{*}Code")
    except (DefusedXmlException, ParseError, ValueError):
        return None
