"""Links to neuroglancer: the state of the viewer behind them, and the volumes that it shows.

A link's fragment is `!` and the state as JSON, percent-encoded, or the address of a JSON file with it:
https://github.com/google/neuroglancer/blob/master/src/ui/url_hash_binding.ts
Whoever controls the link or the state decides what addresses are in it, so that few are followed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from em_pipeline.domain.errors import RecordInvalid, SourceUnavailable
from em_pipeline.formats.bounded_json import parse_json
from em_pipeline.formats.units import length_nm
from em_pipeline.sources.documents import fetch_json
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import https_url, is_object

# What begins so is an address; a state as JSON begins with a brace.
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Names that mean the same everywhere: no numeric addresses, no names of one network (RFC 6762, RFC 8375).
PUBLIC_HOST = re.compile(
    r"(?:[a-z0-9_-]+\.)+(?!(?:local|localhost|localdomain|internal|arpa)$)[a-z][a-z0-9-]*", re.IGNORECASE
)


@dataclass(frozen=True)
class Layer:
    """A layer of a state: where in it (`at`, such as `layers[0]`), its `kind`, `name` and data sources."""

    at: str
    kind: str
    name: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """What a link shows: `url` is where the link led, `text` the state as JSON, `value` that parsed."""

    url: str
    text: str
    value: Mapping[str, Any]

    def layers(self) -> Iterator[Layer]:
        """The layers in order. A source is a text, an object with `url`, or a list of either."""
        layers = self.value.get("layers")
        for number, layer in enumerate(layers if isinstance(layers, list) else ()):
            if isinstance(layer, dict):
                kind, name = str(layer.get("type")), str(layer.get("name"))
                yield Layer(f"layers[{number}]", kind, name, tuple(_urls(layer.get("source"))))

    def voxel_nm(self, axis: str) -> float | None:
        """Voxel size of the view along `axis` (`dimensions`), in nanometres."""
        dimensions = self.value.get("dimensions")
        said = dimensions.get(axis) if isinstance(dimensions, dict) else None
        return length_nm(*said) if isinstance(said, list) and len(said) == 2 else None


def fetch_state(client: PortalClient, link: str) -> State:
    """The state that `link`, a short link or the long one, leads to.

    Raises `SourceUnavailable` where it does not lead to a state (a short link's server in trouble shows a
    page instead), `RecordInvalid` for a state that cannot be read, and like `told_address` and `PortalClient`
    do.
    """
    url = client.final_url(link)
    base, _, fragment = url.partition("#")
    content = unquote(fragment)
    if not content.startswith("!"):
        raise SourceUnavailable(
            f"Follow {link}",
            f"it leads to {base}, without the state of a viewer",
            "Nothing is known about the data; open the link in a browser, and try again later",
        )
    content = content[1:]
    if ADDRESS.match(content):
        address = told_address(content, link)
        document = fetch_json(client, https_url(address, client.endpoints))
        url, content = document.url, document.text
    try:
        value = parse_json(content)
    except ValueError as error:
        raise RecordInvalid(
            f"Read the state in {link}",
            f"it is not JSON ({error}); it begins {content[:80]!r}",
            "Share the view anew in neuroglancer, as JSON, and take that link",
        ) from error
    if not isinstance(value, dict):
        raise RecordInvalid(f"Read the state in {link}", f"it is a {type(value).__name__}, no object", "")
    return State(url.partition("#")[0], content, value)


def told_address(address: str, document: str) -> str:
    """`address`, which `document` gives, where a document may send us: gs://, s3://, or https:// of a public
    host.

    Raises `RecordInvalid` for others: folders of this machine, servers of its network.
    """
    if is_object(address) or _is_public(address):
        return address
    raise RecordInvalid(
        f"Follow {address[:200]!r}, as told by {document}",
        "documents may lead to gs://, s3:// and https:// addresses of public hosts only",
        "Nothing was read from there; open the link in a browser, and name what you want in a spec",
    )


def _is_public(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme == "https" and PUBLIC_HOST.fullmatch(parts.hostname or "") is not None
    except ValueError:
        return False


def _urls(source: Any) -> Iterator[str]:
    if isinstance(source, str):
        yield source
    elif isinstance(source, dict):
        yield from _urls(source.get("url"))
    elif isinstance(source, list):
        for one in source:
            yield from _urls(one)
