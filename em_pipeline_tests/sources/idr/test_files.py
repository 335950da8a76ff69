"""IDR: where a file lies, whether it is the image's, and what its header says."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile

from em_pipeline.demo.idr_entries import FOLDER, MIRON
from em_pipeline.demo.idr_portal import IMAGE_BY_ID, SHAPE, VOXEL_UM, IdrPortal
from em_pipeline.demo.replay import MAINTENANCE, Trouble
from em_pipeline.demo.specimen import specimen
from em_pipeline.demo.tiff_writers import imagej_size, write_imagej
from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import open_volume
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.idr import IdrSource
from em_pipeline.sources.idr_files import Experiment, path_of
from em_pipeline.storage.download import DownloadPolicy, download
from em_pipeline_tests.sources.idr.entries import (
    BOX,
    CHROMATIN,
    IMAGE,
    INSET,
    NAME,
    TABLE,
    ftp_server,
    said,
)


class TestTheFile:
    """From the image's name to an address on the mirror."""

    def test_the_xy_stack_and_not_its_reslicing(self, idr: IdrSource, portal: IdrPortal) -> None:
        (file,) = idr.list_files(CHROMATIN, idr.fetch_record(CHROMATIN))
        assert file.url == f"{portal.url}/pub/databases/IDR/{FOLDER}_processed/{file.path}"
        assert file.path == "Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif"
        assert file.size == imagej_size(SHAPE, VOXEL_UM)

    def test_plus_space_and_case_follow_the_mirror(self, idr: IdrSource, portal: IdrPortal) -> None:
        (file,) = idr.list_files(INSET, idr.fetch_record(INSET))
        name = "Figure_1E_inset%2BFIB-SEM%20HeLa_G1_4x4x3nm.tif"
        assert file.url == f"{portal.url}/pub/databases/IDR/{FOLDER}_Inset/{name}"
        assert file.path == "Figure_1E_inset+FIB-SEM HeLa_G1_4x4x3nm.tif"
        assert httpx.head(file.url).status_code == 200

    def test_plus_and_space_are_encoded_where_the_case_is_right(
        self, idr: IdrSource, portal: IdrPortal
    ) -> None:
        path = f"/uod/idr/filesets/{IMAGE_BY_ID[9846132].mirrored}"
        portal.replace(TABLE, f"Dataset:name:HeLa_chromatin\t{path}\n")
        (file,) = idr.list_files(INSET, idr.fetch_record(INSET))
        assert file.url.endswith("_Inset/Figure_1E_inset%2BFIB-SEM%20HeLa_G1_4x4x3nm.tif")
        assert portal.requests["/pub/databases/IDR/"] == 0

    def test_the_same_file_is_at_hand_by_ftp(self, portal: IdrPortal) -> None:
        idr = IdrSource(**{**portal.options, "ftp": "ftp://ftp.example.org/IDR/"}, retries=0)
        (file,) = idr.list_files(INSET, idr.fetch_record(INSET))
        below = file.url.removeprefix(f"{portal.url}/pub/databases/IDR")
        assert file.mirrors == (f"ftp://ftp.example.org/IDR{below}",)

    @pytest.mark.integration
    def test_ftp_brings_it_where_https_fails(self, portal: IdrPortal, tmp_path: Path) -> None:
        with ftp_server(portal.tree / "files") as ftp:
            idr = IdrSource(**{**portal.options, "ftp": ftp}, retries=0)
            record = idr.fetch_record(INSET)
            files = idr.list_files(INSET, record)
            portal.trouble(Trouble.UNAVAILABLE, "/pub/databases/IDR/")
            manifest = download(
                files,
                tmp_path,
                dataset_id=INSET.dataset_id,
                revision=record.revision,
                policy=DownloadPolicy(retries=0),
                progress=Silent(),
            )
        (file,) = manifest.files
        assert file.url.startswith(ftp)
        original = portal.tree / "files" / IMAGE_BY_ID[9846132].mirrored
        assert (tmp_path / file.path).read_bytes() == original.read_bytes()

    def test_a_file_that_the_mirror_lacks(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.replace(TABLE, f"Dataset:name:U2OS_chromatin\t/uod/idr/filesets/idr0086-none/{NAME}\n")
        with pytest.raises(NotFound, match="nothing called 'idr0086-none'"):
            idr.fetch_record(CHROMATIN)

    def test_an_outage_of_a_listing_is_no_absence(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.replace("/pub/databases/IDR/idr0086-miron-micrographs/", MAINTENANCE)
        with pytest.raises(SourceUnavailable, match="no directory listing"):
            idr.fetch_record(INSET)

    @pytest.mark.parametrize("path", ["/uod/idr/metadata/x/{}", "/uod/idr/filesets/../../etc/{}"])
    def test_a_path_that_is_not_mirrored(self, path: str, idr: IdrSource, portal: IdrPortal) -> None:
        portal.replace(TABLE, f"Dataset:name:U2OS_chromatin\t{path.format(NAME)}\n")
        with pytest.raises(RecordInvalid, match="only what is below /uod/idr/filesets/"):
            idr.fetch_record(CHROMATIN)

    def test_a_name_that_is_no_file_s_is_invalid(self, idr: IdrSource, portal: IdrPortal) -> None:
        image = httpx.get(f"{portal.url}{IMAGE}").json()
        image["data"]["Name"] = "b\\c.tif"
        portal.replace(IMAGE, json.dumps(image))
        portal.replace(TABLE, "Dataset:name:U2OS_chromatin\t/uod/idr/filesets/a/b\\c.tif\n")
        with pytest.raises(RecordInvalid, match="could not be a file's"):
            idr.fetch_record(CHROMATIN)

    def test_a_study_without_the_table_is_not_found(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.trouble(Trouble.MISSING, TABLE)
        with pytest.raises(NotFound, match="filePaths"):
            idr.fetch_record(CHROMATIN)

    def test_a_page_in_place_of_the_table_is_an_outage(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.trouble(Trouble.HTML, TABLE)
        with pytest.raises(SourceUnavailable, match="no table"):
            idr.fetch_record(CHROMATIN)

    def test_a_new_file_is_a_new_revision(self, tmp_path: Path) -> None:
        with IdrPortal(tmp_path, shape=(2, 10, 12)) as portal:
            idr = IdrSource(**portal.options, retries=0)
            before = idr.fetch_record(CHROMATIN).revision
            write_imagej(
                portal.tree / "files" / IMAGE_BY_ID[9846137].mirrored, specimen((3, 10, 12)), VOXEL_UM
            )
            assert idr.fetch_record(CHROMATIN).revision != before

    def test_a_file_that_changed_since_the_record_is_another(self, idr: IdrSource, portal: IdrPortal) -> None:
        record = idr.fetch_record(CHROMATIN)
        portal.trouble(Trouble.TRUNCATED, ".tif", times=1)
        with pytest.raises(RecordInvalid, match="Ingest it again"):
            idr.list_files(CHROMATIN, record)

    def test_nothing_is_asked_of_the_server_that_it_refuses(self, idr: IdrSource, portal: IdrPortal) -> None:
        idr.list_files(CHROMATIN, idr.fetch_record(CHROMATIN))
        assert not [path for path in portal.requests if path.startswith("/webgateway/")]


class TestOmeZarr:
    """Images of converted studies, on the object store."""

    CONVERTED = DatasetSpec(source="idr", accession="16000001")

    def held(self, idr: IdrSource, spec: DatasetSpec, folder: Path) -> list[HeldFile]:
        record = idr.fetch_record(spec)
        manifest = download(
            idr.list_files(spec, record),
            folder,
            dataset_id=spec.dataset_id,
            revision=record.revision,
            policy=DownloadPolicy(retries=0),
            progress=Silent(),
        )
        return [HeldFile(file, folder / file.path) for file in manifest.files]

    def test_an_image_without_a_file_is_read_from_there(self, idr: IdrSource, tmp_path: Path) -> None:
        record = idr.fetch_record(self.CONVERTED)
        assert said(record, "core.voxel_size_nm.z") == [pytest.approx(20.0)]
        assert said(record, "rights.licence") == ["CC0-1.0"]
        with idr.open_volume(self.CONVERTED, self.held(idr, self.CONVERTED, tmp_path)) as volume:
            assert volume.shape == SHAPE
            voxels = volume.read(BoundingBox.of_shape(SHAPE))
        assert np.array_equal(voxels, specimen(SHAPE, seed=16, voxel_size_nm=(20.0, 20.0, 20.0)))

    @pytest.mark.parametrize("level", [1, "1"])
    def test_a_level(self, level: int | str, idr: IdrSource, tmp_path: Path) -> None:
        spec = self.CONVERTED.model_copy(update={"level": level})
        with idr.open_volume(spec, self.held(idr, spec, tmp_path)) as volume:
            assert volume.shape == tuple(-(-n // 2) for n in SHAPE)
            assert tuple(volume.voxel_size_nm) == pytest.approx((40.0, 40.0, 40.0))
            claims = [*volume.claims, *idr.fetch_record(spec).claims]
        geometry = ("core.volume_shape", "core.voxel_size_nm")
        conflicts = DatasetRecord.resolve(spec.dataset_id, "r", claims).conflicts
        assert [one.field for one in conflicts if one.field.startswith(geometry)] == []

    def test_only_the_chunks_of_a_box(self, idr: IdrSource) -> None:
        box = BoundingBox.at((0, 0, 0), (10, 10, 10))
        spec = self.CONVERTED.model_copy(update={"bounding_box": box})
        paths = [file.path for file in idr.list_files(spec, idr.fetch_record(spec))]
        assert [path for path in paths if path.endswith("/0/0/0/0")] == ["image/0/0/0/0/0"]
        assert not [path for path in paths if path.endswith("/1/0")]

    def test_a_level_of_an_image_that_is_only_a_file(self, idr: IdrSource) -> None:
        with pytest.raises(NotFound, match="not among the images that IDR has as OME-Zarr"):
            idr.fetch_record(CHROMATIN.model_copy(update={"level": 1}))

    def test_label_images_of_an_image_in_a_file_are_refused(self, idr: IdrSource) -> None:
        spec = CHROMATIN.model_copy(update={"label_images": ("nuclei",)})
        with pytest.raises(InputRefused, match="is one file"):
            idr.list_files(spec, idr.fetch_record(spec))

    def test_newer_studies_have_no_letter(self, idr: IdrSource, portal: IdrPortal) -> None:
        (portal.tree / "zarr" / "idr0999A").rename(portal.tree / "zarr" / "idr0999")
        try:
            root = idr.fetch_record(self.CONVERTED).facts["zarr"]
        finally:
            (portal.tree / "zarr" / "idr0999").rename(portal.tree / "zarr" / "idr0999A")
        assert root == f"{portal.url}/idr/zarr/v0.4/idr0999/16000001.zarr"

    def test_an_outage_of_the_store_is_no_absence(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.trouble(Trouble.UNAVAILABLE, "/idr/zarr/")
        with pytest.raises(SourceUnavailable):
            idr.fetch_record(self.CONVERTED)


class TestThePathsTable:
    """Rows of a study's table."""

    @pytest.mark.parametrize(
        ("target", "dataset"),
        [
            ("Dataset:name:A", "A"),
            ("Project:name:p/Dataset:name:A", "A"),
            ("Dataset:name:B", None),
            ("x", "A"),
        ],
    )
    def test_a_row_counts_for_its_dataset(self, target: str, dataset: str | None) -> None:
        assert path_of(f"{target}\t/d/v.tif\n", "u", "v.tif", dataset) == "/d/v.tif"

    def test_a_file_of_another_dataset_does_not(self) -> None:
        table = "Dataset:name:A\t/a/v.tif\nDataset:name:B\t/b/v.tif\n"
        assert path_of(table, "u", "v.tif", "B") == "/b/v.tif"
        with pytest.raises(RecordInvalid, match="has 2 files"):
            path_of(table, "u", "v.tif", None)
        with pytest.raises(RecordInvalid, match="has no file"):
            path_of(table, "u", "v.tif", "C")

    def test_an_image_of_a_file_with_several_is_named_after_it(self) -> None:
        assert path_of("Dataset:name:A\t/a/v.lif\n", "u", "v.lif [Series 3]", "A") == "/a/v.lif"

    def test_experiments_are_named_by_their_projects(self) -> None:
        found = Experiment.of_project(MIRON)
        assert found == Experiment("idr0086", "idr0086-miron-micrographs", "experimentD")
        assert Experiment.of_project("idr0086-miron-micrographs") is None
        assert Experiment.of_project("other/experimentA") is None


class TestImageJFiles:
    """The bytes that ImageJ 1.52p wrote."""

    def test_the_unit_is_six_characters_and_a_letter(self, idr: IdrSource, portal: IdrPortal) -> None:
        path = portal.tree / "files" / IMAGE_BY_ID[9846137].mirrored
        assert b"unit=\\u00B5m\n" in path.read_bytes()[:400]
        with tifffile.TiffFile(path) as tif:
            page = tif.pages.first
            assert tif.byteorder == ">"
            assert page.tags.valueof("XResolution") == (50_000_000, 1_000_000)
            assert page.tags.valueof("ResolutionUnit") == 1
            assert len(page.tags) == 13

    def test_they_are_twenty_nanometres_and_z_y_x(self, portal: IdrPortal) -> None:
        with open_volume([portal.tree / "files" / IMAGE_BY_ID[9846137].mirrored]) as volume:
            assert volume.shape == SHAPE
            assert volume.dtype == np.uint8
            assert tuple(volume.voxel_size_nm) == pytest.approx((20.0, 20.0, 20.0))

    def test_the_real_pair_has_the_sizes_of_this_layout(self) -> None:
        both = imagej_size((184, 775, 1121), 0.02) + imagej_size((775, 184, 1121), 0.02)
        assert both == 319_864_790

    @pytest.mark.slow
    def test_the_volume_of_the_real_size(self, tmp_path: Path) -> None:
        voxels = np.random.default_rng(0).integers(36, 200, (184, 775, 1121), np.uint8)
        write_imagej(path := tmp_path / "real.tif", voxels, 0.02)
        with tifffile.TiffFile(path) as tif:
            assert [page.dataoffsets[0] for page in list(tif.pages)[:2]] == [278, 869_053]
        with open_volume([path]) as volume:
            assert volume.shape == (184, 775, 1121)
            assert volume.dtype == np.uint8
            assert tuple(volume.voxel_size_nm) == pytest.approx((20.0, 20.0, 20.0))
            assert volume.read(BOX)[0, 0, 0] == voxels[BOX.slices][0, 0, 0]

    def test_portal_and_file_agree(self, idr: IdrSource, portal: IdrPortal) -> None:
        record = idr.fetch_record(CHROMATIN)
        with open_volume([portal.tree / "files" / IMAGE_BY_ID[9846137].mirrored]) as volume:
            resolved = DatasetRecord.resolve("idr-9846137", "r", [*record.claims, *volume.claims])
        assert resolved.conflicts == ()
