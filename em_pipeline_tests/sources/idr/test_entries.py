"""IDR: what its two interfaces say of an image, and what may go wrong on the way."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest

from em_pipeline.demo.idr_entries import LAWO, MIRON, image_object
from em_pipeline.demo.idr_portal import IMAGE_BY_ID, SHAPE, IdrPortal
from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import InputRefused, RecordInvalid, SourceUnavailable
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.claims import spec_claims
from em_pipeline.sources.curated import curated_specs
from em_pipeline.sources.idr import IdrSource
from em_pipeline.sources.idr_claims import spdx
from em_pipeline_tests.sources.idr.entries import (
    ANNOTATIONS,
    CHROMATIN,
    IMAGE,
    INSET,
    NAME,
    annotations,
    said,
    say,
)


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
