"""One case per source: how the contract suite makes it, what it asks of it, and what may go wrong.

A registered source without a case fails the suite. Add yours with one entry of `CASES`.
"""

import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from em_pipeline.demo.portal import DemoPortal, Trouble
from em_pipeline.domain.files import RawFile, RemoteFile
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import HeldFile, Source
from em_pipeline.sources.empiar import EmpiarSource
from em_pipeline.sources.files import FilesSource, spec_for

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "tiff_index_source.py"
ARCHIVE = "/empiar/world_availability"
ANY_HTTP = (Trouble.RESET, Trouble.SERVER_ERROR, Trouble.UNAVAILABLE)
ANY_DOCUMENT = (*ANY_HTTP, Trouble.HTML, Trouble.TRUNCATED, Trouble.CUT)


@dataclass(frozen=True)
class SourceCase:
    """`make` and `spec` for a portal at the given server; `shape` is z-y-x of the spec's volume.

    `troubles` are those that this source can see when it fetches a record. `lists` says whether it has a
    listing of datasets.
    """

    make: Callable[[DemoPortal], Source]
    spec: Callable[[DemoPortal], DatasetSpec]
    shape: tuple[int, int, int]
    troubles: Sequence[Trouble]
    missing: Callable[[DemoPortal], DatasetSpec]
    lists: bool = True


def held(portal: DemoPortal, file: RemoteFile) -> HeldFile:
    """A served file as a download would leave it."""
    below = file.url.removeprefix(f"{portal.url}{ARCHIVE}/").replace("%20", " ")
    path = portal.tree / below
    return HeldFile(RawFile(url=file.url, path=file.path, size=path.stat().st_size, sha256="0" * 64), path)


def _make_example(portal: DemoPortal) -> Source:
    folder = f"{ARCHIVE}/99002/data/"
    names = sorted(path.name for path in (portal.tree / "99002" / "data").iterdir())
    volume = {
        "id": "root-1",
        "title": "Root",
        "updated": "2025-06-20",
        "voxel_size_nm": [40, 6, 6],
        "licence": "CC-BY-4.0",
        "folder": folder.lstrip("/"),
        "files": names,
    }
    portal.replace("/volumes.json", json.dumps({"volumes": [volume]}))
    source: Source = runpy.run_path(str(EXAMPLE))["TiffIndexSource"](base=portal.url, retries=0)
    return source


def _file_url(portal: DemoPortal, name: str) -> DatasetSpec:
    return spec_for(f"{portal.url}{ARCHIVE}/99001/data/{name}")


CASES = {
    "empiar": SourceCase(
        make=lambda portal: EmpiarSource(**portal.options, timeout_s=5, retries=0, backoff_s=0),
        spec=lambda _: DatasetSpec(source="empiar", accession="11759"),
        shape=(16, 550, 549),
        troubles=ANY_DOCUMENT,
        missing=lambda _: DatasetSpec(source="empiar", accession="98765"),
    ),
    "files": SourceCase(
        make=lambda _: FilesSource(timeout_s=5, retries=0, backoff_s=0),
        spec=lambda portal: _file_url(portal, "cortex_fibsem.mrc"),
        shape=(96, 192, 188),
        troubles=ANY_HTTP,  # it reads no document: what a file holds is for the readers to say
        missing=lambda portal: _file_url(portal, "cortex.mrc"),
        lists=False,
    ),
    "tiffindex": SourceCase(
        make=_make_example,
        spec=lambda _: DatasetSpec(source="tiffindex", accession="root-1"),
        shape=(24, 300, 310),
        troubles=ANY_DOCUMENT,
        missing=lambda _: DatasetSpec(source="tiffindex", accession="root-2"),
    ),
}
