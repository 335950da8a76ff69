"""Where the objects of s3:// and gs:// addresses are asked for."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from em_pipeline.domain.errors import InputRefused

if TYPE_CHECKING:
    from em_pipeline.settings import Settings

# Wide enough for names older than today's rules, too narrow for anything that could change the host.
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
REGION = re.compile(r"(?:[a-z0-9-]+)?")
AWS_HOST = re.compile(r"(?:.+\.)?s3(?:[.-](?P<region>[a-z0-9-]+))?\.amazonaws\.com")
BASE = re.compile(r"https?://[^/@?#\s\\]+(?:/[^?#\s\\]*)?")
GOOGLE = "https://storage.googleapis.com"
STORES = ("s3", "gs")


def _is_base(base: str) -> bool:
    """Whether keys can be appended to `base`: http(s), a host, a port or none, a path or none, no more."""
    try:
        parts = urlsplit(base)
        named = bool(parts.hostname) and parts.port != 0  # a port that is no number raises
    except ValueError:
        return False
    return named and BASE.fullmatch(base) is not None


@dataclass(frozen=True)
class ObjectEndpoints:
    """Who answers for s3:// and gs:// addresses.

    `s3` is the http(s) base of another server that speaks S3, asked path-style; empty for AWS, where
    `s3_region` is the bucket's region, empty for AWS to find it. `gs` is the base of Google's XML API.
    `s3_anonymous` off signs requests to S3 with the credentials that botocore finds. `setting` names the one
    setting that gave both bases, empty where each has its own.
    """

    s3: str = ""
    s3_region: str = ""
    gs: str = GOOGLE
    s3_anonymous: bool = True
    setting: str = ""

    def __post_init__(self) -> None:
        for scheme, base in (("s3", self.s3), ("gs", self.gs)):
            if base and not _is_base(base):
                raise InputRefused(
                    "Read the settings for object stores",
                    f"{base!r} is no http(s) address of a server",
                    f"Set {self.setting_of(scheme)} to http(s)://<host>, with :<port> where it has another",
                )
        if not REGION.fullmatch(self.s3_region):
            raise InputRefused(
                "Read the settings for object stores", f"{self.s3_region!r} is no region", "Such as eu-west-1"
            )

    def setting_of(self, scheme: str) -> str:
        """The setting that says who answers for `scheme`."""
        return self.setting or {"s3": "EM_S3_ENDPOINT", "gs": "EM_GS_ENDPOINT"}[scheme]

    def where_given(self, *, s3: str = "", gs: str = "") -> "ObjectEndpoints":
        """These, but for the bases that are given."""
        return replace(self, s3=s3 or self.s3, gs=gs or self.gs)

    def stores_bytes_as_sent(self, url: str) -> bool:
        """Whether `url` is of a store that sends an object's bytes as they were put, encoded ones too."""
        return self.is_s3(url) or _below(url, self.gs) or _below(url, GOOGLE)

    def is_s3(self, url: str) -> bool:
        """Whether `url` is of AWS S3, or of the server that stands in for it."""
        return _below(url, self.s3) or AWS_HOST.fullmatch(urlsplit(url).hostname or "") is not None


# The stores as anyone may read them.
PUBLIC = ObjectEndpoints()


def endpoints_of(settings: "Settings") -> ObjectEndpoints:
    """The stores as the settings say. Raises `InputRefused` for bases and regions that are none."""
    return ObjectEndpoints(
        s3=settings.s3_endpoint,
        s3_region=settings.s3_region,
        gs=settings.gs_endpoint,
        s3_anonymous=settings.s3_anonymous,
    )


def https_url(address: str, endpoints: ObjectEndpoints) -> str:
    """The http(s) URL of what `address` names: s3://bucket/key, gs://bucket/key; http(s) as it is.

    Keys are taken as they are, not as percent-encoded. Raises `InputRefused` for other addresses.
    Virtual-hosted and path-style S3: https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html;
    Google's XML API: https://cloud.google.com/storage/docs/request-endpoints.
    """
    scheme = address.partition("://")[0].lower()
    if scheme in ("http", "https"):
        return address
    bucket, key = bucket_and_key(address)
    path = quote(key)
    if scheme == "gs":
        return f"{endpoints.gs.rstrip('/')}/{bucket}/{path}"
    if endpoints.s3:
        return f"{endpoints.s3.rstrip('/')}/{bucket}/{path}"
    host = f"s3.{endpoints.s3_region}.amazonaws.com" if endpoints.s3_region else "s3.amazonaws.com"
    # A bucket with dots has no certificate that fits it as a host.
    return f"https://{host}/{bucket}/{path}" if "." in bucket else f"https://{bucket}.{host}/{path}"


def is_object(address: str) -> bool:
    """Whether `address` is s3:// or gs://."""
    return address.partition("://")[0].lower() in STORES


def bucket_and_key(address: str) -> tuple[str, str]:
    """Bucket and key of an s3:// or gs:// address. Raises `InputRefused` where it is none."""
    scheme, found, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    # Servers and clients resolve such parts of a path, so another object would be asked for.
    dots = {".", ".."} & set(key.split("/"))
    known = bool(found) and scheme.lower() in STORES
    if not known or not BUCKET.fullmatch(bucket) or dots:
        why = f": {bucket!r} is no name of a bucket" if known and not dots else ""
        raise InputRefused(
            f"Read {address!r} as the address of an object",
            f"it is neither s3://<bucket>/<key> nor gs://<bucket>/<key>, nor http(s){why}",
            "Give the bucket's name and the object's key as the store lists them",
        )
    return bucket, key


def _below(url: str, base: str) -> bool:
    return bool(base) and url.startswith(base.rstrip("/") + "/")
