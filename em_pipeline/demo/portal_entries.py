"""The entries of the demonstration portal: their descriptions and how their files are generated.

11759 has the structure of the public entry of that number, quirks included, with generated voxels. The
others bear numbers far above the archive's, and say in their titles that they are generated.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from em_pipeline.demo.dm3 import Section, write_dm3
from em_pipeline.demo.specimen import planes
from em_pipeline.domain.identity import short_hash

Shape3 = tuple[int, int, int]
# Written into generated folders' names: another number makes every portal generate anew.
GENERATION = 1
# Larger planes repeat this many voxels by reflection, which costs nothing and has no seams.
LARGEST_TILE = 1024
FILED = datetime(2023, 11, 1, 12, tzinfo=UTC)
ACQUIRED = datetime(2018, 6, 11, 22, 27, 16, tzinfo=UTC)
RETINA_SHAPE: Shape3 = (16, 550, 549)


@dataclass(frozen=True)
class DemoEntry:
    """One entry. `width`, `height`, `pixel_angstrom` are what the portal claims, right or wrong."""

    accession: str
    title: str
    details: str
    experiment_type: str
    data_format: str
    released: str
    images: int
    frames: int
    width: str | int | None
    height: str | int | None
    pixel_angstrom: float | None
    size: str
    write_files: Callable[[Path], None]
    updated: str = ""

    @property
    def name(self) -> str:
        return f"EMPIAR-{self.accession}"


def entries(retina_shape: Shape3 = RETINA_SHAPE) -> tuple[DemoEntry, ...]:
    """The portal's entries; `retina_shape` (z-y-x) is that of 11759's sections."""
    return (_retina(retina_shape), _cortex(), _root())


def _retina(shape: Shape3) -> DemoEntry:
    return DemoEntry(
        accession="11759",
        title="Developing retina in zebrafish 55 hpf larval eye.",
        details=(
            "Generated voxels in the layout of the public entry of this number. \n"
            "It is a SBF-SEM data set. \nThe resolution is 8nm/px in xy and 50nm per section (z). \n\n"
            "The acquisition conditions on the FEI Magellan400 SEM were 1.9kV accelerating voltage and 200pA "
            "current at 0.5 usec dwell time. \nThe microtome unit is called Gatan 3ViewXP."
        ),
        experiment_type="SBF-SEM",
        data_format="DM3",
        released="2024-01-15",
        images=shape[0],
        frames=1,
        # Wrong, as in the public entry: its files hold 5496 × 5500 pixels.
        width="5628",
        height="5632",
        pixel_angstrom=80.0,
        size="1.2 GB",
        write_files=lambda folder: _write_retina(folder, shape),
    )


def _write_retina(folder: Path, shape: Shape3) -> None:
    thumbnails_grow = shape[0] * 10 // 16
    for z, plane in enumerate(_large_planes(shape, seed=11759, voxel_size_nm=(50.0, 8.0, 8.0))):
        section = Section(
            name=f"3VBSED_slice_{z:04d}",
            plane=plane,
            pixel_size_nm=7.998250424861908,
            thickness_nm=50.0,
            acquired=ACQUIRED + timedelta(seconds=54 * z),
            thumbnail=(192, 192) if z < thumbnails_grow else (384, 383),
        )
        write_dm3(folder / f"F57-8_test1_3VBSED_slice_{z:04d}.dm3", section)
    (folder / "F57-8_test1.xml").write_text("<trakem2/>\n")
    nested = folder / "trakem2.example" / "mipmaps"
    nested.mkdir(parents=True)
    (nested / "slice_0000.dm3").write_bytes(b"not a section")


def _cortex() -> DemoEntry:
    return DemoEntry(
        accession="99001",
        title="Demonstration: generated FIB-SEM volume in the likeness of mouse cerebral cortex",
        details="Generated. Isotropic voxels, slice thickness 10 nm, 1.5 kV, 0.8 nA.",
        experiment_type="FIB-SEM",
        data_format="MRC",
        released="2025-03-03",
        images=1,
        frames=96,
        width=None,
        height="",
        pixel_angstrom=100.0,
        size="3.5 MB",
        write_files=_write_cortex,
    )


def _write_cortex(folder: Path) -> None:
    import mrcfile

    shape: Shape3 = (96, 192, 188)
    volume = np.stack(list(_large_planes(shape, seed=99001, voxel_size_nm=(10.0, 10.0, 10.0))))
    with mrcfile.new(folder / "cortex_fibsem.mrc") as mrc:
        mrc.set_data(volume.astype(np.int16))
        mrc.set_volume()
        mrc.voxel_size = 100.0
        # The library writes the time of day into its label; the same portal serves the same bytes.
        mrc.header.label[0] = b"generated"


def _root() -> DemoEntry:
    return DemoEntry(
        accession="99002",
        title="Demonstration: generated ATUM-SEM sections in the likeness of Arabidopsis thaliana",
        details="Generated. Section thickness of 40 nm, landing energy 3 keV, dwell time of 800 ns.",
        experiment_type="ATUM-SEM",
        data_format="TIFF",
        released="2025-06-20",
        images=24,
        frames=1,
        width=310,
        height=300,
        pixel_angstrom=60.0,
        size="2.2 MB",
        write_files=_write_root,
    )


def _write_root(folder: Path) -> None:
    import tifffile

    shape: Shape3 = (24, 300, 310)
    for z, plane in enumerate(_large_planes(shape, seed=99002, voxel_size_nm=(40.0, 6.0, 6.0))):
        tifffile.imwrite(folder / f"section {z + 1:03d}.tif", plane, photometric="minisblack")


def _large_planes(
    shape: Shape3, *, seed: int, voxel_size_nm: tuple[float, float, float]
) -> Iterator[NDArray[np.uint8]]:
    tile = (shape[0], min(shape[1], LARGEST_TILE), min(shape[2], LARGEST_TILE))
    beyond = [(0, whole - part) for whole, part in zip(shape[1:], tile[1:], strict=True)]
    for plane in planes(tile, seed=seed, voxel_size_nm=voxel_size_nm):
        yield np.pad(plane, beyond, mode="symmetric") if any(any(b) for b in beyond) else plane


def generate(folder: Path, shown: tuple[DemoEntry, ...], retina_shape: Shape3) -> Path:
    """The archive's tree below `folder`, `<accession>/data/…`; made once and found again by any later portal.

    It becomes visible whole, by a rename; two portals that start together on one folder are safe.
    """
    key = short_hash(str(GENERATION), str(retina_shape), *(entry.accession for entry in shown))
    tree = folder / f"archive-{key}"
    if tree.is_dir():
        return tree
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
    try:
        for entry in shown:
            data = partial / entry.accession / "data"
            data.mkdir(parents=True)
            entry.write_files(data)
            (partial / entry.accession / f"{entry.accession}.xml").write_text(
                xml_header(entry), encoding="utf-8"
            )
        for path in partial.rglob("*"):
            os.utime(path, (FILED.timestamp(), FILED.timestamp()))
        try:
            partial.rename(tree)
        except OSError:
            if not tree.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tree


def rest_answer(entry: DemoEntry) -> dict[str, Any]:
    """The REST answer for an entry, in the portal's types: widths are strings, absent values null."""
    person = {"name": "Demonstration D", "author_orcid": None}
    image_set = {
        "name": entry.title,
        "directory": "data",
        "category": "reconstructed volumes",
        "header_format": entry.data_format,
        "data_format": entry.data_format,
        "num_images_or_tilt_series": entry.images,
        "frames_per_image": entry.frames,
        "frame_range_min": None,
        "frame_range_max": None,
        "voxel_type": "UNSIGNED BYTE" if entry.data_format != "MRC" else "SIGNED 16 BIT INTEGER",
        "pixel_width": entry.pixel_angstrom,
        "pixel_height": entry.pixel_angstrom,
        "image_width": entry.width,
        "image_height": entry.height,
        "details": entry.details,
        "segmentations": [],
        "micrographs_file_pattern": "",
    }
    body = {
        "title": entry.title,
        "status": "REL",
        "deposition_date": entry.released,
        "release_date": entry.released,
        "update_date": entry.updated or entry.released,
        "authors": [{"author": person}],
        "dataset_size": entry.size,
        "experiment_type": entry.experiment_type,
        "scale": "tissue",
        "entry_doi": f"10.6019/{entry.name}",
        "cross_references": [],
        "imagesets": [image_set],
        "citation": [
            {"authors": [person], "title": entry.title, "published": False, "doi": None, "year": None}
        ],
    }
    return {entry.name: body}


def xml_header(entry: DemoEntry) -> str:
    """The XML header beside an entry's files."""
    size, unit = entry.size.split()
    title, pixel = escape(entry.title), entry.pixel_angstrom
    return f"""<entry xmlns="http://pdbe.org/empiar" accessionCode="{entry.name}" public="true">
    <admin>
        <currentStatus>REL</currentStatus>
        <keyDates>
            <releaseDate>{entry.released}</releaseDate>
            <updateDate>{entry.updated or entry.released}</updateDate>
        </keyDates>
        <title>{title}</title>
        <authorsList><author>Demonstration D</author></authorsList>
        <grantSupport><grantReference><fundingBody/></grantReference></grantSupport>
        <datasetSize units="{unit}">{size}</datasetSize>
        <entryDOI>10.6019/{entry.name}</entryDOI>
        <experimentType>{entry.experiment_type}</experimentType>
    </admin>
    <crossReferences><citationList><universalCitation><nonJournalCitation published="false">
        <author order="1">Demonstration D</author>
        <bookTitle>{title}</bookTitle>
    </nonJournalCitation></universalCitation></citationList></crossReferences>
    <imageSet>
        <name>{title}</name>
        <directory>/data</directory>
        <category>reconstructed volumes</category>
        <dataFormat>{entry.data_format}</dataFormat>
        <numImagesOrTiltSeries>{entry.images}</numImagesOrTiltSeries>
        <framesPerImage>{entry.frames}</framesPerImage>
        <dimensions>
            <imageWidth>{"" if entry.width is None else entry.width}</imageWidth>
            <pixelWidth>{pixel}</pixelWidth>
            <imageHeight>{"" if entry.height is None else entry.height}</imageHeight>
            <pixelHeight>{pixel}</pixelHeight>
        </dimensions>
        <details>{escape(entry.details)}</details>
    </imageSet>
</entry>
"""


def search_answer(shown: tuple[DemoEntry, ...], page: int, page_size: int) -> str:
    """A page of the BioStudies search, newest first."""
    newest = sorted(shown, key=lambda entry: entry.released, reverse=True)
    hits = [
        {
            "accession": e.name,
            "type": "study",
            "title": e.title,
            "release_date": e.released,
            "files": 0,
            "links": 1,
        }
        for e in newest[(page - 1) * page_size : page * page_size]
    ]
    answer = {
        "page": page,
        "pageSize": page_size,
        "totalHits": len(shown),
        "isTotalHitsExact": True,
        "hits": hits,
    }
    return json.dumps(answer)


def ebi_search_answer(shown: tuple[DemoEntry, ...], start: int, size: int) -> str:
    """A page of EBI Search, whose dates have no separators."""
    found = [
        {
            "id": entry.name,
            "source": "empiar",
            "fields": {"title": [entry.title], "release_date": [entry.released.replace("-", "")]},
        }
        for entry in shown[start : start + size]
    ]
    return json.dumps({"hitCount": len(shown), "entries": found, "facets": []})
