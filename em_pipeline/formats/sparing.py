"""Documents of a zarr or N5 container with as few requests as will do."""

import json
from collections.abc import Mapping
from typing import Any

from em_pipeline.formats.arrays import Fetch
from em_pipeline.formats.bounded_json import parse_json

V2_NAMES = (".zarray", ".zattrs", ".zgroup")
CONSOLIDATED = ".zmetadata"


class Sparing:
    """Asks `fetch` only for what may be there, and once.

    One container has one kind of documents, so the first that is found rules the other kinds out.
    Consolidated metadata (zarr-python's `.zmetadata` of v2, and `consolidated_metadata` in zarr v3) answers
    for all below it, which is what it is for.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._kind = ""
        self._asked: dict[str, bytes | None] = {}
        self._consolidated: dict[str, Mapping[str, Any]] = {}

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of the multiscale images that consolidated metadata names."""
        attributes = {
            root + key.rpartition(name)[0].strip("/"): document.get("attributes", document)
            for root, documents in self._consolidated.items()
            for key, document in documents.items()
            for name in (".zattrs", "zarr.json")
            if key.endswith(name)
        }
        return tuple(
            sorted(path for path, found in attributes.items() if "multiscales" in found.get("ome", found))
        )

    def consolidate(self, root: str = "") -> None:
        """Read `.zmetadata` at `root` of a v2 container, where there is one."""
        data = self._fetch(f"{root}/{CONSOLIDATED}".lstrip("/"))
        found = _object(data).get("metadata") if data else None
        if isinstance(found, dict) and found:
            self._kind = "v2"
            self._consolidated[f"{root}/".lstrip("/")] = found

    def fetch(self, key: str) -> bytes | None:
        """The document under `key`, None where there is none. Raises like the `fetch` given."""
        for root, documents in self._consolidated.items():
            if key.startswith(root):
                found = documents.get(key[len(root) :])
                return None if found is None else json.dumps(found).encode()
        kind = _kind_of(key)
        if self._kind and kind and kind != self._kind:
            return None
        if key not in self._asked:
            self._asked[key] = self._fetch(key)
        data = self._asked[key]
        if data is not None and kind:
            self._kind = kind
            self._take_v3(key, data)
        return data

    def _take_v3(self, key: str, data: bytes) -> None:
        if not key.endswith("zarr.json"):
            return
        below = (_object(data).get("consolidated_metadata") or {}).get("metadata")
        if isinstance(below, dict) and below:
            root = key.removesuffix("zarr.json")
            documents = {f"{path}/zarr.json": document for path, document in below.items()}
            self._consolidated[root] = {"zarr.json": _object(data), **documents}


def _kind_of(key: str) -> str:
    name = key.rpartition("/")[2]
    return {"zarr.json": "v3", "attributes.json": "n5"}.get(name, "v2" if name in V2_NAMES else "")


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = parse_json(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
