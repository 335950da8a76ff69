"""Documents of portals, as received and as parsed.

A portal in trouble answers 200 with a maintenance page or half a document. That says nothing about the
data, so here it is an outage (`SourceUnavailable`), worth asking again.
"""

import json
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from em_pipeline.domain.errors import RecordInvalid, SourceUnavailable
from em_pipeline.storage.http import PortalClient

SHOWN = 80


@dataclass(frozen=True)
class JsonDocument:
    """A JSON answer: where from, its text, and its value."""

    url: str
    text: str
    value: Any


@dataclass(frozen=True)
class XmlDocument:
    """An XML answer: where from, its text, and its root element."""

    url: str
    text: str
    root: Element


def fetch_json(client: PortalClient, url: str) -> JsonDocument:
    """The JSON document at `url`. Raises like `get_text`, and `SourceUnavailable` for no JSON."""
    return json_document(url, client.get_text(url))


def query_json(client: PortalClient, url: str, content: str) -> JsonDocument:
    """The JSON answered to `content`, posted to `url`. Raises like `fetch_json`."""
    return json_document(url, client.post_text(url, content))


def json_document(url: str, text: str) -> JsonDocument:
    """The JSON document that `url` answered. Raises `SourceUnavailable` for no JSON."""
    try:
        return JsonDocument(url, text, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise _unreadable(url, text, f"not JSON ({error})") from error


def fetch_xml(client: PortalClient, url: str, root: str) -> XmlDocument:
    """The XML document at `url`, whose root element is called `root` in any namespace.

    Raises like `PortalClient.get_text`; `SourceUnavailable` for anything that is not such a document, and
    `RecordInvalid` for entity declarations, which no portal's record needs.
    """
    text = client.get_text(url)
    try:
        element = ElementTree.fromstring(text)
    except DefusedXmlException as error:
        raise RecordInvalid(
            f"Read {url}", f"the XML declares entities ({error})", "Nothing was read from it"
        ) from error
    except (ParseError, ValueError) as error:
        raise _unreadable(url, text, f"not XML ({error})") from error
    if element.tag.rpartition("}")[2] != root:
        raise _unreadable(url, text, f"an element <{element.tag}> in place of <{root}>")
    return XmlDocument(url, text, element)


def _unreadable(url: str, text: str, what: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"Read {url}",
        f"the portal answered with {what}; it begins {text[:SHOWN]!r}",
        "Nothing is known about the data; open the URL in a browser, and try again later",
    )
