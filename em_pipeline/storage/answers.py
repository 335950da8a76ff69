"""What addresses, redirects, statuses and first bytes of answers mean (RFC 9110, and RFC 6585 for 429)."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import quote

from em_pipeline.domain.errors import EmError, Gone, InputRefused, NotFound, RecordInvalid
from em_pipeline.storage.faults import Fault

if TYPE_CHECKING:
    import httpx

# A portal's answer that says "later" or "broken just now": Request Timeout, Too Early, Too Many Requests.
ASK_AGAIN = frozenset({408, 425, 429})
WEB_PAGE = "the server answered with a web page in place of the file"
WEB_PAGES = (".html", ".htm", ".xhtml")


def check_url(url: str, asked: str) -> "httpx.URL":
    """`url` as httpx reads it, or `InputRefused` where it is not http(s) or has no host."""
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputRefused(f"Fetch {asked}", f"{url!r} is not a URL: {error}", "") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputRefused(f"Fetch {asked}", f"{url!r} is not an http(s) URL", "")
    return parsed


def redirected(asked: str, base: "httpx.URL", location: str) -> "httpx.URL":
    """Where a redirect leads: never out of http(s), from https to http, or into a private network."""
    import httpx

    try:
        # A redirect without a fragment leads to that of the URL it came from (RFC 9110 §10.2.2).
        inherited = f"#{quote(base.fragment)}" if base.fragment and "#" not in location else ""
        target = check_url(f"{base.join(location)}{inherited}", asked)
    except (InputRefused, httpx.InvalidURL) as error:
        raise _bad_redirect(asked, location, "not http(s)") from error
    if (base.scheme, target.scheme) == ("https", "http"):
        raise _bad_redirect(asked, location, "no longer encrypted")
    if is_private(target.host) and not is_private(base.host):
        raise _bad_redirect(asked, location, "an address of this machine or its network")
    return target


def _bad_redirect(asked: str, location: str, what: str) -> RecordInvalid:
    return RecordInvalid(
        f"Fetch {asked}",
        f"it redirects to {location!r}, which is {what}",
        "Nothing was read from there; check the URL in a browser",
    )


def is_private(host: str) -> bool:
    """Whether a host is an address that means something only here (RFC 6890). Names are not resolved."""
    try:
        return not ip_address(host.strip("[]")).is_global
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def check_status(method: str, url: str, response: "httpx.Response", accept: frozenset[int]) -> None:
    """Raise the error that a status outside `accept` means (see `Transport.exchange`)."""
    status = response.status_code
    if status in accept:
        return
    if status in ASK_AGAIN or status >= 500:
        raise Fault(
            f"HTTP {status} {response.reason_phrase}", retry_after(response.headers.get("Retry-After"))
        )
    region = response.headers.get("x-amz-bucket-region")
    if status == 301 and region:  # S3 names no Location where the bucket's address would be another
        raise InputRefused(
            f"{method} {url}", f"the bucket is in the region {region}", f"Set EM_S3_REGION={region}"
        )
    raise _refusal(f"{method} {url}", status, response.reason_phrase)


def _refusal(tried: str, status: int, reason: str) -> EmError:
    found = f"the portal answered HTTP {status} {reason}".rstrip()
    if status in (404, 410):
        missing = NotFound if status == 404 else Gone
        return missing(tried, found, "Check the accession and the path on the portal's page")
    if status in (401, 403):
        return InputRefused(tried, found, "The data are not public at that address; open it in a browser")
    return RecordInvalid(tried, found, "The portal may have changed its interface; open the URL in a browser")


def retry_after(value: str | None) -> float | None:
    """Seconds from now that a Retry-After header (RFC 9110 §10.2.3) asks for; None where it is unreadable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def looks_like_html(content_type: str | None, head: bytes) -> bool:
    """Whether an answer is a web page: by its type, or by how its first bytes begin."""
    if (content_type or "").split(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
        return True
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower().startswith((b"<!doctype", b"<html"))
