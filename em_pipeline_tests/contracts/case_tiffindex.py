"""The source that docs/add-a-source.md builds, against the portal it imagines."""

import json
import runpy
from pathlib import Path

from em_pipeline.demo.portal import ARCHIVE, DemoPortal
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import Source
from em_pipeline_tests.contracts.case import ANY_DOCUMENT, SourceCase

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "tiff_index_source.py"


def _make(portal: DemoPortal) -> Source:
    folder = f"{ARCHIVE}99002/data/"
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


CASE = SourceCase(
    portal=DemoPortal,
    make=_make,
    spec=lambda _: DatasetSpec(source="tiffindex", accession="root-1"),
    shape=(24, 300, 310),
    troubles=ANY_DOCUMENT,
    missing=lambda _: DatasetSpec(source="tiffindex", accession="root-2"),
)
