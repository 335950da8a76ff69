"""Claims from IDR's answers: the image as OMERO describes it, and what annotations say of it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from em_pipeline.domain.evidence import Claim
from em_pipeline.formats.units import length_nm
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.documents import JsonDocument
from em_pipeline.sources.idr_api import STUDY_INFO, Annotation

EXTRACTOR = "em_pipeline.sources.idr"
# The web client gives sizes in micrometres and no unit.
NM_PER_UM = 1e3
# OMERO's pixel types → numpy's names, where they differ.
DATA_TYPES = {"float": "float32", "double": "float64"}
LICENCE = re.compile(r"^CC[ -]?(?:(0)|(BY(?:-(?:NC-SA|NC-ND|NC|ND|SA))?))[ -](\d\.\d)\b")
DOI = re.compile(r"\b10\.\d{4,9}/\S+")
# Key of an annotation → field of the record.
ANNOTATED = {
    "Image Description": "core.description",
    "Organism": "sample.organism",
    "Organism Part": "sample.tissue",
    "Cell Line": "sample.cell_type",
    "Imaging Method": "core.modality",
}


def image_claims(answer: JsonDocument) -> Iterator[Claim]:
    """What the JSON API says of an image. Keys that it leaves out claim nothing."""
    claimant = Claimant(answer.url, EXTRACTOR)
    data: Mapping[str, Any] = answer.value["data"]
    pixels: Mapping[str, Any] = data["Pixels"]
    yield claimant.says("core.title", str(data["Name"]), "data.Name", data["Name"])
    for axis in "zyx":
        name = f"Size{axis.upper()}"
        if isinstance(size := pixels.get(name), int):
            yield claimant.says(f"core.volume_shape.{axis}", size, f"data.Pixels.{name}", size)
    for axis, (nanometres, raw) in physical_sizes(pixels).items():
        at = f"data.Pixels.PhysicalSize{axis.upper()}"
        yield claimant.says(f"core.voxel_size_nm.{axis}", nanometres, at, raw)
    if isinstance(kind := _inside(pixels, "Type", "value"), str):
        yield claimant.says("core.data_type", DATA_TYPES.get(kind, kind), "data.Pixels.Type.value", kind)
    if isinstance(moment := data.get("AcquisitionDate"), int | float):
        day = datetime.fromtimestamp(moment / 1000, UTC).date().isoformat()
        yield claimant.says("core.imaging_start_date", day, "data.AcquisitionDate", moment)


def physical_sizes(pixels: Mapping[str, Any]) -> dict[str, tuple[float, Any]]:
    """Nanometres by axis, and what was written, where both value and unit are understood."""
    found = {}
    for axis in "zyx":
        written = pixels.get(f"PhysicalSize{axis.upper()}")
        value, unit = _inside(written, "Value"), _inside(written, "Unit")
        # OME's UnitsLength: https://www.openmicroscopy.org/Schemas/Documentation/Generated/OME-2016-06/
        if (nanometres := length_nm(value, unit)) is not None:
            found[axis] = (nanometres, f"{value:g} {unit}")
    return found


def image_data_claims(answer: JsonDocument) -> Iterator[Claim]:
    """Voxel sizes as the web client is told them; an answer with an exception has none."""
    claimant = Claimant(answer.url, EXTRACTOR)
    for axis in "zyx":
        size = _inside(answer.value, "pixel_size", axis)
        if isinstance(size, int | float) and size > 0:
            yield claimant.says(
                f"core.voxel_size_nm.{axis}", size * NM_PER_UM, f"pixel_size.{axis}", f"{size:g}", "in µm"
            )


def annotation_claims(annotations: Sequence[Annotation]) -> Iterator[Claim]:
    """Sample, method and description; of each field, what the first annotation to name it says.

    Given those of the image first, the study's never speak against its own image: they describe all of them.
    """
    claimed = set()
    for annotation in annotations:
        for key, field in ANNOTATED.items():
            if field not in claimed and (value := annotation.value(key)):
                claimed.add(field)
                yield Claimant(annotation.url, EXTRACTOR).says(field, value, f"{annotation.at}.{key}", value)


def rights_claims(info: Annotation) -> Iterator[Claim]:
    """Licence, DOI and citation of a study. One that states no licence grants nothing: the record says so."""
    claimant = Claimant(info.url, EXTRACTOR)
    if written := info.value("License"):
        yield claimant.says("rights.licence", spdx(written), f"{info.at}.License", written)
    else:
        keys = [key for key, _ in info.values]
        yield claimant.says("rights.licence", "unspecified", info.at, keys, "no License among the keys")
    if (written := info.value("Data DOI")) and (doi := DOI.search(written)):
        yield claimant.says("rights.doi", doi[0], f"{info.at}.Data DOI", written)
    authors, title = info.value("Publication Authors"), info.value("Publication Title")
    if authors and title:
        paper = DOI.search(info.value("Publication DOI") or "")
        link = f" https://doi.org/{paper[0]}" if paper else ""
        yield claimant.says(
            "rights.citation", f"{authors}. {title}.{link}", f"{info.at}.Publication *", [authors, title]
        )


def spdx(written: str) -> str:
    """The SPDX identifier of a Creative Commons licence such as `CC BY 4.0 https://…`, else the text."""
    match = LICENCE.match(written)
    if match is None:
        return written
    zero, kind, version = match.groups()
    return f"CC0-{version}" if zero else f"CC-{kind}-{version}"


def released(info: Annotation) -> date | None:
    """The study's release date, None where there is no readable one."""
    try:
        return date.fromisoformat((info.value("Release Date") or "")[:10])
    except ValueError:
        return None


def study_info(annotations: Sequence[Annotation]) -> Annotation | None:
    return next((one for one in annotations if one.namespace == STUDY_INFO), None)


def _inside(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
