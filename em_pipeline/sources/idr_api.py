"""IDR's two interfaces: OMERO's JSON API and the annotations of its web client.

https://omero.readthedocs.io/en/stable/developers/json-api.html. Lists come in pages, the server bounds a
page's length as it likes and ignores parameters that it does not know. While IDR moves its images to
OME-Zarr, `imgData` may answer 200 with an exception in place of sizes, so it is asked only for what the API
lacks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_pipeline.domain.errors import NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.sources.documents import JsonDocument, fetch_json
from em_pipeline.storage.http import PortalClient

PAGE_SIZE = 500
# Containers asked about in one request; each has a handful of annotations, an answer holds at most 200.
BATCH = 25
STUDY_INFO = "idr.openmicroscopy.org/study/info"


@dataclass(frozen=True)
class Thing:
    """An image, dataset or project (`kind`), by its number and name. Each kind counts for itself."""

    kind: str
    id: int
    name: str


@dataclass(frozen=True)
class Annotation:
    """Key-value pairs that hang on `parent`. `at` is their place in the document at `url`."""

    url: str
    at: str
    namespace: str
    parent: int
    values: tuple[tuple[str, str], ...]

    def value(self, key: str) -> str | None:
        """The first value of `key` that is not empty."""
        return next((value for name, value in self.values if name == key and value), None)


class IdrApi:
    """Asks the server at `base` through `client`. Raises like `fetch_json`."""

    def __init__(self, client: PortalClient, base: str) -> None:
        self._client, self._base = client, base

    def image(self, number: int) -> JsonDocument:
        """The image, whose `value["data"]` is an object with a `Name` and `Pixels`."""
        answer = fetch_json(self._client, f"{self._base}/api/v0/m/images/{number}/")
        data = answer.value.get("data") if isinstance(answer.value, dict) else None
        if not isinstance(data, dict) or not isinstance(data.get("Pixels"), dict) or not data.get("Name"):
            raise RecordInvalid(
                f"Read {answer.url}",
                f"it is no image with a name and pixels; it begins {answer.text[:80]!r}",
                "The portal may have changed its interface; open the URL in a browser",
            )
        return answer

    def parent(self, child: Thing, kind: str) -> Thing | None:
        """The one dataset of an image, or project of a dataset; None where the server says none."""
        try:
            found = [*self.listed(kind, f"{child.kind}s/{child.id}/{kind}s/")]
        except NotFound:
            return None
        return found[0] if len(found) == 1 else None

    def image_data(self, number: int) -> JsonDocument | None:
        """What the web client is told of an image, None where it is told nothing."""
        try:
            answer = fetch_json(self._client, f"{self._base}/webclient/imgData/{number}/")
        except NotFound:
            return None
        return answer if isinstance(answer.value, dict) else None

    def annotations(self, parents: Sequence[Thing], namespace: str = "") -> list[Annotation]:
        """The map annotations of `parents`, all of one kind, in the order of the answer.

        Those that hang on something else are left out: numbers of different kinds overlap.
        """
        if not parents:
            return []
        asked = "".join(f"&{parent.kind}={parent.id}" for parent in parents)
        only = f"&ns={namespace}" if namespace else ""
        answer = fetch_json(self._client, f"{self._base}/webclient/api/annotations/?type=map{asked}{only}")
        try:
            found = [_annotation(answer.url, n, one) for n, one in enumerate(answer.value["annotations"])]
            on = [_parent(one) for one in answer.value["annotations"]]
        except (KeyError, TypeError, ValueError) as error:
            raise RecordInvalid(
                f"Read {answer.url}",
                f"it is no list of annotations ({type(error).__name__}: {error})",
                "The portal may have changed its interface; open the URL in a browser",
            ) from error
        wanted = {(f"{parent.kind.title()}I", parent.id, parent.name) for parent in parents}
        return [
            one
            for one, parent in zip(found, on, strict=True)
            if parent in wanted
            and namespace in ("", one.namespace)  # asking for one is a wish that the server may ignore
        ]

    def study_infos(self, projects: Sequence[Thing]) -> Iterator[tuple[Thing, Annotation]]:
        """Each project that has one, with what IDR says of its study."""
        for first in range(0, len(projects), BATCH):
            batch = projects[first : first + BATCH]
            infos = {info.parent: info for info in self.annotations(batch, STUDY_INFO)}
            for project in batch:
                # Not every server answers for several at once: one who is missing is asked alone.
                alone = () if project.id in infos else self.annotations([project], STUDY_INFO)
                info = infos.get(project.id) or next(iter(alone), None)
                if info is not None:
                    yield project, info

    def listed(self, kind: str, path: str) -> Iterator[Thing]:
        """The things of a list, all of its pages."""
        for one in self.objects(path):
            yield Thing(kind, int(one["@id"]), str(one["Name"]))

    def objects(self, path: str) -> Iterator[Mapping[str, Any]]:
        """The objects of a list, all of its pages, each with its `@id` and `Name`.

        Raises `SourceUnavailable` where the list ends before the count that it announces.
        """
        seen = 0
        while True:
            separator = "&" if "?" in path else "?"
            url = f"{self._base}/api/v0/m/{path}{separator}limit={PAGE_SIZE}&offset={seen}"
            data, total = _page(fetch_json(self._client, url))
            yield from data
            seen += len(data)
            if seen >= total:
                return
            if not data:
                raise SourceUnavailable(
                    f"List {url}",
                    f"{total} entries were announced and {seen} came",
                    "Nothing is concluded from a broken listing; try again later",
                )


def _page(answer: JsonDocument) -> tuple[list[Mapping[str, Any]], int]:
    try:
        data, total = answer.value["data"], int(answer.value["meta"]["totalCount"])
        for one in data:
            one["@id"], one["Name"]
    except (KeyError, TypeError, ValueError) as error:
        raise SourceUnavailable(
            f"List {answer.url}",
            f"the answer has another shape than a list ({type(error).__name__}: {error})",
            "The portal may have changed its interface; open the URL in a browser",
        ) from error
    return data, total


def _parent(one: Mapping[str, Any]) -> tuple[str, int, str]:
    """Class, number and name of what an annotation hangs on."""
    parent = one["link"]["parent"]
    return str(parent["class"]), int(parent["id"]), str(parent["name"])


def _annotation(url: str, number: int, one: Mapping[str, Any]) -> Annotation:
    values = tuple((str(key), str(value).strip()) for key, value in one["values"])
    return Annotation(url, f"annotations[{number}]", str(one["ns"]), int(one["link"]["parent"]["id"]), values)
