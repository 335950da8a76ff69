"""EMPIAR's two descriptions of an entry, the REST answer and the XML header, read into one shape.

REST: https://www.ebi.ac.uk/empiar/api/documentation/ ; XML: namespace http://pdbe.org/empiar. They name
the same things differently, give numbers as numbers, strings or nothing, and may disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element

from em_pipeline.domain.errors import RecordInvalid

NAMESPACE = "{http://pdbe.org/empiar}"

# Our name → (REST key, XML path below the entry).
ENTRY_FIELDS = {
    "status": ("status", "admin/currentStatus"),
    "title": ("title", "admin/title"),
    "released": ("release_date", "admin/keyDates/releaseDate"),
    "updated": ("update_date", "admin/keyDates/updateDate"),
    "experiment_type": ("experiment_type", "admin/experimentType"),
    "doi": ("entry_doi", "admin/entryDOI"),
    "size": ("dataset_size", "admin/datasetSize"),
}
# Our name → (REST key, XML path below imageSet).
IMAGE_SET_FIELDS = {
    "name": ("name", "name"),
    "directory": ("directory", "directory"),
    "category": ("category", "category"),
    "data_format": ("data_format", "dataFormat"),
    "images": ("num_images_or_tilt_series", "numImagesOrTiltSeries"),
    "frames": ("frames_per_image", "framesPerImage"),
    "voxel_type": ("voxel_type", "voxelType"),
    "width": ("image_width", "dimensions/imageWidth"),
    "height": ("image_height", "dimensions/imageHeight"),
    "pixel_width": ("pixel_width", "dimensions/pixelWidth"),
    "pixel_height": ("pixel_height", "dimensions/pixelHeight"),
    "details": ("details", "details"),
}


@dataclass(frozen=True)
class Said:
    """A value as the document gives it, and its path inside the document."""

    raw: Any
    at: str

    @property
    def text(self) -> str | None:
        """As text without outer blanks; None where nothing remains."""
        return (str(self.raw).strip() or None) if self.raw is not None else None

    @property
    def number(self) -> float | None:
        """As a positive finite number; None where it is none (EMPIAR writes null, "" and prose)."""
        try:
            value = float(self.text or "")
        except ValueError:
            return None
        return value if 0 < value < float("inf") else None

    @property
    def count(self) -> int | None:
        """As a positive whole number, or None."""
        number = self.number
        return int(number) if number is not None and number.is_integer() else None


NOTHING = Said(None, "")


@dataclass(frozen=True)
class Citation:
    """The publication, or the deposition itself where nothing is published."""

    authors: tuple[str, ...]
    title: Said
    journal: Said
    year: Said
    doi: Said
    details: Said


@dataclass(frozen=True)
class Entry:
    """One document's account of an entry. `values` and each image set are keyed by our names."""

    url: str
    values: Mapping[str, Said]
    image_sets: tuple[Mapping[str, Said], ...]
    citation: Citation | None
    cross_references: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Said:
        return self.values.get(name, NOTHING)


def from_rest(url: str, accession: str, answer: Any) -> Entry:
    """The REST answer `{"EMPIAR-<n>": {...}}`, or a bare record. Raises `RecordInvalid` for another shape."""
    body = _body(url, accession, answer)
    sets = body.get("imagesets") or []
    if not isinstance(sets, list) or not all(isinstance(one, dict) for one in sets):
        raise RecordInvalid(
            f"Read {url}", "its `imagesets` is not a list of objects", "See the answer itself"
        )
    return Entry(
        url=url,
        values={name: Said(body.get(key), key) for name, (key, _) in ENTRY_FIELDS.items()},
        image_sets=tuple(
            {name: Said(one.get(key), f"imagesets[{n}].{key}") for name, (key, _) in IMAGE_SET_FIELDS.items()}
            for n, one in enumerate(sets)
        ),
        citation=_rest_citation(body.get("citation")),
        cross_references=_references(body.get("cross_references")),
    )


def from_xml(url: str, root: Element) -> Entry:
    """The XML header, whose root is `entry`."""
    values = {name: _element(root, path) for name, (_, path) in ENTRY_FIELDS.items()}
    references = root.findall(_qualified("crossReferences/relatedEMDBEntries/emdbEntry"))
    return Entry(
        url=url,
        values=values,
        image_sets=tuple(
            {name: _element(one, path, f"imageSet[{n}]/") for name, (_, path) in IMAGE_SET_FIELDS.items()}
            for n, one in enumerate(root.findall(_qualified("imageSet")))
        ),
        citation=_xml_citation(root),
        cross_references=tuple(one.text.strip() for one in references if one.text),
    )


def _body(url: str, accession: str, answer: Any) -> dict[str, Any]:
    body = answer
    if isinstance(answer, dict) and "imagesets" not in answer and "title" not in answer:
        same = [key for key in answer if key.upper().removeprefix("EMPIAR-") == accession]
        if not same:
            raise RecordInvalid(
                f"Read {url}", f"it holds {sorted(answer)[:5]}, not EMPIAR-{accession}", "Check the accession"
            )
        body = answer[same[0]]
    if not isinstance(body, dict):
        raise RecordInvalid(f"Read {url}", f"the entry is {type(body).__name__}, not an object", "")
    return body


def _references(given: Any) -> tuple[str, ...]:
    """Cross references are strings in some answers and objects with a `name` in others."""
    names = [one.get("name") if isinstance(one, dict) else one for one in given or []]
    return tuple(str(name) for name in names if name)


def _rest_citation(given: Any) -> Citation | None:
    citations = [one for one in given or [] if isinstance(one, dict)]
    if not citations:
        return None
    first = citations[0]

    def said(key: str) -> Said:
        return Said(first.get(key), f"citation[0].{key}")

    people = [
        author.get("author", author) for author in first.get("authors") or [] if isinstance(author, dict)
    ]
    return Citation(
        authors=tuple(str(person["name"]) for person in people if person.get("name")),
        title=said("title"),
        journal=said("journal"),
        year=said("year"),
        doi=said("doi"),
        details=said("details"),
    )


def _xml_citation(root: Element) -> Citation | None:
    path = "crossReferences/citationList/universalCitation"
    universal = root.find(_qualified(path))
    if universal is None or len(universal) == 0:
        return None
    citation = universal[0]
    kind = citation.tag.removeprefix(NAMESPACE)
    prefix = f"{path}/{kind}/"
    title = _element(citation, "title", prefix)
    dois = [e for e in citation.findall(_qualified("externalReferences")) if e.get("type") == "doi"]
    return Citation(
        authors=tuple(e.text.strip() for e in citation.findall(_qualified("author")) if e.text),
        title=title if title.text else _element(citation, "bookTitle", prefix),
        journal=_element(citation, "journal", prefix),
        year=_element(citation, "year", prefix),
        doi=Said(dois[0].text, f"{prefix}externalReferences[@type='doi']") if dois else NOTHING,
        details=_element(citation, "details", prefix),
    )


def _element(parent: Element, path: str, prefix: str = "") -> Said:
    found = parent.find(_qualified(path))
    return Said(None if found is None else found.text, f"{prefix}{path}")


def _qualified(path: str) -> str:
    return "/".join(f"{NAMESPACE}{step}" for step in path.split("/"))
