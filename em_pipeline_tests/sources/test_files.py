"""Files of one's own: ids, revisions, folders with anything in them, URLs."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import tifffile

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid, UnsupportedFormat
from em_pipeline.domain.files import RawFile
from em_pipeline.domain.geometry import PartialVoxelSize
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.files import FilesSource, spec_for

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
