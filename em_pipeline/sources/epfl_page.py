"""The data page of EPFL's CVLab: what it says of the volumes, and which files it links to.

The text stands in the first paragraph after the heading with the id `data`, inside the article.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin, urlsplit

from em_pipeline.domain.evidence import Claim
from em_pipeline.sources import free_text
from em_pipeline.sources.base import PageReading
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.page import Page, parsed

CONTENT = "article h3#data"
WHOLE = "volumedata"
_TIMES = r"\s*[x×]\s*"
VOXEL = re.compile(rf"(\d+(?:\.\d+)?){_TIMES}(\d+(?:\.\d+)?){_TIMES}(\d+(?:\.\d+)?)\s*nm\b")
SHAPE = re.compile(rf"\b(\d+){_TIMES}(\d+){_TIMES}(\d+)\s+volume\b")
LICENCE = re.compile(r"licen[cs]e|creative commons|\bCC[ -]?(?:BY|0)\b", re.IGNORECASE)
# The page names no axes. It writes 1065x2048x1536, and volumedata.tif is 1065 sections of 1536 rows of 2048.
WRITTEN = "zxy"
ORDER = "written as z x y: the page names no axes, and the file has the written numbers in that order"


@dataclass(frozen=True)
class DataPage:
    """Text of the page's article. `links` are the TIFF files it links to, quoted, each once, in its order."""

    url: str
    title: str
    description: str
    text: str
    links: tuple[str, ...]


def read_data_page(page: Page) -> DataPage:
    """The parts of a readable page."""
    soup = parsed(page.html)
    heading = soup.select_one(CONTENT)
    article = heading.find_parent("article") if heading else None
    paragraph = heading.find_next("p") if heading else None
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    hrefs = [str(anchor["href"]) for anchor in article.find_all("a", href=True)] if article else []
    return DataPage(
        url=page.url,
        title=re.split(r"\s+[-–‐]\s+", title)[0],
        description=paragraph.get_text(" ", strip=True) if paragraph else "",
        text=article.get_text(" ", strip=True) if article else "",
        links=tuple(dict.fromkeys(link for href in hrefs if (link := _file_link(page.url, href)))),
    )


def claims_of(page: DataPage, accession: str, extractor: str) -> Iterator[Claim]:
    """What the page says of the volume `accession`. It describes the whole, of which two are parts."""
    claimant = Claimant(page.url, extractor)
    if page.title:
        yield claimant.says("core.title", f"{page.title}: {accession}", "title", page.title)
    if page.description:
        yield claimant.says("core.description", page.description, "article h3#data + p", page.description)
    if tissue := free_text.tissue(page.description):
        yield claimant.says("sample.tissue", tissue.value, "article h3#data + p", tissue.quote)
    if size := VOXEL.search(page.description):
        for axis, nanometres in zip(WRITTEN, size.groups(), strict=True):
            field = f"core.voxel_size_nm.{axis}"
            yield claimant.says(field, float(nanometres), "article h3#data + p", size[0], ORDER)
    shape = SHAPE.search(page.description)
    if shape and accession == WHOLE:
        for axis, voxels in zip(WRITTEN, shape.groups(), strict=True):
            field = f"core.volume_shape.{axis}"
            yield claimant.says(field, int(voxels), "article h3#data + p", shape[0], ORDER)
    if page.text and not LICENCE.search(page.text):
        yield claimant.says(
            "rights.licence", "unspecified", "article", "no licence is named", "ask the laboratory first"
        )


def link_claims(page: DataPage, name: str, extractor: str) -> Iterator[Claim]:
    """Where the page says that the file `name` lies."""
    for link in page.links:
        if _name(link) == name:
            yield Claimant(page.url, extractor).says("provenance.download_url", link, "article a[href]", link)


def compared(page: DataPage, how: str, known: Collection[str]) -> PageReading:
    """How the page was read, and how its links differ from the `known` URLs."""
    return PageReading(
        url=page.url,
        how=how,
        links_only_on_the_page=tuple(sorted(set(page.links) - set(known))),
        links_not_on_the_page=tuple(sorted(set(known) - set(page.links))),
    )


def _file_link(page: str, href: str) -> str | None:
    """The absolute, quoted address of a link to a TIFF file; a space inside is part of it."""
    parts = urlsplit(urljoin(page, href.strip()))
    if parts.scheme not in ("http", "https") or not parts.path.lower().endswith((".tif", ".tiff")):
        return None
    return parts._replace(path=quote(unquote(parts.path)), query="", fragment="").geturl()


def _name(link: str) -> str:
    return unquote(urlsplit(link).path).rpartition("/")[2]
