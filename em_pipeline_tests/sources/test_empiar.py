"""EMPIAR: the portal's known quirks, one test each, and how its files are chosen."""

import json
from typing import Any

import pytest

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.demo.portal_entries import rest_answer, xml_header
from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.domain.evidence import Origin
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec, Override
from em_pipeline.sources.base import PortalRecord
from em_pipeline.sources.empiar import EmpiarSource
from em_pipeline_tests.contracts.case_empiar import held

RETINA = DatasetSpec(source="empiar", accession="11759")
ENTRY = "/empiar/api/entry/EMPIAR-11759/"
HEADER = "/empiar/world_availability/11759/11759.xml"
FOLDER = "/empiar/world_availability/11759/data/"
SLICE_7 = "F57-8_test1_3VBSED_slice_0007.dm3"


def answer(portal: DemoPortal) -> dict[str, Any]:
    """A copy of the REST answer for 11759, to be changed."""
    entry = next(e for e in portal.entries if e.accession == "11759")
    return rest_answer(entry)


def say(portal: DemoPortal, document: Any) -> None:
    portal.replace(ENTRY, json.dumps(document))


def said(record: PortalRecord, field: str) -> list[Any]:
    return [claim.value for claim in record.claims if claim.field == field]


def file_names(source: EmpiarSource, spec: DatasetSpec = RETINA) -> list[str]:
    return [file.path for file in source.list_files(spec, source.fetch_record(spec))]


def test_pixel_sizes_are_angstrom(empiar: EmpiarSource) -> None:
    record = empiar.fetch_record(RETINA)
    claims = [claim for claim in record.claims if claim.field == "core.voxel_size_nm.x"]
    assert [claim.value for claim in claims] == [8.0, 8.0]
    assert [claim.evidence.raw for claim in claims] == [80.0, "80.0"]


def test_the_record_says_where_the_files_are(empiar: EmpiarSource, portal: DemoPortal) -> None:
    assert said(empiar.fetch_record(RETINA), "provenance.download_url") == [f"{portal.url}{FOLDER}"]


def test_the_section_thickness_is_read_from_prose(empiar: EmpiarSource) -> None:
    claim = next(c for c in empiar.fetch_record(RETINA).claims if c.field == "core.voxel_size_nm.z")
    assert claim.value == 50.0
    assert claim.evidence.raw == "50nm per section"


def test_wrong_catalogue_dimensions_become_conflicts(empiar: EmpiarSource, portal: DemoPortal) -> None:
    record = empiar.fetch_record(RETINA)
    files = [held(portal, file) for file in empiar.list_files(RETINA, record)]
    with empiar.open_volume(RETINA, files) as volume:
        resolved = DatasetRecord.resolve("empiar-11759", record.revision, [*record.claims, *volume.claims])
    shape = resolved.fields.core.volume_shape
    assert (shape.z, shape.y, shape.x) == (16, 550, 549)
    wrong = {(c.field, c.rejected.value) for c in resolved.conflicts if c.kept.evidence.origin is Origin.FILE}
    assert {("core.volume_shape.y", 5632), ("core.volume_shape.x", 5628)} <= wrong


def test_thumbnail_first_files_with_moving_offsets_open(empiar: EmpiarSource, portal: DemoPortal) -> None:
    files = [held(portal, file) for file in empiar.list_files(RETINA, empiar.fetch_record(RETINA))]
    assert len({file.path.stat().st_size for file in files}) > 1
    with empiar.open_volume(RETINA, files) as volume:
        assert volume.shape == (16, 550, 549)
        assert volume.voxel_size_nm.z == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("raw", "value"), [("5628", 5628), (5628, 5628), (None, None), ("", None), ("n/a", None)]
)
def test_image_width_is_a_string_a_number_or_nothing(
    raw: object, value: int | None, empiar: EmpiarSource, portal: DemoPortal
) -> None:
    document = answer(portal)
    document["EMPIAR-11759"]["imagesets"][0]["image_width"] = raw
    say(portal, document)
    portal.replace(HEADER, "")
    portal.trouble(Trouble.MISSING, HEADER)
    assert said(empiar.fetch_record(RETINA), "core.volume_shape.x") == ([] if value is None else [value])


@pytest.mark.parametrize("given", [["EMD-1"], [{"name": "EMD-1"}], [{"name": "EMD-1"}, None, {"name": None}]])
def test_cross_references_are_strings_or_objects(
    given: list[Any], empiar: EmpiarSource, portal: DemoPortal
) -> None:
    document = answer(portal)
    document["EMPIAR-11759"]["cross_references"] = given
    say(portal, document)
    assert empiar.fetch_record(RETINA).facts["cross_references"] == ["EMD-1"]


def test_a_bare_record_is_understood(empiar: EmpiarSource, portal: DemoPortal) -> None:
    wrapped = empiar.fetch_record(RETINA)
    say(portal, answer(portal)["EMPIAR-11759"])
    assert empiar.fetch_record(RETINA).claims == wrapped.claims


def test_the_header_has_single_elements(empiar: EmpiarSource) -> None:
    citations = said(empiar.fetch_record(RETINA), "rights.citation")
    assert len(citations) == 2
    assert len(set(citations)) == 1
    assert citations[0].startswith("Demonstration D (2024). Developing retina")


@pytest.mark.parametrize("document", [ENTRY, HEADER])
def test_html_with_status_200_is_an_outage(document: str, empiar: EmpiarSource, portal: DemoPortal) -> None:
    portal.trouble(Trouble.HTML, document)
    with pytest.raises(SourceUnavailable, match="answered with"):
        empiar.fetch_record(RETINA)


def test_rest_and_header_that_disagree_both_speak(empiar: EmpiarSource, portal: DemoPortal) -> None:
    entry = next(e for e in portal.entries if e.accession == "11759")
    portal.replace(HEADER, xml_header(entry).replace("SBF-SEM", "FIB-SEM"))
    record = empiar.fetch_record(RETINA)
    assert said(record, "core.modality") == ["SBF-SEM", "FIB-SEM"]
    resolved = DatasetRecord.resolve("empiar-11759", record.revision, record.claims)
    assert "core.modality" in {conflict.field for conflict in resolved.conflicts}


def test_an_entry_without_header_is_told_by_its_answer(empiar: EmpiarSource, portal: DemoPortal) -> None:
    portal.trouble(Trouble.MISSING, HEADER)
    record = empiar.fetch_record(RETINA)
    assert said(record, "core.title") == ["Developing retina in zebrafish 55 hpf larval eye."]
    assert set(record.documents) == {"entry.json"}


def test_the_revision_changes_with_the_entry(empiar: EmpiarSource, portal: DemoPortal) -> None:
    before = empiar.fetch_record(RETINA).revision
    assert before.startswith("2024-01-15-")
    document = answer(portal)
    document["EMPIAR-11759"]["title"] = "Another"
    say(portal, document)
    assert empiar.fetch_record(RETINA).revision != before


def test_an_unreleased_entry_is_refused(empiar: EmpiarSource, portal: DemoPortal) -> None:
    document = answer(portal)
    document["EMPIAR-11759"]["status"] = "HPUB"
    say(portal, document)
    with pytest.raises(RecordInvalid, match="'HPUB'"):
        empiar.fetch_record(RETINA)


@pytest.mark.parametrize(
    "document",
    [{"EMPIAR-1": {}}, {"EMPIAR-11759": None}, [], {"EMPIAR-11759": {"status": "REL", "imagesets": "x"}}, {}],
)
def test_another_shape_of_answer_is_invalid(document: Any, empiar: EmpiarSource, portal: DemoPortal) -> None:
    say(portal, document)
    with pytest.raises(RecordInvalid):
        empiar.fetch_record(RETINA)


def test_entity_declarations_are_refused(empiar: EmpiarSource, portal: DemoPortal) -> None:
    portal.replace(HEADER, '<!DOCTYPE e [<!ENTITY x SYSTEM "file:///etc/hostname">]><entry>&x;</entry>')
    with pytest.raises(RecordInvalid, match="entities"):
        empiar.fetch_record(RETINA)


@pytest.mark.parametrize("accession", ["retina", "11759-1", "12"])
def test_an_accession_is_a_number(accession: str, empiar: EmpiarSource) -> None:
    with pytest.raises(InputRefused, match="not a number"):
        empiar.fetch_record(DatasetSpec(source="empiar", accession=accession))


class TestImageSets:
    """Which of several image sets is meant."""

    @pytest.fixture(autouse=True)
    def two_sets(self, portal: DemoPortal) -> None:
        document = answer(portal)
        sets = document["EMPIAR-11759"]["imagesets"]
        sets.append({**sets[0], "name": "second", "details": "other", "num_images_or_tilt_series": 3})
        say(portal, document)

    def test_it_must_be_said(self, empiar: EmpiarSource) -> None:
        with pytest.raises(InputRefused, match=r"0: Developing .*16 images.*1: second .*3 images.*image_set"):
            empiar.fetch_record(RETINA)

    @pytest.mark.parametrize("chosen", [1, "second"])
    def test_by_number_or_name(self, chosen: int | str, empiar: EmpiarSource) -> None:
        record = empiar.fetch_record(RETINA.model_copy(update={"image_set": chosen}))
        # The header lists one set only, so nothing says which of the answer's it describes.
        assert said(record, "core.volume_shape.z") == [3]
        assert record.facts["images"] == 3

    @pytest.mark.parametrize("chosen", [2, -1, "third"])
    def test_one_that_is_not_there(self, chosen: int | str, empiar: EmpiarSource) -> None:
        with pytest.raises(InputRefused, match="is not one of: 0: "):
            empiar.fetch_record(RETINA.model_copy(update={"image_set": chosen}))


class TestFiles:
    """Which files of the folder are listed."""

    def test_only_top_level_files_of_the_format(self, empiar: EmpiarSource) -> None:
        names = file_names(empiar)
        assert names == [f"F57-8_test1_3VBSED_slice_{z:04d}.dm3" for z in range(16)]

    def test_a_listing_that_misses_a_file_is_asked_again(
        self, empiar: EmpiarSource, portal: DemoPortal
    ) -> None:
        portal.omit(SLICE_7, times=2)
        assert SLICE_7 in file_names(empiar)
        assert portal.requests[FOLDER] == 3

    def test_listings_that_miss_different_files_are_united(
        self, empiar: EmpiarSource, portal: DemoPortal
    ) -> None:
        for n, z in enumerate((7, 3, 11, 15)):
            portal.omit(f"F57-8_test1_3VBSED_slice_{z:04d}.dm3", times=1, after=n)
        assert len(file_names(empiar)) == 16
        assert portal.requests[FOLDER] == 2

    def test_a_file_that_is_never_listed_is_named(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        portal.omit(SLICE_7, times=99)
        with pytest.raises(RecordInvalid) as raised:
            file_names(empiar)
        message = str(raised.value)
        for words in ("15 of 16", "missing between them: 7", "technical.file_count", "include"):
            assert words in message

    def test_a_wrong_count_can_be_overridden(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        portal.omit(SLICE_7, times=99)
        count = Override(value=15, reason="the portal counts a file it does not have")
        spec = RETINA.model_copy(update={"overrides": {"technical.file_count": count}})
        assert len(file_names(empiar, spec)) == 15

    def test_include_chooses(self, empiar: EmpiarSource) -> None:
        spec = RETINA.model_copy(update={"include": ("*_000[2-4].dm3", "*.xml")})
        assert [name[-8:] for name in file_names(empiar, spec)] == [
            "est1.xml",
            "0002.dm3",
            "0003.dm3",
            "0004.dm3",
        ]

    def test_include_that_matches_nothing(self, empiar: EmpiarSource) -> None:
        with pytest.raises(RecordInvalid, match="no file there"):
            file_names(empiar, RETINA.model_copy(update={"include": ("*.tif",)}))

    def test_an_unknown_format_needs_include(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        document = answer(portal)
        document["EMPIAR-11759"]["imagesets"][0]["data_format"] = "SPIDER"
        say(portal, document)
        with pytest.raises(InputRefused, match=r"'SPIDER'.*include"):
            file_names(empiar)

    def test_one_file_may_hold_every_image(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        entry = next(e for e in portal.entries if e.accession == "99001")
        document = rest_answer(entry)
        document["EMPIAR-99001"]["imagesets"][0]["num_images_or_tilt_series"] = 96
        portal.replace("/empiar/api/entry/EMPIAR-99001/", json.dumps(document))
        assert file_names(empiar, DatasetSpec(source="empiar", accession="99001")) == ["cortex_fibsem.mrc"]

    def test_sizes_are_exact(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        for file in empiar.list_files(RETINA, empiar.fetch_record(RETINA)):
            assert file.size == held(portal, file).path.stat().st_size
            assert file.etag
            assert file.modified

    def test_a_directory_that_leads_elsewhere_is_refused(
        self, empiar: EmpiarSource, portal: DemoPortal
    ) -> None:
        document = answer(portal)
        document["EMPIAR-11759"]["imagesets"][0]["directory"] = "data/../../11760"
        say(portal, document)
        with pytest.raises(RecordInvalid, match="leads elsewhere"):
            empiar.fetch_record(RETINA)

    def test_a_maintenance_page_is_no_empty_folder(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        portal.trouble(Trouble.HTML, FOLDER)
        with pytest.raises(SourceUnavailable):
            file_names(empiar)

    def test_a_listed_file_that_is_not_served(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        portal.trouble(Trouble.MISSING, SLICE_7)
        with pytest.raises(NotFound, match=SLICE_7):
            file_names(empiar)
