"""EPFL's volumes: addresses with a space, a page that says things and drifts, ground truth."""

import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import tifffile

from em_pipeline.demo import epfl_portal
from em_pipeline.demo.epfl_portal import FOLDER, PAGE, PART, WHOLE, EpflPortal
from em_pipeline.demo.replay import MAINTENANCE, Reply, Trouble, text
from em_pipeline.demo.specimen import mitochondria, specimen
from em_pipeline.demo.tiff_writers import itk_size, write_itk
from em_pipeline.domain.errors import (
    ChecksumMismatch,
    InputRefused,
    NotFound,
    RecordInvalid,
    SourceUnavailable,
)
from em_pipeline.domain.files import RawFile
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.claims import spec_claims
from em_pipeline.sources import rendered_page
from em_pipeline.sources.base import HeldFile, PageReading, PortalRecord
from em_pipeline.sources.curated import curated_specs
from em_pipeline.sources.epfl import MD5_RECORDED_AT, VOLUMEDATA_MD5, VOLUMES, EpflSource
from em_pipeline.storage.download import DownloadPolicy, download

WHOLE_SPEC = DatasetSpec(source="epfl", accession="volumedata")
TRAINING = DatasetSpec(source="epfl", accession="training", label_images=("mitochondria",))


@pytest.fixture
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EpflPortal]:
    with EpflPortal(tmp_path_factory.getbasetemp() / "epfl") as portal:
        yield portal


@pytest.fixture
def epfl(portal: EpflPortal) -> EpflSource:
    return EpflSource(**portal.options, timeout_s=5, retries=0, backoff_s=0)


def said(record: PortalRecord, field: str) -> list[object]:
    return [claim.value for claim in record.claims if claim.field == field]


def held(portal: EpflPortal, *names: str) -> list[HeldFile]:
    files = [portal.tree / name for name in names]
    return [
        HeldFile(RawFile(url=f"file://{f}", path=f.name, size=f.stat().st_size, sha256=""), f) for f in files
    ]


def curated(accession: str) -> DatasetSpec:
    return next(spec for spec in curated_specs() if spec.dataset_id == f"epfl-{accession}")


class TestThePage:
    """What it says, and how far it has moved from the kept list."""

    def test_its_paragraph_is_the_description(self, epfl: EpflSource) -> None:
        record = epfl.fetch_record(WHOLE_SPEC)
        (description,) = said(record, "core.description")
        assert str(description).startswith("A 5x5x5µm section of the CA1 hippocampus")
        assert said(record, "core.title") == ["Electron Microscopy Dataset: volumedata"]
        assert said(record, "sample.tissue") == ["hippocampus"]

    def test_nanometres_of_a_voxel_are_told_from_the_section_s_micrometres(
        self, epfl: EpflSource, portal: EpflPortal
    ) -> None:
        portal.replace(PAGE, page_with(portal, "").replace("5x5x5µm", "7x7x7µm"))
        record = epfl.fetch_record(TRAINING)
        for axis in "zyx":
            assert said(record, f"core.voxel_size_nm.{axis}") == [5.0]

    def test_its_shape_is_meant_as_z_x_y_and_agrees_with_the_file(
        self, epfl: EpflSource, portal: EpflPortal
    ) -> None:
        record = epfl.fetch_record(WHOLE_SPEC)
        assert len(set(WHOLE)) == 3, "equal axes would hide their order"
        assert [said(record, f"core.volume_shape.{axis}") for axis in "zyx"] == [[n] for n in WHOLE]
        claim = next(claim for claim in record.claims if claim.field == "core.volume_shape.y")
        assert "z x y" in claim.evidence.reason
        with epfl.open_volume(WHOLE_SPEC, held(portal, "volumedata.tif")) as volume:
            resolved = DatasetRecord.resolve("epfl-volumedata", "r", [*record.claims, *volume.claims])
        assert resolved.conflicts == ()

    def test_a_shape_that_is_wrong_loses_against_the_file_and_the_conflict_is_shown(
        self, epfl: EpflSource, portal: EpflPortal
    ) -> None:
        z, y, x = WHOLE
        portal.replace(PAGE, page_with(portal, "").replace(f"{z}x{x}x{y}", f"{z}x{x + 1}x{y}"))
        record = epfl.fetch_record(WHOLE_SPEC)
        with epfl.open_volume(WHOLE_SPEC, held(portal, "volumedata.tif")) as volume:
            resolved = DatasetRecord.resolve("epfl-volumedata", "r", [*record.claims, *volume.claims])
        assert resolved.fields.core.volume_shape.model_dump() == {"z": z, "y": y, "x": x}
        (conflict,) = resolved.conflicts
        assert (conflict.field, conflict.rejected.value) == ("core.volume_shape.x", x + 1)

    def test_the_shape_of_the_whole_is_not_claimed_of_its_parts(self, epfl: EpflSource) -> None:
        assert said(epfl.fetch_record(TRAINING), "core.volume_shape.z") == []

    def test_without_a_licence_the_record_says_so(self, epfl: EpflSource, portal: EpflPortal) -> None:
        assert said(epfl.fetch_record(WHOLE_SPEC), "rights.licence") == ["unspecified"]
        portal.replace(PAGE, page_with(portal, "<p>Available under a Creative Commons licence.</p>"))
        assert said(epfl.fetch_record(WHOLE_SPEC), "rights.licence") == []

    def test_a_file_that_changed_since_the_record_is_another(
        self, epfl: EpflSource, portal: EpflPortal
    ) -> None:
        portal.trouble(Trouble.TRUNCATED, "volumedata.tif", times=1)
        with pytest.raises(RecordInvalid, match="Ingest it again"):
            epfl.list_files(WHOLE_SPEC, epfl.fetch_record(WHOLE_SPEC))

    def test_no_drift_where_the_lists_agree(self, epfl: EpflSource) -> None:
        page = epfl.fetch_record(WHOLE_SPEC).page
        assert page is not None
        assert (page.links_only_on_the_page, page.links_not_on_the_page) == ((), ())
        assert page.how == "as sent"

    def test_drift_is_recorded_and_stops_nothing(self, epfl: EpflSource, portal: EpflPortal) -> None:
        moved = portal.article().replace("testing.tif", "testing_v2.tif")
        portal.replace(PAGE, f"<html><title>T</title>{moved}</html>")
        record = epfl.fetch_record(WHOLE_SPEC)
        folder = f"{portal.url}{FOLDER.replace(' ', '%20')}"
        assert record.page == PageReading(
            url=f"{portal.url}{PAGE}",
            how="as sent",
            links_only_on_the_page=(f"{folder}testing_v2.tif",),
            links_not_on_the_page=(f"{folder}testing.tif",),
        )
        assert epfl.list_files(WHOLE_SPEC, record)

    def test_a_file_linked_at_another_address_is_a_conflict(
        self, epfl: EpflSource, portal: EpflPortal
    ) -> None:
        moved = portal.article().replace(f"{FOLDER}volumedata.tif", "/new/volumedata.tif")
        portal.replace(PAGE, f"<html><title>T</title>{moved}</html>")
        record = epfl.fetch_record(WHOLE_SPEC)
        resolved = DatasetRecord.resolve("epfl-volumedata", "r", record.claims)
        (conflict,) = resolved.conflicts
        assert conflict.field == "provenance.download_url"
        assert conflict.kept.value == epfl.list_files(WHOLE_SPEC, record)[0].url
        assert conflict.rejected.value == f"{portal.url}/new/volumedata.tif"

    def test_a_page_that_has_moved_leaves_the_curated_values(
        self, epfl: EpflSource, portal: EpflPortal
    ) -> None:
        portal.trouble(Trouble.MISSING, PAGE)
        stands_in(epfl, "it is not there any more")

    def test_a_forbidden_page_leaves_the_curated_values(
        self, epfl: EpflSource, portal: EpflPortal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer_page(portal, monkeypatch, text("<html>Forbidden</html>", status=403))
        stands_in(epfl, "it is forbidden")
        assert [ref.accession for ref in epfl.list_datasets()] == list(VOLUMES)

    def test_a_page_that_needs_a_browser_leaves_the_curated_values(
        self, epfl: EpflSource, portal: EpflPortal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rendered_page, "EXECUTABLES", ())
        portal.needs_javascript = True
        stands_in(epfl, "needs a browser")

    def test_half_a_page_is_an_outage(self, epfl: EpflSource, portal: EpflPortal) -> None:
        portal.trouble(Trouble.TRUNCATED, PAGE)
        with pytest.raises(SourceUnavailable, match="only the beginning"):
            epfl.fetch_record(WHOLE_SPEC)

    @pytest.mark.parametrize("page", ["<html><h1>Redesigned</h1></html>", MAINTENANCE])
    def test_a_page_without_the_article_leaves_the_curated_values(
        self, page: str, epfl: EpflSource, portal: EpflPortal
    ) -> None:
        portal.replace(PAGE, page)
        stands_in(epfl, "it no longer shows its content")
        assert page[:40] in epfl.fetch_record(WHOLE_SPEC).unavailable["page"]

    def test_a_page_in_no_known_encoding_leaves_the_curated_values(
        self, epfl: EpflSource, portal: EpflPortal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer_page(portal, monkeypatch, Reply(b"\xff\xfe\xff", "text/html; charset=utf-8"))
        stands_in(epfl, "it no longer shows its content")

    @pytest.mark.parametrize("trouble", [Trouble.RESET, Trouble.SERVER_ERROR, Trouble.CUT])
    def test_an_outage_of_the_page_is_one(
        self, trouble: Trouble, epfl: EpflSource, portal: EpflPortal
    ) -> None:
        portal.trouble(trouble, PAGE)
        with pytest.raises(SourceUnavailable):
            epfl.fetch_record(WHOLE_SPEC)

    def test_its_wording_does_not_change_the_revision(self, epfl: EpflSource, portal: EpflPortal) -> None:
        before = epfl.fetch_record(WHOLE_SPEC).revision
        portal.replace(PAGE, page_with(portal, "<p>News.</p>"))
        assert epfl.fetch_record(WHOLE_SPEC).revision == before


def page_with(portal: EpflPortal, more: str) -> str:
    return f"<html><title>T</title>{portal.article().replace('</article>', more + '</article>')}</html>"


def answer_page(portal: EpflPortal, monkeypatch: pytest.MonkeyPatch, reply: Reply) -> None:
    """Let the portal give `reply` in place of its page, and its files as ever."""
    answer = portal.answer
    monkeypatch.setattr(portal, "answer", lambda asked: reply if asked.path == PAGE else answer(asked))


def never_shown(*_: object) -> str:
    raise rendered_page.NeverShown("Read the page", "no article", "")


def how_read(record: PortalRecord) -> str | None:
    return record.page.how if record.page else None


def stands_in(epfl: EpflSource, how: str) -> None:
    """The curated spec's values, with their page and date, are what the record then rests on."""
    spec = curated("training")
    record = epfl.fetch_record(spec)
    assert how_read(record) == how
    resolved = DatasetRecord.resolve(spec.dataset_id, "r", [*record.claims, *spec_claims(spec)])
    assert resolved.fields.core.voxel_size_nm.model_dump() == {"z": 5.0, "y": 5.0, "x": 5.0}
    assert resolved.fields.rights.licence == "unspecified"
    kept = resolved.kept("core.voxel_size_nm.z")
    assert kept is not None
    assert kept.evidence.where == "https://www.epfl.ch/labs/cvlab/data/data-em/"
    assert kept.evidence.reason == "read on 2025-07-23"


@pytest.mark.browser
class TestInABrowser:
    """A page that only JavaScript fills, read in the system's Chromium."""

    @pytest.fixture(autouse=True)
    def browser(self) -> None:
        if rendered_page.find_browser() is None:
            pytest.skip("no Chromium on the PATH, or the extra [browser] is not installed")

    def test_it_is_rendered(self, epfl: EpflSource, portal: EpflPortal) -> None:
        as_sent = epfl.fetch_record(WHOLE_SPEC)
        portal.needs_javascript = True
        rendered = epfl.fetch_record(WHOLE_SPEC)
        assert how_read(rendered) == "rendered"
        assert rendered.claims == as_sent.claims

    def test_content_that_never_comes(self, portal: EpflPortal) -> None:
        browser = rendered_page.find_browser()
        assert browser is not None
        impatient = rendered_page.Browser(browser.executable, patience_s=1.0)
        with pytest.raises(rendered_page.NeverShown, match="shows no 'article h3#gone'"):
            impatient.render(f"{portal.url}{PAGE}", "article h3#gone")

    def test_a_page_that_has_changed_leaves_the_curated_values(
        self, epfl: EpflSource, portal: EpflPortal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rendered_page.Browser, "render", never_shown)
        portal.needs_javascript = True
        stands_in(epfl, "it no longer shows its content")

    def test_a_browser_that_does_not_start_is_an_outage(self, portal: EpflPortal) -> None:
        broken = rendered_page.Browser(shutil.which("false") or "/bin/false")
        with pytest.raises(SourceUnavailable):
            broken.render(f"{portal.url}{PAGE}", "article")


class TestFiles:
    """The kept list, and how the server answers."""

    def test_the_space_is_encoded_and_the_portal_needs_it(self, epfl: EpflSource, portal: EpflPortal) -> None:
        volume, truth = epfl.list_files(TRAINING, epfl.fetch_record(TRAINING))
        assert volume.url.endswith("/data/%20ElectronMicroscopy_Hippocampus/training.tif")
        assert truth.path == "training_groundtruth.tif"
        assert [file.size for file in (volume, truth)] == [itk_size(PART)] * 2
        assert volume.etag

    def test_label_images_are_files_only_where_the_spec_names_them(self, epfl: EpflSource) -> None:
        bare = DatasetSpec(source="epfl", accession="training")
        assert [file.path for file in epfl.list_files(bare, epfl.fetch_record(bare))] == ["training.tif"]

    def test_an_unknown_label_image_is_refused(self, epfl: EpflSource) -> None:
        spec = DatasetSpec(source="epfl", accession="training", label_images=("synapses",))
        with pytest.raises(InputRefused, match="it has mitochondria"):
            epfl.list_files(spec, epfl.fetch_record(spec))

    def test_a_password_is_told_from_a_file_that_is_gone(self, epfl: EpflSource, portal: EpflPortal) -> None:
        portal.asks_for_password = True
        with pytest.raises(InputRefused, match=r"HTTP 401.*academictorrents"):
            epfl.fetch_record(WHOLE_SPEC)
        portal.heal()
        portal.trouble(Trouble.MISSING, "volumedata.tif")
        with pytest.raises(NotFound):
            epfl.fetch_record(WHOLE_SPEC)

    def test_the_checksum_is_that_of_the_real_file_and_its_origin_is_told(self, portal: EpflPortal) -> None:
        source = EpflSource(documents=portal.url, pages=portal.url, retries=0)
        (file,) = source.list_files(WHOLE_SPEC, record := source.fetch_record(WHOLE_SPEC))
        assert file.checksum == f"md5:{VOLUMEDATA_MD5}" == "md5:14fc2fb6a5061ea4ea9b69a090c327c9"
        assert record.facts["checksums"]["volumedata.tif"]["recorded_at"] == MD5_RECORDED_AT

    def test_other_bytes_are_refused(self, portal: EpflPortal, tmp_path: Path) -> None:
        source = EpflSource(documents=portal.url, pages=portal.url, retries=0)
        files = source.list_files(WHOLE_SPEC, source.fetch_record(WHOLE_SPEC))
        with pytest.raises(ChecksumMismatch):
            download(
                files,
                tmp_path,
                dataset_id="epfl-volumedata",
                revision="r",
                policy=DownloadPolicy(retries=0),
                progress=Silent(),
            )

    def test_a_changed_file_is_another_revision(self, tmp_path: Path) -> None:
        with EpflPortal(tmp_path, shape=(2, 20, 30), part=(2, 20, 30)) as portal:
            source = EpflSource(**portal.options, retries=0)
            before = source.fetch_record(TRAINING).revision
            write_itk(portal.tree / "training_groundtruth.tif", specimen((2, 20, 30)), (2, 20, 30))
            assert source.fetch_record(TRAINING).revision != before


class TestVolumes:
    """TIFFs as ITK writes them."""

    def test_ground_truth_marks_the_mitochondria(self, epfl: EpflSource, portal: EpflPortal) -> None:
        files = held(portal, "training.tif", "training_groundtruth.tif")
        images = epfl.open_label_images(TRAINING, files)
        truth = images["mitochondria"].read(BoundingBox.of_shape(PART))
        assert set(np.unique(truth)) == {0, 255}
        inside = mitochondria(PART, seed=6, voxel_size_nm=epfl_portal.VOXEL_NM)
        assert np.array_equal(truth == 255, inside)
        with epfl.open_volume(TRAINING, files) as volume:
            grey = volume.read(BoundingBox.of_shape(PART))
        assert grey[inside].mean() < grey[~inside].mean() - 20

    def test_the_real_files_have_the_sizes_of_this_layout(self) -> None:
        assert itk_size((1065, 1536, 2048)) == 3_353_674_357
        assert itk_size((165, 768, 1024)) == 129_919_357

    @pytest.mark.parametrize("shape", [(3, 30, 2048), (2, 9, 33), (4, 20, 21), (1, 10, 10)])
    def test_a_written_file_has_the_size_and_the_tags(
        self, shape: tuple[int, int, int], tmp_path: Path
    ) -> None:
        path = tmp_path / "itk.tif"
        write_itk(path, voxels := specimen(shape), shape)
        assert path.stat().st_size == itk_size(shape)
        with tifffile.TiffFile(path) as tif:
            assert [len(page.tags) for page in tif.pages] == [14] * shape[0]
            for n, page in enumerate(tif.pages):
                assert page.tags.valueof("PageNumber") == (n, shape[0])
                assert page.tags.valueof("NewSubfileType") == 2
                assert page.tags.valueof("XResolution") is None
                assert page.tags.valueof("ImageDescription") is None
            assert np.array_equal(tif.asarray().reshape(shape), voxels)

    def test_rows_per_strip_follow_the_width(self, tmp_path: Path) -> None:
        write_itk(tmp_path / "wide.tif", specimen((1, 9, 2048)), (1, 9, 2048))
        with tifffile.TiffFile(tmp_path / "wide.tif") as tif:
            page = tif.pages.first
            assert page.rowsperstrip == 4
            assert page.dataoffsets == (8, 8200, 16392)


def test_the_listing_is_the_three_whenever_it_is_asked(epfl: EpflSource) -> None:
    listed = list(epfl.list_datasets(date(2099, 1, 1)))
    assert [ref.accession for ref in listed] == list(VOLUMES)
    for ref in listed:
        spec = DatasetSpec(source="epfl", accession=ref.accession)
        assert ref.revision == epfl.fetch_record(spec).revision


def test_every_volume_is_curated_with_its_label_images() -> None:
    for accession, volume in VOLUMES.items():
        assert curated(accession).label_images == tuple(volume.labels)
