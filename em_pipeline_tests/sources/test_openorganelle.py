"""OpenOrganelle: what is discovered in the bucket, which level is taken, and how little is asked for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_pipeline.demo.openorganelle_page import page
from em_pipeline.demo.openorganelle_portal import BUCKET, OpenOrganellePortal
from em_pipeline.demo.openorganelle_tree import NUCLEI
from em_pipeline.demo.replay import Reply, Request, Trouble, text
from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.domain.evidence import Origin
from em_pipeline.domain.geometry import BoundingBox, VoxelSize
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import Curated, DatasetSpec
from em_pipeline.ingest.cuts import image_cut, label_cut
from em_pipeline.sources.base import PortalRecord
from em_pipeline.sources.openorganelle import OpenOrganelleSource
from em_pipeline.sources.rendered_page import Browser, NeverShown, find_browser
from em_pipeline_tests.sources.arrays import held_files

NACC = "jrc_mus-nacc-2"
IMAGE = f"/{BUCKET}/{NACC}/{NACC}.zarr/recon-2/em/fibsem-int16"
EMPTY = "<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
CORNER = BoundingBox.at((0, 0, 0), (8, 16, 16))


@pytest.fixture
def organelles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenOrganellePortal]:
    folder = tmp_path_factory.getbasetemp() / "portal-OpenOrganellePortal"
    with OpenOrganellePortal(folder, listing_page=7) as portal:
        yield portal


@pytest.fixture
def source(organelles: OpenOrganellePortal) -> OpenOrganelleSource:
    return OpenOrganelleSource(**organelles.options, timeout_s=5, retries=0, backoff_s=0)


def spec_of(accession: str = NACC, **more: Any) -> DatasetSpec:
    return DatasetSpec(source="openorganelle", accession=accession, **more)


def how_read(record: PortalRecord) -> str | None:
    return record.page.how if record.page else None


def said(source: OpenOrganelleSource, spec: DatasetSpec) -> dict[str, Any]:
    """The record's values."""
    record = source.fetch_record(spec)
    return DatasetRecord.resolve(spec.dataset_id, record.revision, record.claims).values()


class TestDiscovery:
    """Nothing of the bucket's layout is taken for granted."""

    def test_the_reconstruction_that_has_em_is_found(self, source: OpenOrganelleSource) -> None:
        assert "/recon-2/em/fibsem-int16/s0" in said(source, spec_of())["provenance.download_url"]

    def test_of_two_data_types_the_one_that_is_not_rescaled(self, source: OpenOrganelleSource) -> None:
        values = said(source, spec_of("jrc_mus-kidney"))
        assert (values["core.data_type"], values["technical.file_format"]) == ("uint16", "N5")

    @pytest.mark.parametrize("choice", ["fibsem-uint8", "em/fibsem-uint8", 1])
    def test_another_image_by_any_part_of_its_path_or_its_number(
        self, source: OpenOrganelleSource, choice: int | str
    ) -> None:
        assert said(source, spec_of("jrc_mus-kidney", image_set=choice))["core.data_type"] == "uint8"

    @pytest.mark.parametrize("choice", ["fibsem", "tem-uint8", 2, -1])
    def test_a_choice_that_there_is_not_names_those_there_are(
        self, source: OpenOrganelleSource, choice: int | str
    ) -> None:
        with pytest.raises(InputRefused, match=r"0: jrc_mus-kidney\.n5/em/fibsem-uint16, 1: .*uint8"):
            source.fetch_record(spec_of("jrc_mus-kidney", image_set=choice))

    def test_a_dataset_without_a_container_is_not_found(self, source: OpenOrganelleSource) -> None:
        with pytest.raises(NotFound, match=r"neither jrc_announced/jrc_announced\.zarr nor .*\.n5"):
            source.fetch_record(spec_of("jrc_announced"))

    def test_clutter_is_no_dataset(self, source: OpenOrganelleSource) -> None:
        assert [ref.accession for ref in source.list_datasets()] == ["jrc_mus-kidney", NACC]

    def test_an_empty_bucket_is_an_outage(
        self, source: OpenOrganelleSource, organelles: OpenOrganellePortal
    ) -> None:
        organelles.replace(f"/{BUCKET}/", EMPTY)
        with pytest.raises(SourceUnavailable, match="no folder"):
            list(source.list_datasets())

    @pytest.mark.parametrize("name", ["../secret", "a/b", "", "?prefix="])
    def test_what_is_no_name_is_refused(self, source: OpenOrganelleSource, name: str) -> None:
        with pytest.raises(InputRefused, match="jrc_mus-nacc-2"):
            source.fetch_record(spec_of(name, dataset_id="openorganelle-x"))


class TestLevels:
    """Any level, as the file has it: integers as stored, half voxels, sizes rounded down."""

    @pytest.mark.parametrize("level", ["s4", 4])
    def test_by_name_or_number(self, source: OpenOrganelleSource, level: int | str, tmp_path: Path) -> None:
        values = said(source, spec_of(level=level))
        assert [values[f"core.volume_shape.{axis}"] for axis in "zyx"] == [35, 157, 162]
        assert [values[f"core.voxel_size_nm.{axis}"] for axis in "zyx"] == [47.36, 64, 64]

    def test_an_unknown_level_names_those_there_are(self, source: OpenOrganelleSource) -> None:
        with pytest.raises(NotFound, match=r"8 \(s8, 2×9×10\)"):
            source.fetch_record(spec_of(level="s9"))

    def test_int16_and_half_voxels_come_through(self, source: OpenOrganelleSource, tmp_path: Path) -> None:
        spec = spec_of(level="s4")
        with source.open_volume(spec, held_files(source, spec, tmp_path)) as volume:
            assert volume.shape == (35, 157, 162)
            assert volume.dtype == np.int16
            assert volume.translation_nm == (22.2, 30.0, 30.0)
            tissue = volume.read(BoundingBox.at((0, 0, 0), (35, 100, 100)))
        # Rescaled by the range of its type, this window would be a hundredth of it.
        assert 4000 < tissue.min() < 5600
        assert 5300 < tissue.max() < 6100

    def test_a_chunk_that_was_never_written_is_missing_and_reads_as_fill(
        self, source: OpenOrganelleSource, tmp_path: Path
    ) -> None:
        spec = spec_of(level="s4")
        with source.open_volume(spec, held_files(source, spec, tmp_path)) as volume:
            (gap,) = volume.missing
            assert gap == BoundingBox.at((0, 128, 128), (35, 29, 34))
            assert not volume.read(gap).any()

    def test_every_coarse_level_opens(self, source: OpenOrganelleSource, tmp_path: Path) -> None:
        for level, shape in {"s5": (17, 78, 81), "s8": (2, 9, 10)}.items():
            spec = spec_of(level=level)
            with source.open_volume(spec, held_files(source, spec, tmp_path / level)) as volume:
                assert volume.shape == shape

    def test_n5_axes_are_turned_to_zyx(self, source: OpenOrganelleSource, tmp_path: Path) -> None:
        spec = spec_of("jrc_mus-kidney", level="s1", image_set="fibsem-uint8")
        with source.open_volume(spec, held_files(source, spec, tmp_path)) as volume:
            assert volume.shape == (48, 64, 70)
            assert volume.translation_nm == (4.0, 4.0, 4.0)
            assert volume.read(CORNER).any()


class TestRegions:
    """A box of a large level costs what the box holds."""

    def test_only_the_chunks_that_meet_the_box(self, source: OpenOrganelleSource, tmp_path: Path) -> None:
        box = BoundingBox.at((300, 1300, 1300), (10, 20, 30))
        spec = spec_of(bounding_box=box)
        files = held_files(source, spec, tmp_path)
        chunks = [held.file.path for held in files if not held.path.name.startswith(".z")]
        assert [path.split("/s0/")[1] for path in chunks] == ["4/20/20"]
        with source.open_volume(spec, files) as volume:
            assert volume.shape == (564, 2520, 2596)
            assert volume.read(box).min() > 4000

    def test_a_box_outside_the_level_is_refused(self, source: OpenOrganelleSource) -> None:
        spec = spec_of(level="s4", bounding_box=BoundingBox.at((0, 0, 0), (64, 64, 64)))
        with pytest.raises(InputRefused, match=r"level s4 has \(35, 157, 162\) voxels"):
            source.fetch_record(spec)


class TestLabels:
    """Label images at the level whose voxels are those of the image."""

    def test_the_level_that_fits_with_ids_intact(self, source: OpenOrganelleSource, tmp_path: Path) -> None:
        spec = spec_of(level="s4", label_images=("nuc",))
        files = held_files(source, spec, tmp_path)
        ((name, labels),) = source.open_label_images(spec, files).items()
        assert name == "nuc"
        assert labels.shape == (35, 157, 162)
        assert labels.dtype == np.uint64
        found = set(np.unique(labels.read(BoundingBox.of_shape(labels.shape))).tolist())
        assert found == {0} | {label for *_, label in NUCLEI}

    def test_a_longer_name_is_a_path_below_labels(self, source: OpenOrganelleSource, tmp_path: Path) -> None:
        name = "inference/segmentations/nuc"
        spec = spec_of(level="s5", label_images=(name,))
        assert list(source.open_label_images(spec, held_files(source, spec, tmp_path))) == [name]

    def test_a_level_without_labels_takes_the_nearest_whole_multiple(
        self, source: OpenOrganelleSource, tmp_path: Path
    ) -> None:
        box = BoundingBox.at((300, 1300, 1300), (10, 20, 30))
        spec = spec_of(label_images=("nuc",), bounding_box=box)
        files = held_files(source, spec, tmp_path)
        image = image_cut(spec, source.open_volume(spec, files), VoxelSize(z=2.96, y=4, x=4), "em")
        labels = source.open_label_images(spec, files)["nuc"]
        assert tuple(labels.voxel_size_nm) == (23.68, 32.0, 32.0), "eight voxels of the image to one"
        cut = label_cut(image, "nuc", "nuc", labels)
        assert labels.read(cut.box).shape == cut.box.shape

    def test_an_unknown_name_shows_those_there_are(self, source: OpenOrganelleSource) -> None:
        with pytest.raises(NotFound, match="there are: inference/segmentations/nuc"):
            source.fetch_record(spec_of(level="s4", label_images=("mito",)))

    def test_a_box_takes_the_same_box_of_the_labels(
        self, source: OpenOrganelleSource, tmp_path: Path
    ) -> None:
        box = BoundingBox.at((0, 0, 0), (35, 60, 60))
        spec = spec_of(level="s4", label_images=("nuc",), bounding_box=box)
        files = held_files(source, spec, tmp_path)
        chunks = [held.file.path for held in files if not held.path.name.startswith(".z")]
        assert [path.rpartition("/s")[2] for path in chunks] == ["4/0/0/0", "1/0/0/0"]
        labels = source.open_label_images(spec, files)["nuc"]
        assert labels.read(box).any()


class TestRecord:
    """Every value with where it was read."""

    def test_the_licence_is_that_of_the_bucket(self, source: OpenOrganelleSource) -> None:
        record = source.fetch_record(spec_of(level="s4"))
        (licence,) = [claim for claim in record.claims if claim.field == "rights.licence"]
        assert licence.value == "CC-BY-4.0"
        assert licence.evidence.origin is Origin.CURATED
        assert licence.evidence.where.endswith("/datasets/janelia-cosem.yaml")
        assert (licence.evidence.raw, licence.evidence.reason) == ("License: CC-BY-4.0", "read on 2026-11-21")

    def test_the_page_tells_how_it_was_imaged(self, source: OpenOrganelleSource) -> None:
        values = said(source, spec_of(level="s4"))
        assert values["core.title"] == "Mouse nucleus accumbens"
        assert values["acquisition.beam_current_pa"] == 220
        assert values["core.modality"] == "FIB-SEM"

    @pytest.mark.parametrize(
        ("trouble", "how", "unavailable"),
        [
            (Trouble.MISSING, "it is not there any more", False),
            (Trouble.HTML, "it no longer shows its content", True),
            (Trouble.RESET, "it could not be asked for", True),
            (Trouble.TRUNCATED, "it could not be asked for", True),
            (Trouble.SERVER_ERROR, "it could not be asked for", True),
        ],
    )
    def test_without_a_page_the_bucket_still_speaks(
        self,
        trouble: Trouble,
        how: str,
        unavailable: bool,
        source: OpenOrganelleSource,
        organelles: OpenOrganellePortal,
    ) -> None:
        organelles.trouble(trouble, match="/datasets/")
        record = source.fetch_record(spec_of(level="s4"))
        assert how_read(record) == how
        assert ("page" in record.unavailable) is unavailable
        fields = {claim.field: claim.value for claim in record.claims}
        assert fields["core.title"] == NACC
        assert "acquisition.beam_current_pa" not in fields

    def test_a_forbidden_page_is_recorded(
        self, source: OpenOrganelleSource, organelles: OpenOrganellePortal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer, refusal = organelles.answer, text("<html>Forbidden</html>", status=403)
        monkeypatch.setattr(
            organelles, "answer", lambda asked: refusal if "/datasets/" in asked.path else answer(asked)
        )
        assert how_read(source.fetch_record(spec_of(level="s4"))) == "it is forbidden"

    def test_a_page_that_never_shows_its_values_may_do_so_later(
        self, source: OpenOrganelleSource, organelles: OpenOrganellePortal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never_shown(*_: object) -> str:
            raise NeverShown("Read the page", "no values within 30 s", "")

        organelles.replace(f"/datasets/{NACC}", "<html><script></script></html>")
        monkeypatch.setattr(Browser, "render", never_shown)
        monkeypatch.setattr(source, "_find_browser", lambda: Browser("chromium"))
        record = source.fetch_record(spec_of(level="s4"))
        assert "no values within 30 s" in record.unavailable["page"]
        assert how_read(record) == "it no longer shows its content"

    def test_a_page_that_needs_a_browser_leaves_its_values_to_the_curated(
        self, source: OpenOrganelleSource, organelles: OpenOrganellePortal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shell = '<html><body><div id="root"></div><script src="/app.js"></script></body></html>'
        organelles.replace(f"/datasets/{NACC}", shell)
        monkeypatch.setattr(source, "_find_browser", lambda: None)
        title = Curated(value="Nucleus accumbens", page="https://example.org", read_on="2026-08-01")
        record = source.fetch_record(spec_of(level="s4", curated={"core.title": title}))
        assert not {claim.field for claim in record.claims} & {"core.title", "rights.doi"}
        assert (record.documents, how_read(record)) == ({}, "needs a browser")

    def test_the_page_does_not_change_the_revision(
        self, source: OpenOrganelleSource, organelles: OpenOrganellePortal
    ) -> None:
        before = source.fetch_record(spec_of(level="s4")).revision
        organelles.trouble(Trouble.MISSING, match="/datasets/")
        assert source.fetch_record(spec_of(level="s4")).revision == before

    def test_claims_of_documents_are_the_portals_word(self, source: OpenOrganelleSource) -> None:
        record = source.fetch_record(spec_of(level="s4"))
        origins = {claim.evidence.origin for claim in record.claims if claim.field != "rights.licence"}
        assert origins == {Origin.PORTAL}
        (size,) = [c for c in record.claims if c.field == "core.voxel_size_nm.z"]
        assert size.evidence.where.endswith("fibsem-int16/.zattrs")


class TestRevision:
    """A changed chunk is another revision; listings in pages lose nothing."""

    def test_a_changed_chunk_is_another_revision(
        self, source: OpenOrganelleSource, organelles: OpenOrganellePortal
    ) -> None:
        spec = spec_of(level="s4")
        record = source.fetch_record(spec)
        key = f"{NACC}/{NACC}.zarr/recon-2/em/fibsem-int16/s4/0/1/1"
        objects = dict(organelles.bucket.objects)
        del objects[key]
        organelles.bucket.__dict__["objects"] = objects
        assert source.fetch_record(spec).revision != record.revision
        with pytest.raises(RecordInvalid, match="changed since"):
            source.list_files(spec, record)

    @pytest.mark.parametrize(
        "trouble", [Trouble.HTML, Trouble.TRUNCATED, Trouble.CUT, Trouble.UNAVAILABLE, Trouble.RESET]
    )
    def test_half_a_listing_is_an_outage_and_never_missing_chunks(
        self, source: OpenOrganelleSource, organelles: OpenOrganellePortal, trouble: Trouble
    ) -> None:
        spec = spec_of(level="s4")
        record = source.fetch_record(spec)
        organelles.trouble(trouble, match="continuation-token")
        with pytest.raises(SourceUnavailable):
            source.list_files(spec, record)


def test_a_small_level_costs_few_requests_and_bytes(organelles: OpenOrganellePortal, tmp_path: Path) -> None:
    """At a real portal's 0.1 s per request, one at a time, seventy are seven seconds."""
    organelles.bucket.page = 1000
    source = OpenOrganelleSource(**organelles.options)
    files = held_files(source, spec_of(level="s4"), tmp_path)
    chunks = [held for held in files if not held.path.name.startswith(".z")]
    assert len(chunks) == 8
    assert len(files) == 18
    assert sum(organelles.requests.values()) <= 70
    assert organelles.bytes_served < sum(held.file.size for held in files) + 50_000
    assert not [path for path in organelles.requests if path.startswith(f"{IMAGE}/s0/0")]


class ScriptedPortal(OpenOrganellePortal):
    """The site as it really is: a page with a title, whose script brings the rest a little later."""

    def answer(self, request: Request) -> Reply:
        if not request.path.startswith("/datasets/"):
            return super().answer(request)
        brought = json.dumps(page(request.path.removeprefix("/datasets/"))).replace("</", "<\\/")
        script = f"setTimeout(() => {{ document.getElementById('root').innerHTML = {brought}; }}, 300)"
        shell = f'<h6>OpenOrganelle</h6><div id="root"></div><script>{script}</script>'
        return text(f"<!DOCTYPE html><html><body>{shell}</body></html>")


@pytest.mark.browser
def test_a_page_that_stays_empty_leaves_its_values_to_the_curated(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = find_browser()
    if browser is None:
        pytest.skip("there is no Chromium, or the extra [browser] is not installed")
    impatient = Browser(browser.executable, patience_s=1.0)
    with ScriptedPortal(tmp_path_factory.getbasetemp() / "portal-OpenOrganellePortal") as portal:
        source = OpenOrganelleSource(s3=portal.url, site=f"{portal.url}/datasets/of-another-site")
        monkeypatch.setattr(source, "_find_browser", lambda: impatient)
        values = said(source, spec_of(level="s4"))
    assert values["core.title"] == NACC
    assert "acquisition.bias_v" not in values


@pytest.mark.browser
def test_a_browser_reads_the_page_once_it_is_complete(tmp_path_factory: pytest.TempPathFactory) -> None:
    if find_browser() is None:
        pytest.skip("there is no Chromium, or the extra [browser] is not installed")
    with ScriptedPortal(tmp_path_factory.getbasetemp() / "portal-OpenOrganellePortal") as portal:
        values = said(OpenOrganelleSource(**portal.options), spec_of(level="s4"))
    assert values["core.title"] == "Mouse nucleus accumbens"
    assert values["acquisition.accelerating_voltage_kv"] == 0.2
