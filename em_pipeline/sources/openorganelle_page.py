"""Claims from a dataset's page on OpenOrganelle's site, as a browser renders it.

The page (https://openorganelle.janelia.org/datasets/<name>) shows each value as a paragraph `<p><strong>label
(unit)</strong>: value</p>` below the headings "Acquisition details" and "FIB-SEM parameters", and `Unknown`
where its database has none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING

from em_pipeline.domain.evidence import Claim
from em_pipeline.sources.claimant import Claimant

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

EXTRACTOR = "em_pipeline.sources.openorganelle_page"
DETAILS = "Acquisition details"
DOI = re.compile(r"^https?://(?:dx\.)?doi\.org/(10\.\S+)$")
# Entries of the DOI list that are of something else than the electron micrographs.
DERIVED = re.compile(r"segmentation|label|prediction|mesh", re.IGNORECASE)
VECTOR = re.compile(r"^\(([^()]+)\) \(([xyz, ]+)\)$")


@dataclass(frozen=True)
class Parameter:
    """One number of the page: its label, the record's field, and the factor from the label's unit."""

    label: str
    field: str
    factor: float


PARAMETERS = (
    Parameter("Imaging duration (days)", "acquisition.duration_days", 1.0),
    Parameter("Bias (Volts)", "acquisition.bias_v", 1.0),
    Parameter("Scan rate (MHz)", "acquisition.scan_rate_mhz", 1.0),
    Parameter("Current (nA)", "acquisition.beam_current_pa", 1e3),
    Parameter("Primary energy (eV)", "acquisition.accelerating_voltage_kv", 1e-3),
)


def page_claims(url: str, html: str, *, finest: bool) -> list[Claim]:
    """Everything the page at `url` says that a record has a field for; nothing from a page of another kind.

    The voxel size on it is that of the finest level, so it is claimed only where `finest`.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    values = _values(soup)
    if soup.find("h6", string=DETAILS) is None:
        return []
    claimant = Claimant(url, EXTRACTOR)
    claims = [
        *_prose(claimant, soup, values),
        *_parameters(claimant, values),
        *_dois(claimant, soup),
        *_citation(claimant, soup),
    ]
    if finest:
        claims += _voxel_size(claimant, values)
    return claims


def _values(soup: "BeautifulSoup") -> dict[str, str]:
    """Label → value of every paragraph that begins with a label in bold."""
    values = {}
    for paragraph in soup.find_all("p"):
        label = paragraph.find("strong")
        if label is not None:
            name = _plain(label)
            value = _plain(paragraph).removeprefix(name).lstrip(" :").strip()
            if value and value != "Unknown":
                values[name] = value
    return values


def _prose(claimant: Claimant, soup: "BeautifulSoup", values: dict[str, str]) -> Iterator[Claim]:
    bold = soup.find("strong", string="Sample")
    title = bold.find_previous("h6") if bold is not None else None
    if title is not None:
        yield claimant.says("core.title", _plain(title), "h6 above Sample", _plain(title))
    if sample := values.get("Sample"):
        yield claimant.says("core.description", sample, "Sample", sample)
    started = values.get("Imaging start date")
    if started and (day := _day(started)):
        yield claimant.says(
            "core.imaging_start_date", day.isoformat(), f"{DETAILS} / Imaging start date", started
        )


def _parameters(claimant: Claimant, values: dict[str, str]) -> Iterator[Claim]:
    for parameter in PARAMETERS:
        raw = values.get(parameter.label)
        if raw is not None and (number := _number(raw)) is not None:
            yield claimant.says(
                parameter.field,
                round(number * parameter.factor, 9),
                f"FIB-SEM parameters / {parameter.label}",
                raw,
            )


def _links(soup: "BeautifulSoup", heading: str) -> Iterator[tuple[str, str]]:
    """Name and address of every entry of the list below a heading in bold."""
    bold = soup.find("strong", string=heading)
    listed = bold.find_next("ul") if bold is not None else None
    for item in listed.find_all("li") if listed is not None else ():
        link = item.find("a")
        if link is not None:
            yield _plain(item.find("span") or item), str(link.get("href", ""))


def _dois(claimant: Claimant, soup: "BeautifulSoup") -> Iterator[Claim]:
    """The DOI of the micrographs: the first of the list that is not of something derived from them."""
    for name, address in _links(soup, "DOI"):
        match = DOI.match(address)
        if match and not DERIVED.search(name):
            yield claimant.says("rights.doi", match[1], f"{DETAILS} / DOI / {name}", address)
            return


def _citation(claimant: Claimant, soup: "BeautifulSoup") -> Iterator[Claim]:
    papers = [f"{name}, {address}" for name, address in _links(soup, "Publications")]
    if papers:
        yield claimant.says("rights.citation", "; ".join(papers), f"{DETAILS} / Publications", papers)


def _voxel_size(claimant: Claimant, values: dict[str, str]) -> Iterator[Claim]:
    raw = values.get("Final voxel size (nm)", "")
    match = VECTOR.match(raw)
    if match is None:
        return
    axes = [axis.strip() for axis in match[2].split(",")]
    numbers = [_number(part) for part in match[1].split(",")]
    if len(axes) == len(numbers):
        for axis, number in zip(axes, numbers, strict=True):
            if number:
                yield claimant.says(
                    f"core.voxel_size_nm.{axis}", number, f"{DETAILS} / Final voxel size (nm)", raw
                )


def _day(text: str) -> date | None:
    """The day that JavaScript's `toDateString` wrote, such as `Mon Mar 09 2015`."""
    try:
        return datetime.strptime(text, "%a %b %d %Y").date()  # noqa: DTZ007 (a day has no time zone)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _plain(tag: "Tag") -> str:
    return " ".join(tag.get_text().split())
