"""Files of one's own: ids, revisions, folders with anything in them, URLs."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from em_pipeline.demo.openorganelle_portal import BUCKET, OpenOrganellePortal
from em_pipeline.demo.portal import DemoPortal
from em_pipeline.demo.replay import Trouble
from em_pipeline.demo.s3_bucket import Bucket
from em_pipeline.domain.errors import (
    InputRefused,
    NotFound,
    RecordInvalid,
    SourceUnavailable,
    UnsupportedFormat,
)
from em_pipeline.domain.files import RawFile
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape
from em_pipeline.domain.raw_layout import RawLayout
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.files import FilesSource, spec_for
from em_pipeline_tests.sources.arrays import Served, held_files

source = FilesSource(timeout_s=5, retries=0, backoff_s=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve sections, and what file managers and people leave beside them."""
    folder = tmp_path / "my stack"
    folder.mkdir()
    for z in range(12):
        tifffile.imwrite(folder / f"slice_{z}.tif", np.full((8, 9), z, np.uint8), photometric="minisblack")
    for clutter in (".DS_Store", "._slice_0.tif", "Thumbs.db", "notes.txt"):
        (folder / clutter).write_text("x")
    (folder / "old").mkdir()
    return folder


def names(spec: DatasetSpec) -> list[str]:
    return [file.path for file in source.list_files(spec, source.fetch_record(spec))]


class TestSpecFor:
    """Ids of local data."""

    def test_a_name_is_the_id(self, folder: Path) -> None:
        assert spec_for(folder, name="My stack").dataset_id == "files-my-stack"

    def test_the_same_location_has_the_same_id(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder.parent)
        given = (folder, str(folder), "my stack", "./my stack/", folder.as_uri())
        ids = {spec_for(location).dataset_id for location in given}
        assert len(ids) == 1
        assert ids.pop().startswith("files-my-stack-")

    def test_one_name_in_two_places_has_two_ids(self, tmp_path: Path) -> None:
        assert spec_for(tmp_path / "a/x.tif").dataset_id != spec_for(tmp_path / "b/x.tif").dataset_id

    def test_a_url_stays_as_it_is(self) -> None:
        spec = spec_for("https://example.org/a%20b/Vol%201.tif?x=1")
        assert spec.location == "https://example.org/a%20b/Vol%201.tif?x=1"
        assert spec.dataset_id.startswith("files-vol-1-")

    def test_a_voxel_size_is_kept_with_its_reason(self) -> None:
        size = PartialVoxelSize(z=30)
        spec = spec_for("x.tif", voxel_size=size, reason="from the paper")
        assert (spec.voxel_size_nm, spec.voxel_size_reason) == (size, "from the paper")

    @pytest.mark.parametrize("location", ["ftp://example.org/x.tif", "dvid://host/x"])
    def test_other_addresses_are_refused(self, location: str) -> None:
        with pytest.raises(InputRefused, match="not read"):
            spec_for(location)

    def test_a_name_without_letters_is_refused(self) -> None:
        with pytest.raises(InputRefused, match="not <source>-<accession>"):
            spec_for("x.tif", name="///")


class TestFolder:
    """A folder's own files, in order, and nothing else."""

    def test_sections_in_number_order_without_clutter(self, folder: Path) -> None:
        assert names(spec_for(folder)) == [f"slice_{z}.tif" for z in range(12)]

    def test_they_stay_in_place(self, folder: Path) -> None:
        spec = spec_for(folder)
        for file in source.list_files(spec, source.fetch_record(spec)):
            assert Path(unquote(urlsplit(file.url).path)) == folder / file.path
            assert file.url.startswith("file:///")

    def test_they_open_as_one_volume(self, folder: Path) -> None:
        spec = spec_for(folder)
        with source.open_volume(spec, in_place(spec)) as volume:
            assert volume.shape == (12, 8, 9)

    def test_claims_are_honest(self, folder: Path) -> None:
        record = source.fetch_record(spec_for(folder))
        said = {claim.field: claim.value for claim in record.claims}
        size = sum(path.stat().st_size for path in folder.glob("slice_*.tif"))
        assert said == {
            "core.title": "my stack",
            "provenance.download_url": folder.as_uri(),
            "technical.file_count": 12,
            "technical.file_size_bytes": size,
        }

    def test_include_chooses(self, folder: Path) -> None:
        assert names(spec_for(folder, include=["slice_1?.tif"])) == ["slice_10.tif", "slice_11.tif"]
        with pytest.raises(InputRefused, match=r"none of its 13 files .*\*.mrc"):
            names(spec_for(folder, include=["*.mrc"]))

    def test_mixed_formats_are_refused(self, folder: Path) -> None:
        (folder / "volume.mrc").write_bytes(b"x")
        with pytest.raises(InputRefused, match=r"mixes formats: 12 TIFF, 1 MRC.*include"):
            names(spec_for(folder))

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / ".hidden").write_text("x")
        with pytest.raises(InputRefused, match="is empty"):
            names(spec_for(tmp_path))

    def test_a_folder_of_folders_names_them(self, folder: Path) -> None:
        with pytest.raises(InputRefused, match="only the folders my stack"):
            names(spec_for(folder.parent))

    def test_a_folder_without_data_is_refused(self, tmp_path: Path) -> None:
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text("x")
        with pytest.raises(UnsupportedFormat, match=r"none of its 2 files.*TIFF"):
            names(spec_for(tmp_path))

    def test_a_zarr_folder_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "zarr.json").write_text("{}")
        with pytest.raises(NotFound, match=r"looked for zarr\.json.*image_set"):
            names(spec_for(tmp_path))

    def test_a_dangling_link_is_named(self, folder: Path) -> None:
        (folder / "slice_12.tif").symlink_to(folder / "gone.tif")
        with pytest.raises(NotFound, match=r"slice_12\.tif.*link"):
            names(spec_for(folder))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_an_unreadable_file_is_named(self, folder: Path) -> None:
        (folder / "slice_3.tif").chmod(0)
        with pytest.raises(InputRefused, match=r"slice_3\.tif.*permissions"):
            names(spec_for(folder))

    def test_several_volumes_say_what_to_do(self, tmp_path: Path) -> None:
        for name in ("a.tif", "b.tif"):
            tifffile.imwrite(tmp_path / name, np.zeros((3, 8, 9), np.uint8), photometric="minisblack")
        spec = spec_for(tmp_path)
        with pytest.raises(
            (UnsupportedFormat, InputRefused), match=r"holds 2 files \(a.tif, b.tif.*own path"
        ):
            source.open_volume(spec, in_place(spec))


class TestRevision:
    """A change is seen; nothing else is."""

    def test_it_is_stable(self, folder: Path) -> None:
        assert source.fetch_record(spec_for(folder)) == source.fetch_record(spec_for(folder))

    @pytest.mark.parametrize("change", ["grow", "touch", "add", "remove"])
    def test_it_changes_with_the_files(self, change: str, folder: Path) -> None:
        spec = spec_for(folder)
        record = source.fetch_record(spec)
        first = folder / "slice_0.tif"
        if change == "grow":
            first.write_bytes(first.read_bytes() + b"x")
        elif change == "touch":
            os.utime(first, (1, 1))
        elif change == "add":
            (folder / "slice_12.tif").write_bytes(first.read_bytes())
        else:
            first.unlink()
        assert source.fetch_record(spec).revision != record.revision
        with pytest.raises(RecordInvalid, match="changed since"):
            source.list_files(spec, record)

    def test_clutter_does_not_change_it(self, folder: Path) -> None:
        before = source.fetch_record(spec_for(folder)).revision
        (folder / ".DS_Store").write_text("more")
        assert source.fetch_record(spec_for(folder)).revision == before


def test_a_missing_path_names_its_nearest_siblings(folder: Path) -> None:
    with pytest.raises(NotFound, match=r"slise_3\.tif does not exist; nearest there: slice_3\.tif"):
        source.fetch_record(spec_for(folder / "slise_3.tif"))
    with pytest.raises(NotFound, match=r"my stak does not exist; nearest there: my stack"):
        source.fetch_record(spec_for(folder.parent / "my stak" / "slice_3.tif"))


def test_a_spec_without_location_is_refused() -> None:
    with pytest.raises(InputRefused, match="no location"):
        source.fetch_record(DatasetSpec(source="files", accession="x"))


def test_a_single_file_of_any_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "volume.raw").write_bytes(b"x")
    assert names(spec_for(tmp_path / "volume.raw")) == ["volume.raw"]


def test_a_url_to_a_folder_is_refused(portal: DemoPortal) -> None:
    with pytest.raises(InputRefused, match="does not end in a file's name"):
        source.fetch_record(spec_for(f"{portal.url}/empiar/world_availability/99001/data/"))


def test_a_url_is_recorded_by_its_headers(portal: DemoPortal) -> None:
    url = f"{portal.url}/empiar/world_availability/99002/data/section%20001.tif"
    spec = spec_for(url)
    (file,) = source.list_files(spec, source.fetch_record(spec))
    assert (file.url, file.path) == (url, "section 001.tif")
    assert file.etag


def in_place(spec: DatasetSpec) -> list[HeldFile]:
    return [
        HeldFile(
            RawFile(url=file.url, path=file.path, size=file.size or 0, sha256="0" * 64),
            Path(unquote(urlsplit(file.url).path)),
        )
        for file in source.list_files(spec, source.fetch_record(spec))
    ]


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.tif")
    try:
        Path(bad).write_bytes(b"II*\0")
    except OSError:
        pytest.skip("this disk holds UTF-8 names only")
    with pytest.raises(InputRefused, match=r"bad\\udcff\.tif.*[Rr]ename"):
        spec_for(bad)
    with pytest.raises(InputRefused, match=r"bad\\udcff\.tif.*[Rr]ename"):
        FilesSource().fetch_record(spec_for(tmp_path))


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").symlink_to(tmp_path / "a.tif")
    with pytest.raises(InputRefused, match=r"a\.tif"):
        spec_for(tmp_path / "a.tif")
    with pytest.raises(InputRefused, match=r"a\.tif"):
        FilesSource().fetch_record(spec_for(tmp_path))


@pytest.mark.parametrize("location", ["http://[bad/a.tif", "a\0b", "~nobody-of-that-name/a.tif"])
def test_what_is_no_place_is_refused(location: str) -> None:
    with pytest.raises(InputRefused):
        spec_for(location)


def test_a_name_too_long_for_the_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="too long"):
        FilesSource().fetch_record(spec_for(tmp_path / ("x" * 300)))


class TestArrays:
    """Zarr, N5, precomputed, HDF5 and raw voxels of one's own, and label images beside any of them."""

    def test_a_zarr_array_stays_in_place(self, tmp_path: Path) -> None:
        zarr.save_array(str(tmp_path / "x.zarr"), VOXELS, zarr_format=3)
        spec = spec_for(tmp_path / "x.zarr")
        files = in_place(spec)
        assert [held.file.path for held in files] == ["image/x.zarr/zarr.json", "image/x.zarr/c/0/0/0"]
        with source.open_volume(spec, files) as volume:
            assert (volume.read(BoundingBox.of_shape(volume.shape)) == VOXELS).all()

    def test_it_is_another_revision_when_a_chunk_changes(self, tmp_path: Path) -> None:
        zarr.save_array(str(tmp_path / "x.zarr"), VOXELS, zarr_format=2)
        spec = spec_for(tmp_path / "x.zarr")
        record = source.fetch_record(spec)
        os.utime(tmp_path / "x.zarr" / "0.0.0", (1, 1))
        with pytest.raises(RecordInvalid, match="changed since"):
            source.list_files(spec, record)

    def test_a_precomputed_volume(self, tmp_path: Path) -> None:
        write_precomputed(tmp_path / "p", VOXELS)
        spec = spec_for(tmp_path / "p")
        with source.open_volume(spec, in_place(spec)) as volume:
            assert (volume.read(BoundingBox.of_shape(volume.shape)) == VOXELS).all()

    def test_an_hdf5_dataset_by_its_path(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["volumes/raw"], file["volumes/other"] = VOXELS, VOXELS[:1]
        spec = spec_for(tmp_path / "x.h5").model_copy(update={"image_set": "volumes/raw"})
        with source.open_volume(spec, in_place(spec)) as volume:
            assert volume.shape == VOXELS.shape

    def test_voxels_without_a_header_as_a_person_says_they_lie(self, tmp_path: Path) -> None:
        (tmp_path / "x.raw").write_bytes(VOXELS.tobytes())
        layout = RawLayout(shape=Shape(*VOXELS.shape), dtype="u1")
        spec = spec_for(tmp_path / "x.raw").model_copy(update={"raw_layout": layout})
        with source.open_volume(spec, in_place(spec)) as volume:
            assert (volume.read(BoundingBox.of_shape(volume.shape)) == VOXELS).all()

    @pytest.mark.parametrize("image", ["zarr", "tif"])
    @pytest.mark.parametrize("labels", ["zarr", "tif", "precomputed"])
    def test_label_images_by_path(self, tmp_path: Path, image: str, labels: str) -> None:
        write_as(image, tmp_path / f"image.{image}", VOXELS)
        write_as(labels, tmp_path / f"mito.{labels}", VOXELS + 1)
        entry = f"mito={tmp_path / f'mito.{labels}'}"
        spec = spec_for(tmp_path / f"image.{image}").model_copy(update={"label_images": (entry,)})
        files = in_place(spec)
        images = source.open_label_images(spec, files)
        whole = BoundingBox.of_shape(VOXELS.shape)
        assert (images["mito"].read(whole) == VOXELS + 1).all()
        assert (source.open_volume(spec, files).read(whole) == VOXELS).all()

    def test_a_label_image_of_files_needs_an_address(self, folder: Path) -> None:
        spec = spec_for(folder).model_copy(update={"label_images": ("mito",)})
        with pytest.raises(InputRefused, match="name=path"):
            source.fetch_record(spec)


class TestRemoteArrays:
    """What lies at a web address is found out by the documents that only arrays have."""

    @pytest.fixture
    def organelles(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenOrganellePortal]:
        with OpenOrganellePortal(tmp_path_factory.getbasetemp() / "portal-OpenOrganellePortal") as portal:
            yield portal

    def test_a_level_of_an_image_in_an_object_store(self, organelles: OpenOrganellePortal) -> None:
        at_store = FilesSource(s3=organelles.url, timeout_s=5, retries=0, backoff_s=0)
        spec = spec_for(f"s3://{BUCKET}/jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2/em/fibsem-int16")
        box = BoundingBox.at((0, 0, 0), (35, 64, 64))
        spec = spec.model_copy(update={"level": 4, "bounding_box": box})
        files = at_store.list_files(spec, at_store.fetch_record(spec))
        assert [file.path[-6:] for file in files if "/.z" not in file.path] == ["/0/0/0"]

    def test_a_precomputed_volume_on_a_web_server(self, tmp_path: Path) -> None:
        write_precomputed(tmp_path / "served" / "em", VOXELS)
        write_precomputed(tmp_path / "served" / "mito", VOXELS + 1, kind="segmentation")
        with Served(Bucket("volumes", tmp_path / "served")) as server:
            entry = f"mito={server.url}/volumes/mito"
            spec = spec_for(f"{server.url}/volumes/em").model_copy(update={"label_images": (entry,)})
            files = held_files(source, spec, tmp_path / "raw")
        whole = BoundingBox.of_shape(VOXELS.shape)
        assert (source.open_volume(spec, files).read(whole) == VOXELS).all()
        assert (source.open_label_images(spec, files)["mito"].read(whole) == VOXELS + 1).all()

    def test_one_file_in_an_object_store(self, organelles: OpenOrganellePortal) -> None:
        at_store = FilesSource(s3=organelles.url, timeout_s=5, retries=0, backoff_s=0)
        spec = spec_for(f"s3://{BUCKET}/jrc_mus-nacc-2/thumbnail.jpg")
        (file,) = at_store.list_files(spec, at_store.fetch_record(spec))
        assert (file.path, file.size) == ("thumbnail.jpg", 9)

    def test_what_is_not_there_says_what_was_looked_for(self, organelles: OpenOrganellePortal) -> None:
        with pytest.raises(NotFound, match=r"no array either \(looked for zarr\.json.*info\)"):
            source.fetch_record(spec_for(f"{organelles.url}/{BUCKET}/nothing"))

    def test_an_outage_is_not_an_absent_array(self, organelles: OpenOrganellePortal) -> None:
        organelles.trouble(Trouble.UNAVAILABLE)
        with pytest.raises(SourceUnavailable):
            source.fetch_record(spec_for(f"{organelles.url}/{BUCKET}/jrc_mus-nacc-2/jrc_mus-nacc-2.zarr"))


VOXELS = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)


def write_as(kind: str, path: Path, voxels: NDArray[np.uint8]) -> None:
    if kind == "tif":
        tifffile.imwrite(path, voxels, photometric="minisblack")
    elif kind == "zarr":
        zarr.save_array(str(path), voxels, zarr_format=2)
    else:
        write_precomputed(path, voxels)


def write_precomputed(folder: Path, voxels: NDArray[np.uint8], kind: str = "image") -> None:
    """One unsharded level of raw chunks, x fastest."""
    z, y, x = voxels.shape
    scale = {
        "key": "8_8_8", "size": [x, y, z], "resolution": [8, 8, 8], "voxel_offset": [0, 0, 0],
        "chunk_sizes": [[x, y, z]], "encoding": "raw",
    }  # fmt: skip
    info = {"type": kind, "data_type": "uint8", "num_channels": 1, "scales": [scale]}
    (folder / "8_8_8").mkdir(parents=True)
    (folder / "info").write_text(json.dumps(info))
    (folder / "8_8_8" / f"0-{x}_0-{y}_0-{z}").write_bytes(voxels.tobytes())


def test_label_files_are_counted_as_they_are_once_they_are_held(tmp_path: Path) -> None:
    for name in ("image.mrc", "cells.mrc"):
        (tmp_path / name).write_bytes(b"0" * len(name))
    plain = spec_for(tmp_path / "image.mrc")
    spec = plain.model_copy(update={"label_images": (f"cells={tmp_path / 'cells.mrc'}",)})
    source = FilesSource()
    record = source.fetch_record(spec)
    said = {claim.field: claim.value for claim in record.claims}
    files = source.list_files(spec, record)
    assert said["technical.file_count"] == len(files) == 2
    assert said["technical.file_size_bytes"] == sum(file.size or 0 for file in files) == 18
