"""IDR: what its two interfaces say, where a file lies, and what may go wrong on the way."""

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tifffile

from em_pipeline.demo.idr_entries import FOLDER, LAWO, MIRON, image_object
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
from em_pipeline.ingest.claims import spec_claims
from em_pipeline.sources.base import HeldFile, PortalRecord
from em_pipeline.sources.curated import curated_specs
from em_pipeline.sources.idr import IdrSource
from em_pipeline.sources.idr_claims import spdx
from em_pipeline.sources.idr_files import Experiment, path_of
from em_pipeline.storage.download import DownloadPolicy, download

CHROMATIN = DatasetSpec(source="idr", accession="9846137")
INSET = DatasetSpec(source="idr", accession="9846132")
IMAGE = "/api/v0/m/images/9846137/"
TABLE = "/IDR/idr0086-miron-micrographs/HEAD/experimentD/idr0086-experimentD-filePaths.tsv"
ANNOTATIONS = "/webclient/api/annotations/"
NAME = "Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif"
BOX = BoundingBox.at((100, 300, 500), (1, 1, 1))


@pytest.fixture
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdrPortal]:
    with IdrPortal(tmp_path_factory.getbasetemp() / "idr") as portal:
        yield portal


@pytest.fixture
def idr(portal: IdrPortal) -> IdrSource:
    return IdrSource(**portal.options, timeout_s=5, retries=0, backoff_s=0)


def said(record: PortalRecord, field: str) -> list[object]:
    return [claim.value for claim in record.claims if claim.field == field]


@contextmanager
def ftp_server(folder: Path) -> Iterator[str]:
    """An anonymous FTP server for a folder; its address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it is built on asyncore
        from pyftpdlib.authorizers import DummyAuthorizer
        from pyftpdlib.handlers import FTPHandler
        from pyftpdlib.servers import ThreadedFTPServer

    authorizer = DummyAuthorizer()
    authorizer.add_anonymous(str(folder))
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer})
    server = ThreadedFTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"ftp://127.0.0.1:{server.address[1]}"
    finally:
        server.close_all()
        thread.join(5)


def say(portal: IdrPortal, **pixels: Any) -> None:
    """The chromatin's answer with other pixels; a value of None takes the key away."""
    answer = {"data": image_object(IMAGE_BY_ID[9846137], SHAPE)}
    answer["data"]["Pixels"] |= pixels
    answer["data"]["Pixels"] = {k: v for k, v in answer["data"]["Pixels"].items() if v is not None}
    portal.replace(IMAGE, json.dumps(answer))


class TestTheImage:
    """What the JSON API says, and what it leaves out."""

    def test_shape_size_and_type(self, idr: IdrSource) -> None:
        record = idr.fetch_record(CHROMATIN)
        assert [said(record, f"core.volume_shape.{axis}") for axis in "zyx"] == [[n] for n in SHAPE]
        assert [said(record, f"core.voxel_size_nm.{axis}") for axis in "zyx"] == [[20.0]] * 3
        assert said(record, "core.data_type") == ["uint8"]
        assert said(record, "core.title") == ["Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif"]

    @pytest.mark.parametrize(
        ("unit", "value"),
        [
            ("PICOMETER", 20e3),
            ("ANGSTROM", 200),
            ("NANOMETER", 20),
            ("MICROMETER", 0.02),
            ("MILLIMETER", 2e-5),
            ("CENTIMETER", 2e-6),
            ("METER", 2e-8),
        ],
    )
    def test_every_unit_of_length_is_converted(
        self, unit: str, value: float, idr: IdrSource, portal: IdrPortal
    ) -> None:
        length = {"Unit": unit, "Value": value}
        say(portal, PhysicalSizeX=length, PhysicalSizeY=length, PhysicalSizeZ=length)
        assert said(idr.fetch_record(CHROMATIN), "core.voxel_size_nm.x") == [pytest.approx(20.0)]

    def test_a_size_in_pixels_is_none(self, idr: IdrSource, portal: IdrPortal) -> None:
        say(portal, PhysicalSizeX={"Unit": "PIXEL", "Value": 1.0})
        record = idr.fetch_record(CHROMATIN)
        assert said(record, "core.voxel_size_nm.x") == []
        assert said(record, "core.voxel_size_nm.y") == [20.0]

    @pytest.mark.parametrize(
        ("kind", "dtype"), [("float", "float32"), ("double", "float64"), ("int16", "int16")]
    )
    def test_pixel_types_have_numpy_names(
        self, kind: str, dtype: str, idr: IdrSource, portal: IdrPortal
    ) -> None:
        say(portal, Type={"value": kind})
        assert said(idr.fetch_record(CHROMATIN), "core.data_type") == [dtype]

    def test_an_acquisition_date_is_in_milliseconds(self, idr: IdrSource, portal: IdrPortal) -> None:
        answer = {"data": image_object(IMAGE_BY_ID[9846137], SHAPE) | {"AcquisitionDate": 1528675200000}}
        portal.replace(IMAGE, json.dumps(answer))
        assert said(idr.fetch_record(CHROMATIN), "core.imaging_start_date") == ["2018-06-11"]

    @pytest.mark.parametrize("document", [{}, [], {"data": []}, {"data": {"Name": "x"}}, {"message": "no"}])
    def test_another_shape_of_answer_is_invalid(
        self, document: Any, idr: IdrSource, portal: IdrPortal
    ) -> None:
        portal.replace(IMAGE, json.dumps(document))
        with pytest.raises(RecordInvalid):
            idr.fetch_record(CHROMATIN)

    @pytest.mark.parametrize("accession", ["idr0086", "0", "98x", "-1"])
    def test_an_accession_is_a_number(self, accession: str, idr: IdrSource) -> None:
        with pytest.raises(InputRefused, match="not a number"):
            idr.fetch_record(DatasetSpec(source="idr", accession=accession))


class TestTheWebClient:
    """`imgData`, asked only where the API lacks something, in both of its shapes."""

    def test_it_is_not_asked_where_the_api_says_all(self, idr: IdrSource, portal: IdrPortal) -> None:
        idr.fetch_record(CHROMATIN)
        assert portal.requests["/webclient/imgData/9846137/"] == 0

    def test_sizes_that_the_api_lacks_come_from_it(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.migrating = False
        record = idr.fetch_record(INSET)
        assert [said(record, f"core.voxel_size_nm.{axis}") for axis in "zyx"] == [[20.0]] * 3

    def test_an_exception_with_status_200_says_nothing(self, idr: IdrSource) -> None:
        record = idr.fetch_record(INSET)
        assert said(record, "core.voxel_size_nm.x") == []
        assert said(record, "core.title")

    @pytest.mark.parametrize("migrating", [True, False])
    def test_it_names_the_project_where_the_api_does_not(
        self, migrating: bool, idr: IdrSource, portal: IdrPortal
    ) -> None:
        portal.parents_known, portal.migrating = False, migrating
        record = idr.fetch_record(CHROMATIN)
        assert (record.facts["dataset"], record.facts["project"]) == ("U2OS_chromatin", MIRON)
        assert said(record, "rights.licence") == ["CC-BY-4.0"]

    def test_an_image_without_a_project_says_what_to_do(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.parents_known = False
        portal.trouble(Trouble.MISSING, "imgData")
        with pytest.raises(RecordInvalid, match="names no project"):
            idr.fetch_record(CHROMATIN)


class TestAnnotations:
    """Pairs on the image and its study; numbers of projects and screens overlap."""

    def test_sample_and_method(self, idr: IdrSource) -> None:
        record = idr.fetch_record(CHROMATIN)
        assert said(record, "sample.organism") == ["Homo sapiens"]
        assert said(record, "sample.cell_type") == ["U2OS"]
        assert said(record, "core.modality") == ["scanning electron microscopy (SEM)"]
        assert said(record, "core.description") == ["FIB-SEM of chromatin in U2OS cells"]

    def test_rights(self, idr: IdrSource) -> None:
        record = idr.fetch_record(CHROMATIN)
        assert said(record, "rights.licence") == ["CC-BY-4.0"]
        assert said(record, "rights.doi") == ["10.17867/10000141d"]
        (citation,) = said(record, "rights.citation")
        assert str(citation).endswith("domains. https://doi.org/10.1126/sciadv.aba8811")

    @pytest.mark.parametrize(
        ("written", "identifier"),
        [
            ("CC BY 4.0 https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
            ("CC BY-NC-SA 3.0 https://creativecommons.org/licenses/by-nc-sa/3.0/", "CC-BY-NC-SA-3.0"),
            ("CC BY-NC-ND 4.0", "CC-BY-NC-ND-4.0"),
            ("CC0 1.0 https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
            ("Custom terms", "Custom terms"),
        ],
    )
    def test_licences_become_identifiers(self, written: str, identifier: str) -> None:
        assert spdx(written) == identifier

    def test_a_study_without_a_licence_grants_none(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.replace(ANNOTATIONS, annotations(1161, MIRON, "ProjectI", [["Release Date", "2020-07-22"]]))
        record = idr.fetch_record(CHROMATIN)
        assert said(record, "rights.licence") == ["unspecified"]

    @pytest.mark.parametrize(
        ("number", "name", "kind"),
        [(1161, LAWO, "ProjectI"), (51, MIRON, "ProjectI"), (1161, MIRON, "ScreenI")],
    )
    def test_those_of_another_study_are_not_taken(
        self, number: int, name: str, kind: str, idr: IdrSource, portal: IdrPortal
    ) -> None:
        portal.replace(ANNOTATIONS, annotations(number, name, kind, [["License", "CC0 1.0"]]))
        assert said(idr.fetch_record(CHROMATIN), "rights.licence") == []

    @pytest.mark.parametrize(
        "document",
        [
            {},
            {"annotations": [{}]},
            {"annotations": None},
            [],
            {"annotations": [{"ns": "", "values": [], "link": {"parent": {"class": "ImageI", "id": 1}}}]},
        ],
    )
    def test_another_shape_of_answer_is_invalid(
        self, document: Any, idr: IdrSource, portal: IdrPortal
    ) -> None:
        portal.replace(ANNOTATIONS, json.dumps(document))
        with pytest.raises(RecordInvalid, match="no list of annotations"):
            idr.fetch_record(CHROMATIN)

    def test_a_new_licence_is_a_new_revision(self, idr: IdrSource, portal: IdrPortal) -> None:
        before = idr.fetch_record(CHROMATIN).revision
        assert before.startswith("2020-07-22-")
        portal.replace(
            ANNOTATIONS,
            annotations(1161, MIRON, "ProjectI", [["Release Date", "2020-07-22"], ["License", "CC0 1.0"]]),
        )
        after = idr.fetch_record(CHROMATIN).revision
        assert after.startswith("2020-07-22-")
        assert after != before


def annotations(number: int, name: str, kind: str, values: list[list[str]]) -> str:
    parent = {"id": number, "name": name, "class": kind}
    namespace = "idr.openmicroscopy.org/study/info"
    return json.dumps({"annotations": [{"ns": namespace, "values": values, "link": {"parent": parent}}]})


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


class TestTheListing:
    """Images of electron microscopy, and nothing else."""

    def test_reslicings_other_methods_and_empty_projects_are_left_out(self, idr: IdrSource) -> None:
        listed = {ref.accession: ref for ref in idr.list_datasets()}
        assert set(listed) == {"9846137", "9846132", "16000001"}
        assert listed["9846137"].released == date(2020, 7, 22)
        assert listed["9846137"].title == f"{NAME} ({MIRON})"

    def test_methods_are_a_setting(self, portal: IdrPortal) -> None:
        light = IdrSource(**portal.options, methods="SIM, SPIM", retries=0)
        assert [ref.accession for ref in light.list_datasets()] == ["1884807"]

    def test_since_is_the_study_s_release(self, idr: IdrSource) -> None:
        assert len(list(idr.list_datasets(date(2020, 7, 22)))) == 3
        assert [ref.accession for ref in idr.list_datasets(date(2020, 7, 23))] == ["16000001"]
        assert list(idr.list_datasets(date(2026, 1, 16))) == []

    def test_pages_are_put_together(self, idr: IdrSource, portal: IdrPortal) -> None:
        whole = list(idr.list_datasets())
        portal.max_limit = 1
        assert list(idr.list_datasets()) == whole

    def test_a_list_cut_short_is_an_outage(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.replace("/api/v0/m/projects/", json.dumps({"data": [], "meta": {"totalCount": 147}}))
        with pytest.raises(SourceUnavailable, match="147 entries were announced and 0 came"):
            list(idr.list_datasets())

    def test_no_project_at_all_is_an_outage(self, idr: IdrSource, portal: IdrPortal) -> None:
        portal.replace("/api/v0/m/projects/", json.dumps({"data": [], "meta": {"totalCount": 0}}))
        with pytest.raises(SourceUnavailable, match="no project"):
            list(idr.list_datasets())

    @pytest.mark.parametrize("document", [{}, {"data": [{}], "meta": {"totalCount": 1}}, {"data": []}])
    def test_another_shape_of_list_is_an_outage(
        self, document: Any, idr: IdrSource, portal: IdrPortal
    ) -> None:
        portal.replace("/api/v0/m/projects/", json.dumps(document))
        with pytest.raises(SourceUnavailable, match="another shape"):
            list(idr.list_datasets())

    def test_a_server_that_answers_for_one_parent_only(self, idr: IdrSource, portal: IdrPortal) -> None:
        whole = list(idr.list_datasets())
        portal.answers_for_one = True
        assert list(idr.list_datasets()) == whole

    def test_single_planes_are_left_out(self, tmp_path: Path) -> None:
        with IdrPortal(tmp_path, shape=(1, 10, 12)) as portal:
            assert list(IdrSource(**portal.options, retries=0).list_datasets()) == []


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


def test_the_curated_chromatin_has_the_microscope_of_its_study() -> None:
    spec = next(spec for spec in curated_specs() if spec.dataset_id == "idr-9846137")
    fields = DatasetRecord.resolve(spec.dataset_id, "r", spec_claims(spec)).fields
    assert fields.core.modality == "FIB-SEM"
    assert fields.acquisition.accelerating_voltage_kv == 1.2
    assert fields.acquisition.beam_current_pa == 2000
    assert fields.acquisition.scan_rate_mhz == 0.5
    assert fields.acquisition.duration_days == 6


def test_the_replay_refuses_what_idr_refuses(portal: IdrPortal) -> None:
    assert httpx.get(f"{portal.url}/webgateway/render_image/9846137/0/0/").status_code == 403
    original = f"{portal.url}/webgateway/archived_files/download/9846137/"
    page = httpx.get(original, follow_redirects=True)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
