"""What the demonstration IDR holds: three volumes of one electron-microscopy study, and studies that are not.

Numbers, names and keys are those of idr0086 (https://idr.openmicroscopy.org/webclient/?show=project-1161);
the voxels are generated.
"""

from dataclasses import dataclass
from typing import Any

Shape3 = tuple[int, int, int]
SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
MIRON, LAWO = "idr0086-miron-micrographs/experimentD", "idr0021-lawo-pericentriolarmaterial/experimentA"
BREKER = "idr0003-breker-plasticity/screenA"
CONVERTED = "idr0999-demonstration-volumes/experimentA"
# The first stands for the whole of a study and is empty. Screens and projects share numbers.
PROJECTS = {1158: "idr0086-miron-micrographs", 51: LAWO, 1161: MIRON, 3001: CONVERTED}
SCREENS = {51: BREKER}
FOLDER = "idr0086-miron-micrographs/20200610-ftp/experimentD/Miron_FIB-SEM/Miron_FIB-SEM"
INFOS = {
    MIRON: (
        ("Sample Type", "cell"),
        ("Organism", "Homo sapiens"),
        ("Study Type", "micrograph"),
        ("Imaging Method", "scanning electron microscopy (SEM)"),
        ("Publication Title", "Chromatin in demonstration domains"),
        ("Publication Authors", "Demonstration D, Example E"),
        ("Publication DOI", "10.1126/sciadv.aba8811 https://doi.org/10.1126/sciadv.aba8811"),
        ("Release Date", "2020-07-22"),
        ("License", "CC BY 4.0 https://creativecommons.org/licenses/by/4.0/"),
        ("Data DOI", "10.17867/10000141d https://doi.org/10.17867/10000141d"),
    ),
    LAWO: (
        ("Imaging Method", "structured illumination microscopy (SIM)"),
        ("Release Date", "2016-05-26"),
        ("License", "CC BY 4.0 https://creativecommons.org/licenses/by/4.0/"),
    ),
    CONVERTED: (
        ("Imaging Method", "focused ion beam scanning electron microscopy (FIB-SEM)"),
        ("Organism", "Homo sapiens"),
        ("Release Date", "2026-01-15"),
        ("License", "CC0 1.0 https://creativecommons.org/publicdomain/zero/1.0/"),
    ),
    BREKER: (("License", "CC BY-NC-SA 3.0 https://creativecommons.org/licenses/by-nc-sa/3.0/"),),
}


@dataclass(frozen=True)
class DemoImage:
    """An image, where its file lies on IDR's server and how the mirror spells that path; both empty for one
    that is only held as OME-Zarr, at `converted` below the object store's images.

    One that is `sized` has physical sizes in the API; others lack the keys.
    """

    number: int
    name: str
    dataset: tuple[int, str]
    project: int
    path: str
    mirrored: str
    seed: int
    cell_line: str
    sized: bool = True
    resliced: bool = False
    converted: str = ""


def _miron(
    number: int, name: str, dataset: tuple[int, str], seed: int, cell_line: str, **more: Any
) -> DemoImage:
    more = {"path": f"{FOLDER}_processed/{name}", "mirrored": f"{FOLDER}_processed/{name}", **more}
    return DemoImage(number, name, dataset, 1161, seed=seed, cell_line=cell_line, **more)


_U2OS, _HELA = (10740, "U2OS_chromatin"), (10739, "HeLa_chromatin")
_INSET = "Figure_1E_inset+FIB-SEM HeLa_G1_4x4x3nm.tif"
IMAGES = (
    _miron(9846137, "Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif", _U2OS, 13, "U2OS"),
    _miron(9846138, "Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xz.tif", _U2OS, 13, "U2OS", resliced=True),
    _miron(
        9846132,
        _INSET,
        _HELA,
        14,
        "HeLa",
        sized=False,
        path=f"{FOLDER}_inset/{_INSET}",
        mirrored=f"{FOLDER}_Inset/{_INSET}",
    ),
    DemoImage(
        16000001,
        "HeLa_cell.zarr",
        (16000, "HeLa_cells"),
        3001,
        "",
        "",
        16,
        "HeLa",
        sized=False,
        converted="idr0999A/16000001.zarr",
    ),
    DemoImage(
        1884807, "Centrin.dv", (51, "CDK5RAP2-C"), 51, "idr0021/Centrin.dv", "idr0021/Centrin.dv", 15, "HeLa"
    ),
)


def image_object(image: DemoImage, shape: Shape3) -> dict[str, Any]:
    """The image as the JSON API gives it: keys without a value are absent."""
    z, y, x = (shape[1], shape[0], shape[2]) if image.resliced else shape
    length = {"@type": "TBD#LengthI", "Unit": "MICROMETER", "Symbol": "µm", "Value": 0.02}
    pixels: dict[str, Any] = {
        "@id": image.number,
        "@type": f"{SCHEMA}#Pixels",
        "SizeX": x,
        "SizeY": y,
        "SizeZ": z,
        "SizeC": 1,
        "SizeT": 1,
        "Type": {"@type": "TBD#PixelsType", "value": "uint8"},
        "Channels": [{"@type": f"{SCHEMA}#Channel"}],
    }
    if image.sized:
        pixels |= {f"PhysicalSize{axis}": length for axis in "XYZ"}
    return {"@id": image.number, "@type": f"{SCHEMA}#Image", "Name": image.name, "Pixels": pixels}


def annotations_of(image: DemoImage) -> list[dict[str, Any]]:
    """The image's own annotations, one per namespace."""
    described = (
        ("Cell Cycle Stage", "G1"),
        ("Image Description", f"FIB-SEM of chromatin in {image.cell_line} cells"),
    )
    return [
        _annotation("image", image.number, image.name, namespace, values)
        for namespace, values in (
            ("openmicroscopy.org/omero/bulk_annotations", described),
            ("openmicroscopy.org/mapr/organism", (("Organism", "Homo sapiens"),)),
            ("openmicroscopy.org/mapr/cell_line", (("Cell Line", image.cell_line),)),
        )
    ]


def study_annotations(kind: str, number: int, name: str) -> list[dict[str, Any]]:
    """What IDR says of the study of a project or screen, and of what it consists."""
    parts = (("Experiments", name.partition("/")[2]),)
    return [
        _annotation(kind, number, name, "idr.openmicroscopy.org/study/info", INFOS[name]),
        _annotation(kind, number, name, "idr.openmicroscopy.org/study/components", parts),
    ]


def _annotation(
    kind: str, number: int, name: str, namespace: str, values: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    parent = {"id": number, "name": name, "class": f"{kind.title()}I"}
    return {
        "id": number,
        "ns": namespace,
        "class": "MapAnnotationI",
        "link": {"id": number, "parent": parent},
        "values": [list(pair) for pair in values],
    }


def paths_tables() -> dict[str, str]:
    """The studies' tables of file paths, by their path below the repositories' address."""
    tables: dict[str, str] = {}
    for image in filter(lambda one: one.path, IMAGES):
        study, experiment = PROJECTS[image.project].split("/")
        key = f"{study}/HEAD/{experiment}/{study[:7]}-{experiment}-filePaths.tsv"
        row = f"Dataset:name:{image.dataset[1]}\t/uod/idr/filesets/{image.path}\n"
        tables[key] = tables.get(key, "") + row
    return tables
