"""Inspection over HTTP: what it says, that it says what the readers of whole files say, and what it costs."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr

from em_pipeline.demo.dm3 import Section, write_dm3
from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import InputRefused, NotFound, SourceUnavailable, UnsupportedFormat
from em_pipeline.formats.open import open_volume
from em_pipeline.ingest.inspection import MOST_BYTES, MOST_REQUESTS, Inspection, inspect, voxel_size_of
from em_pipeline.storage.transport import HttpPolicy
from em_pipeline_tests.formats import containers
from em_pipeline_tests.formats.helpers import ramp
from em_pipeline_tests.formats.sparse_tiff import EPFL, Layout, itk, sparse
from em_pipeline_tests.portals.folder import Folder

IMAGEJ = b"ImageJ=1.52p\nimages=3000\nslices=3000\nunit=nm\nspacing=5\n\0"
NOTHING = "<html>Not Found</html>"
Make = Callable[[Path], Path]
DVID = {
    "Base": {"TypeName": "uint8blk"},
    "Extended": {
        "BlockSize": [64, 64, 64], "VoxelSize": [8, 8, 10], "VoxelUnits": ["nanometers"] * 3,
        "MinPoint": [0, 0, 0], "MaxPoint": [299, 199, 99],
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with Folder(tmp_path) as running:
        yield running


def look(target: str, *, retries: int = 0) -> Inspection:
    policy = HttpPolicy(connections=1, retries=retries, backoff_s=0.01)
    return inspect(target, policy, lambda _: None)


def inspected(folder: Folder, path: Path) -> Inspection:
    """The inspection of a served file, of which the server itself counts what it took."""
    found = look(f"{folder.url}/{path.relative_to(folder.root)}")
    assert found.requests == folder.asked
    # Of an answer that there is nothing, the words are not counted.
    assert found.bytes_read <= folder.bytes_served <= found.bytes_read + folder.asked * len(NOTHING)
    assert found.bytes_read <= MOST_BYTES
    assert found.requests <= MOST_REQUESTS
    return found


def check_like_the_reader(found: Inspection, path: Path) -> None:
    """The image is what the reader of the whole file says."""
    (image,) = found.images
    with open_volume([path]) as volume:
        assert image.shape == volume.shape
        assert image.dtype == volume.dtype.name
        assert image.chunk_shape == volume.chunk_shape
        assert voxel_size_of(image) == volume.voxel_size_nm
    assert found.size == path.stat().st_size


def big_imagej(path: Path) -> Path:
    """One directory, then gigabytes of planes, as ImageJ writes above 4 GB."""
    layout = Layout(order=">", description=IMAGEJ)
    sparse(path, (1, 1000, 1500), layout)
    os.truncate(path, path.stat().st_size + 3000 * 1000 * 1500)
    return path


def dm3(path: Path) -> Path:
    rng = np.random.default_rng(3)
    plane = rng.integers(0, 255, (700, 600), np.uint8)
    write_dm3(path, Section("s", plane, 7.5, 50.0, datetime(2020, 1, 2, tzinfo=UTC), thumbnail=(384, 384)))
    return path


def mrc(path: Path) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(ramp((40, 100, 200), np.int16))
        file.voxel_size = (40.0, 50.0, 60.0)
    return path


def hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("volumes/raw", data=ramp((40, 100, 200)), chunks=(8, 50, 50))
        data.attrs["resolution"] = (50.0, 4.0, 4.0)
    return path


FILES: dict[str, tuple[str, Make, int, int]] = {
    "itk": ("a.tif", lambda path: itk(path, EPFL), 9, 300_000),
    "ifds at the end": ("a.tif", lambda path: sparse(path, EPFL, Layout(together="end")), 4, 200_000),
    "ifds at the start": ("a.tif", lambda path: sparse(path, EPFL, Layout(together="start")), 3, 250_000),
    "bigtiff": ("a.tif", lambda path: sparse(path, (3000, 1536, 2048), Layout(big=True)), 9, 300_000),
    "bigtiff, ifds at the end": (
        "a.btf", lambda path: sparse(path, (4000, 1536, 2048), Layout(big=True, together="end")), 6, 900_000
    ),
    "small pages": ("a.tif", lambda path: sparse(path, (9000, 64, 64)), 10, 1_200_000),
    "imagej, one ifd": ("a.tif", big_imagej, 2, 70_000),
    "dm3": ("a.dm3", dm3, 10, 800_000),
    "mrc": ("a.mrc", mrc, 1, 33_000),
    "hdf5": ("a.h5", hdf5, 3, 100_000),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_what_its_reader_says_for_a_few_requests(folder: Folder, kind: str) -> None:
    name, make, most_requests, most_bytes = FILES[kind]
    path = make(folder.root / name)
    found = inspected(folder, path)
    check_like_the_reader(found, path)
    assert found.requests <= most_requests
    assert found.bytes_read <= most_bytes


def test_a_sample_is_said_to_be_one(folder: Folder) -> None:
    (image,) = inspected(folder, itk(folder.root / "a.tif")).images
    assert image.shape == EPFL
    assert any("1065 pages, 8 IFDs read" in note and "not looked at" in note for note in image.notes)


def test_what_was_read_whole_is_not_said_to_be_sampled(folder: Folder) -> None:
    (image,) = inspected(folder, sparse(folder.root / "a.tif", (50, 300, 400), Layout(together="end"))).images
    assert (image.shape, image.notes) == ((50, 300, 400), ())
    assert image.metadata["pages"] == {"count": 50, "read": 50}


def test_a_count_that_is_not_known_is_not_given(folder: Folder) -> None:
    path = sparse(folder.root / "a.tif", (500, 1000, 1000), Layout(gaps=(1, 2, 500, 7)))
    (image,) = inspected(folder, path).images
    assert image.shape == (None, 1000, 1000)
    assert "at least 4 pages" in image.notes[0]
    assert "500 would fill the file" in image.notes[0]


@pytest.mark.parametrize(
    "how",
    [
        {"photometric": "minisblack"},
        {"photometric": "minisblack", "metadata": None},
        {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 4.0, "PhysicalSizeXUnit": "nm"}},
        {"imagej": True, "metadata": {"axes": "ZYX", "unit": "nm", "spacing": 5}, "resolution": (0.25, 0.25)},
        {"photometric": "minisblack", "compression": "zlib"},
        {"photometric": "minisblack", "tile": (64, 64), "bigtiff": True},
        {"photometric": "minisblack", "rowsperstrip": 16, "byteorder": ">"},
    ],
)
def test_tiffs_of_other_writers(folder: Folder, how: dict[str, Any]) -> None:
    path = folder.root / "a.tif"
    tifffile.imwrite(path, ramp((30, 200, 160), np.uint16), **how)
    check_like_the_reader(inspected(folder, path), path)


def test_channels_far_apart_are_not_taken_for_planes(folder: Folder) -> None:
    xml = (
        b'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        b'<Image ID="I"><Pixels DimensionOrder="XYZCT" Type="uint8" '
        b'SizeX="400" SizeY="300" SizeZ="25" SizeC="2" SizeT="1"><TiffData/></Pixels></Image></OME>\0'
    )
    path = sparse(folder.root / "a.ome.tif", (50, 300, 400), Layout(description=xml))
    (image,) = inspected(folder, path).images
    assert image.shape == (None, 300, 400)
    assert any("c=2" in note and "z=25" in note for note in image.notes)


def test_what_ingest_would_refuse_is_shown_with_the_reason(folder: Folder) -> None:
    path = folder.root / "a.tif"
    tifffile.imwrite(path, np.zeros((40, 50, 3), np.uint8), photometric="rgb")
    (image,) = inspected(folder, path).images
    assert any("em ingest" in note and "RGB" in note for note in image.notes)


def test_several_datasets_of_an_hdf5_file(folder: Folder) -> None:
    path = hdf5(folder.root / "a.h5")
    with h5py.File(path, "a") as file:
        file["volumes/labels"] = ramp((4, 10, 20), np.uint64)
        file["table"] = np.zeros(5)
    found = inspected(folder, path)
    assert [(image.name, image.dtype) for image in found.images] == [
        ("volumes/labels", "uint64"),
        ("volumes/raw", "uint8"),
    ]


def test_a_grey_picture(folder: Folder) -> None:
    from PIL import Image

    for name in ("a.png", "a.jpg"):
        Image.fromarray(ramp((90, 70))).save(folder.root / name)
        found = look(f"{folder.url}/{name}")
        check_like_the_reader(found, folder.root / name)
        assert found.requests == 1


def ome_zarr(root: Path, zarr_format: int, levels: int, **how: Any) -> Path:
    """A pyramid, finest first, halving; with a label image."""
    names = [f"s{n}" for n in range(levels)]
    datasets = [
        {"path": name, "coordinateTransformations": [
            {"type": "scale", "scale": [5.0 * 2**n, 4.0 * 2**n, 4.0 * 2**n]},
            {"type": "translation", "translation": [2.5 * (2**n - 1), 2.0 * (2**n - 1), 2.0 * (2**n - 1)]},
        ]}
        for n, name in enumerate(names)
    ]  # fmt: skip
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    image = {"axes": axes, "datasets": datasets}
    attributes: dict[str, Any] = (
        {"multiscales": [{"version": "0.4", **image}]}
        if zarr_format == 2
        else {"ome": {"version": "0.5", "multiscales": [image]}}
    )
    group = zarr.create_group(root, zarr_format=zarr_format, attributes=attributes)
    for n, name in enumerate(names):
        group.create_array(name, shape=(512 >> n,) * 3, dtype="uint8", chunks=(64,) * 3, **how)
    labels = {"labels": ["mito"]} if zarr_format == 2 else {"ome": {"version": "0.5", "labels": ["mito"]}}
    group.create_group("labels", attributes=labels)
    return root


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("levels", [1, 9])
@pytest.mark.parametrize("consolidated", [False, True])
def test_ome_zarr(folder: Folder, zarr_format: int, levels: int, consolidated: bool) -> None:
    root = ome_zarr(folder.root / "a.zarr", zarr_format, levels)
    if consolidated:
        with warnings.catch_warnings():
            # zarr-python writes it for v3 too, and says that the specification does not have it.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(root, zarr_format=zarr_format)
    found = inspected(folder, root)
    assert [image.name for image in found.images] == [f"s{n}" for n in range(levels)]
    assert [image.shape for image in found.images] == [(512 >> n,) * 3 for n in range(levels)]
    assert tuple(voxel_size_of(found.images[-1])) == tuple(n * 2 ** (levels - 1) for n in (5.0, 4.0, 4.0))
    assert found.images[0].chunk_shape == (64, 64, 64)
    assert found.labels == ("mito",)
    assert look(str(root)).images == found.images
    if consolidated:
        assert found.requests <= 2


def test_shards_are_named(folder: Folder) -> None:
    root = ome_zarr(folder.root / "a.zarr", 3, 1, shards=(128,) * 3)
    (image,) = inspected(folder, root).images
    assert image.chunk_shape == (64, 64, 64)
    assert image.notes == ("shards of 128×128×128",)


def test_an_image_inside_a_container(folder: Folder) -> None:
    ome_zarr(folder.root / "a.zarr" / "recon-1" / "em", 2, 3)
    found = look(f"{folder.url}/a.zarr/recon-1/em")
    assert [image.name for image in found.images] == ["s0", "s1", "s2"]
    with pytest.raises(NotFound):
        look(f"{folder.url}/a.zarr")
    assert look(str(folder.root / "a.zarr")).images[0].shape == found.images[0].shape


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_level_shows_the_whole_image(folder: Folder, zarr_format: int) -> None:
    root = ome_zarr(folder.root / "a.zarr" / "em", zarr_format, 9)
    found = inspected(folder, root / "s4")
    assert [image.name for image in found.images] == [f"s{n}" for n in range(9)]
    assert (found.notes, found.labels) == (("s4 is a level of this image",), ("mito",))


def test_a_collection_is_its_first_image(folder: Folder) -> None:
    zarr.create_group(folder.root / "a.zarr", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    ome_zarr(folder.root / "a.zarr" / "0", 2, 2)
    found = inspected(folder, folder.root / "a.zarr")
    assert len(found.images) == 2
    assert found.notes == ("a collection of images; this is image 0",)


def test_the_only_image_in_a_folder_is_meant_and_several_are_listed(tmp_path: Path) -> None:
    root = tmp_path / "fibsem.n5"
    containers.n5(root / "volumes" / "raw", ramp((12, 10, 9)))
    found = look(str(root))
    assert [image.shape for image in found.images] == [(12, 10, 9)]
    assert any("volumes/raw" in note for note in found.notes)
    containers.n5(root / "volumes" / "labels", ramp((12, 10, 9)))
    with pytest.raises(NotFound, match="volumes/labels, volumes/raw"):
        look(str(root))


def test_n5(folder: Folder) -> None:
    root = folder.root / "a.n5"
    for level in range(3):
        containers.n5(root / "em" / f"s{level}", ramp((40 >> level, 30 >> level, 20 >> level)))
    (root / "attributes.json").write_text('{"n5": "2.5.0"}')
    found = inspected(folder, root / "em")
    assert [image.shape for image in found.images] == [(40, 30, 20), (20, 15, 10), (10, 7, 5)]
    assert found.kind == "N5"


INFO = {
    "@type": "neuroglancer_multiscale_volume", "type": "segmentation",
    "data_type": "uint64", "num_channels": 1,
    "scales": [
        {"key": f"{8 << n}", "size": [600 >> n, 400 >> n, 200 >> n], "voxel_offset": [0, 0, 0],
         "resolution": [8 << n, 8 << n, 8 << n], "chunk_sizes": [[64, 64, 64]],
         "encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
        for n in range(2)
    ],
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "precomputed://"])
def test_precomputed(folder: Folder, prefix: str) -> None:
    (folder.root / "seg").mkdir()
    (folder.root / "seg" / "info").write_text(json.dumps(INFO))
    found = look(f"{prefix}{folder.url}/seg")
    assert found.kind == "precomputed segmentation"
    assert [image.shape for image in found.images] == [(200, 400, 600), (100, 200, 300)]
    assert [tuple(voxel_size_of(image)) for image in found.images] == [(8.0,) * 3, (16.0,) * 3]
    assert found.requests <= 2
    assert look(str(folder.root / "seg")).images == found.images


def test_dvid(folder: Folder) -> None:
    instance = folder.root / "api" / "node" / "abc" / "grayscale"
    instance.mkdir(parents=True)
    (instance / "info").write_text(json.dumps(DVID))
    for target in (f"{folder.url}/api/node/abc/grayscale", f"{folder.url}/api/node/abc/grayscale/info"):
        (image,) = look(target).images
        assert (image.shape, tuple(voxel_size_of(image))) == ((100, 200, 300), (10.0, 8.0, 8.0))


@pytest.mark.parametrize("trouble", [Trouble.SERVER_ERROR, Trouble.RESET, Trouble.HTML, Trouble.CUT])
@pytest.mark.parametrize("name", ["a.mrc", "a.zarr", "seg"])
def test_trouble_is_an_outage_never_a_verdict(folder: Folder, name: str, trouble: Trouble) -> None:
    mrc(folder.root / "a.mrc")
    ome_zarr(folder.root / "a.zarr", 2, 2)
    (folder.root / "seg").mkdir()
    (folder.root / "seg" / "info").write_text(json.dumps(INFO))
    folder.trouble(trouble, times=1)
    assert look(f"{folder.url}/{name}", retries=1).images
    folder.trouble(trouble)
    with pytest.raises(SourceUnavailable):
        look(f"{folder.url}/{name}")


@pytest.mark.parametrize("trouble", [Trouble.SERVER_ERROR, Trouble.HTML, Trouble.CUT])
@pytest.mark.parametrize("kind", ["itk", "ifds at the end", "dm3", "hdf5"])
def test_an_outage_in_the_middle_of_a_file(folder: Folder, kind: str, trouble: Trouble) -> None:
    """Readers that meet an error half way must not make damage of it."""
    name, make, _, _ = FILES[kind]
    path = make(folder.root / name)
    whole = look(f"{folder.url}/{name}").requests
    for healthy in range(1, whole):
        folder.fails_after(healthy, trouble)
        with pytest.raises(SourceUnavailable):
            look(f"{folder.url}/{path.name}")


def test_a_server_without_ranges(folder: Folder) -> None:
    folder.ranges = False
    mrc(folder.root / "a.mrc")
    assert look(f"{folder.url}/a.mrc").requests == 1
    sparse(folder.root / "big.tif", (30, 300, 400))
    with pytest.raises(InputRefused, match="inspect the local copy"):
        look(f"{folder.url}/big.tif")


def test_what_the_budget_cannot_tell_is_said(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("em_pipeline.ingest.inspection.MOST_REQUESTS", 2)
    path = dm3(folder.root / "a.dm3")
    found = look(f"{folder.url}/{path.name}")
    assert (found.kind, found.images, found.requests) == ("DM3/DM4", (), 2)
    assert "not known" in found.notes[0]
    monkeypatch.setattr("em_pipeline.ingest.inspection.MOST_REQUESTS", 3)
    (image,) = look(f"{folder.url}/{itk(folder.root / 'a.tif').name}").images
    assert image.shape == (None, *EPFL[1:])


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("{url}/nothing.tif", NotFound, "nothing.tif"),
        ("{url}/nothing", NotFound, "{url}/nothing"),
        ("{root}/nothing.tif", NotFound, "no such file"),
        ("{root}", InputRefused, "no file"),
        ("ftp://host/a.tif", InputRefused, "http"),
        ("{url}/words.txt", UnsupportedFormat, "Formats read"),
        ("{url}/page.html", UnsupportedFormat, "page instead of the file"),
    ],
)
def test_what_cannot_be_inspected(folder: Folder, target: str, error: type[Exception], words: str) -> None:
    known = {"url": folder.url, "root": str(folder.root)}
    (folder.root / "words.txt").write_text("words, words")
    (folder.root / "page.html").write_text("<html>")
    if target == "{root}":
        (folder.root / "words.txt").unlink()
        (folder.root / "page.html").unlink()
    with pytest.raises(error, match=words.format(**known)):
        look(target.format(**known))


def test_a_folder_of_planes_is_its_first_file(tmp_path: Path) -> None:
    for z in (10, 9, 7):
        tifffile.imwrite(tmp_path / f"s_{z}.tif", ramp((20, 30)), photometric="minisblack")
    found = look(str(tmp_path))
    assert found.images[0].shape == (1, 20, 30)
    assert "3 files; only s_7.tif" in found.notes[0]
    assert found.notes[1] == "1 number is missing in the file names: 8"


@pytest.mark.live
def test_a_real_file_of_epfl() -> None:
    found = look(
        "https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus/volumedata.tif",
        retries=2,
    )
    assert found.images[0].shape == EPFL
