"""The FlyEM source: what the link, the bucket, DVID and neuPrint say, and which bytes hold a region."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from em_pipeline.demo.flyem_portal import (
    BUCKET,
    FlyemPortal,
    grayscale_info,
    neuroglancer_state,
)
from em_pipeline.demo.replay import Reply, Request, Trouble, text
from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.domain.evidence import Origin
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import HeldFile, PortalRecord
from em_pipeline.sources.flyem import FlyemSource
from em_pipeline.sources.neuroglancer import State, told_address
from em_pipeline.storage.download import DownloadPolicy, download

REGION = BoundingBox.at((11968, 10944, 9984), (128, 128, 128))
BOX = BoundingBox.at((12000, 11000, 10000), (70, 60, 80))
INFO = f"/{BUCKET}/emdata/clahe_yz/jpeg/info"


@pytest.fixture
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlyemPortal]:
    with FlyemPortal(tmp_path_factory.getbasetemp() / "flyem", region=REGION) as running:
        yield running


@pytest.fixture
def source(portal: FlyemPortal) -> FlyemSource:
    return FlyemSource(**portal.options, timeout_s=5, retries=0, backoff_s=0)


def spec_of(**given: Any) -> DatasetSpec:
    values = {"bounding_box": BOX, **given}
    return DatasetSpec(source="flyem", accession="hemibrain", dataset_id="flyem-hemibrain-test", **values)


def held(source: FlyemSource, spec: DatasetSpec, folder: Path, retries: int = 0) -> list[HeldFile]:
    record = source.fetch_record(spec)
    policy = DownloadPolicy(connections=4, retries=retries, backoff_s=0.01)
    manifest = download(
        source.list_files(spec, record),
        folder,
        dataset_id=spec.dataset_id,
        revision=record.revision,
        policy=policy,
        progress=Silent(),
    )
    return [HeldFile(file, folder / file.path) for file in manifest.files]


def resolved(record: PortalRecord) -> DatasetRecord:
    return DatasetRecord.resolve("flyem-hemibrain-test", record.revision, record.claims)


def test_the_record_rests_on_the_link_the_bucket_and_dvid(portal: FlyemPortal, source: FlyemSource) -> None:
    record = resolved(source.fetch_record(spec_of()))
    core = record.fields.core
    assert tuple(core.volume_shape.__dict__.values()) == (41394, 39725, 34427)
    assert tuple(core.voxel_size_nm.__dict__.values()) == (8, 8, 8)
    assert (core.title, core.data_type) == ("hemibrain", "uint8")
    said = {claim.evidence.where for claim in record.claims if claim.field == "core.voxel_size_nm.z"}
    assert said == {
        f"{portal.url}{INFO}",
        f"{portal.url}/neuroglancer/",
        f"{portal.url}/api/node/a89eb3af216a46cdba81204d8f954786/grayscale/info",
    }


def test_dvid_is_another_size_and_both_are_shown(source: FlyemSource) -> None:
    conflicts = {one.field: one for one in resolved(source.fetch_record(spec_of())).conflicts}
    assert set(conflicts) == {"core.volume_shape.z", "core.volume_shape.x"}
    assert conflicts["core.volume_shape.z"].rejected.value == 41408  # MaxPoint is the last voxel
    assert conflicts["core.volume_shape.x"].rejected.value == 34432


def test_a_coarse_level_is_not_measured_by_what_is_said_of_the_finest(source: FlyemSource) -> None:
    record = resolved(source.fetch_record(spec_of(level=8, bounding_box=None)))
    assert record.conflicts == ()
    assert record.fields.core.voxel_size_nm.z == 2048


@pytest.mark.parametrize("match", ["/api/node/", "/api/repos/", "/api/dbmeta/"])
@pytest.mark.parametrize("trouble", [Trouble.SERVER_ERROR, Trouble.HTML, Trouble.MISSING])
def test_services_that_do_not_answer_are_noted_and_change_no_revision(
    portal: FlyemPortal, source: FlyemSource, match: str, trouble: Trouble
) -> None:
    whole = source.fetch_record(spec_of())
    portal.trouble(trouble, match)
    record = source.fetch_record(spec_of())
    assert whole.unavailable == {}
    assert len(record.unavailable) == 1
    assert record.revision == whole.revision
    assert source.list_files(spec_of(), record) == source.list_files(spec_of(), whole)


def test_a_service_that_stumbles_is_asked_again(portal: FlyemPortal) -> None:
    portal.trouble(Trouble.SERVER_ERROR, "/api/node/", times=2)
    patient = FlyemSource(**portal.options, timeout_s=5, retries=4, backoff_s=0)
    assert patient.fetch_record(spec_of()).unavailable == {}


@pytest.mark.parametrize("match", ["/hemibrain-ng", INFO, "/v1.2/segmentation/info"])
@pytest.mark.parametrize("trouble", [Trouble.SERVER_ERROR, Trouble.HTML, Trouble.RESET])
def test_what_is_needed_is_never_done_without(
    portal: FlyemPortal, source: FlyemSource, match: str, trouble: Trouble
) -> None:
    portal.trouble(trouble, match)
    with pytest.raises(SourceUnavailable):
        source.fetch_record(spec_of(label_images=("segmentation",)))


def test_a_region_is_byte_ranges_of_its_shards(source: FlyemSource) -> None:
    files = source.list_files(spec_of(), source.fetch_record(spec_of()))
    chunks = [file for file in files if not file.path.endswith("info")]
    assert len(chunks) == 8
    assert {file.url.rpartition("/")[2] for file in chunks} == {"01c6.shard"}
    assert all(file.offset and file.size and not file.may_be_absent for file in chunks)
    assert chunks[0].path == "image/8.0x8.0x8.0/9984-10048_10944-11008_11968-12032"


def test_each_index_is_asked_for_once(portal: FlyemPortal, source: FlyemSource) -> None:
    record = source.fetch_record(spec_of())
    portal.requests.clear()
    source.list_files(spec_of(), record)
    shard = f"/{BUCKET}/emdata/clahe_yz/jpeg/8.0x8.0x8.0/01c6.shard"
    assert portal.requests[shard] == 2  # the shard's index and one minishard's, for eight chunks


@pytest.mark.parametrize("trouble", [Trouble.SERVER_ERROR, Trouble.RESET, Trouble.CUT, Trouble.HTML])
def test_an_outage_at_a_shard_is_no_missing_chunk(
    portal: FlyemPortal, source: FlyemSource, trouble: Trouble
) -> None:
    record = source.fetch_record(spec_of())
    portal.trouble(trouble, ".shard")
    with pytest.raises(SourceUnavailable):
        source.list_files(spec_of(), record)


def test_a_region_is_read_as_it_was_written(portal: FlyemPortal, source: FlyemSource, tmp_path: Path) -> None:
    spec = spec_of(label_images=("segmentation",))
    files = held(source, spec, tmp_path)
    volume = source.open_volume(spec, files)
    voxels = volume.read(BOX).astype(int)
    truth = portal.grey[32:102, 56:116, 16:96].astype(int)
    assert volume.missing == ()
    assert np.abs(voxels - truth).mean() < 8  # JPEG
    assert np.corrcoef(voxels.ravel(), truth.ravel())[0, 1] > 0.9
    labels = source.open_label_images(spec, files)["segmentation"]
    ids = labels.read(BOX)
    assert ids.dtype == np.uint64
    assert ids.max() > 2**32
    assert labels.shape == (41408, 39552, 34432)
    # Ids change every 24 voxels from the region's corner on, along each axis.
    assert ids[15, 15, 7] != ids[16, 15, 7] != ids[16, 16, 7] != ids[16, 16, 8]


def test_chunks_beyond_what_was_written_are_missing(source: FlyemSource, tmp_path: Path) -> None:
    spec = spec_of(bounding_box=BoundingBox.at((12000, 11000, 10000), (10, 8, 200)))
    volume = source.open_volume(spec, held(source, spec, tmp_path))
    assert list(volume.missing) == [BoundingBox.at((11968, 10944, 10112), (64, 64, 128))]
    assert volume.read(BoundingBox.at((12000, 11000, 10112), (5, 5, 5))).max() == 0


def test_a_box_without_anything_is_refused(source: FlyemSource) -> None:
    spec = spec_of(bounding_box=BoundingBox.at((0, 0, 0), (64, 64, 64)))
    record = source.fetch_record(spec)
    with pytest.raises(NotFound, match="holds none there"):
        source.list_files(spec, record)


def test_the_whole_is_refused_with_what_to_do(source: FlyemSource) -> None:
    spec = spec_of(bounding_box=None)
    record = source.fetch_record(spec)  # its shape is known without any voxel
    with pytest.raises(InputRefused, match=r"56,611 GB .*--roi z0:z1,y0:y1,x0:x1 --name NAME"):
        source.list_files(spec, record)


def test_a_coarse_level_is_taken_whole(source: FlyemSource, tmp_path: Path) -> None:
    spec = spec_of(bounding_box=None, level="2048.0x2048.0x2048.0")
    volume = source.open_volume(spec, held(source, spec, tmp_path))
    assert volume.shape == (162, 156, 135)
    assert volume.missing == ()
    assert volume.read(BoundingBox.at((160, 154, 133), (2, 2, 2))).min() > 0


def test_dvid_gives_the_same_place_without_loss(
    portal: FlyemPortal, source: FlyemSource, tmp_path: Path
) -> None:
    spec = spec_of(image_set="dvid", label_images=("segmentation",))
    files = held(source, spec, tmp_path)
    volume = source.open_volume(spec, files)
    assert volume.shape == (41408, 39725, 34432)
    np.testing.assert_array_equal(volume.read(BOX), portal.grey[32:102, 56:116, 16:96])
    assert source.open_label_images(spec, files)["segmentation"].read(BOX).any()


def test_dvid_that_is_busy_is_asked_again(portal: FlyemPortal, source: FlyemSource, tmp_path: Path) -> None:
    spec = spec_of(image_set="dvid")
    portal.busy = 3
    volume = source.open_volume(spec, held(source, spec, tmp_path, retries=4))
    np.testing.assert_array_equal(volume.read(BOX), portal.grey[32:102, 56:116, 16:96])
    assert portal.busy == 0


def test_dvid_that_stays_busy_is_an_outage(portal: FlyemPortal, source: FlyemSource, tmp_path: Path) -> None:
    portal.busy = 1000
    with pytest.raises(SourceUnavailable, match="503"):
        held(source, spec_of(image_set="dvid"), tmp_path)


def test_dvid_has_no_coarser_level(source: FlyemSource) -> None:
    with pytest.raises(InputRefused, match="finest level only"):
        source.fetch_record(spec_of(image_set="dvid", level=3))


def test_an_instance_without_voxels_is_noted(portal: FlyemPortal, source: FlyemSource) -> None:
    info = grayscale_info()
    info["Extended"].update(MinPoint=None, MaxPoint=None)
    portal.replace("/api/node/a89eb3af216a46cdba81204d8f954786/grayscale/info", json.dumps(info))
    record = source.fetch_record(spec_of())
    assert "nothing was ever written" in record.unavailable["dvid-grayscale"]


@pytest.mark.parametrize("change", [{"type": "segmentation"}, {"data_type": "uint64"}])
def test_a_segmentation_is_never_taken_for_the_image(
    portal: FlyemPortal, source: FlyemSource, change: dict[str, str]
) -> None:
    path = portal.tree / "v1.2/segmentation/info"
    info = {**json.loads(path.read_text()), **change}
    info["type"] = change.get("type", "image")
    portal.replace(INFO, json.dumps(info))
    with pytest.raises(RecordInvalid, match="not an image of uint8"):
        source.fetch_record(spec_of())


def test_the_micrographs_are_no_label_image(source: FlyemSource) -> None:
    with pytest.raises(InputRefused, match="Name a segmentation"):
        source.fetch_record(spec_of(label_images=(f"grey=gs://{BUCKET}/emdata/raw/jpeg",)))


def test_an_info_that_changed_is_another_revision(portal: FlyemPortal, source: FlyemSource) -> None:
    record = source.fetch_record(spec_of())
    info = json.loads((portal.tree / "emdata/clahe_yz/jpeg/info").read_text())
    portal.replace(INFO, json.dumps({**info, "changed": True}))
    with pytest.raises(RecordInvalid, match="has changed since"):
        source.list_files(spec_of(), record)


def test_another_box_is_another_revision(source: FlyemSource) -> None:
    other = spec_of(bounding_box=BOX.shifted((0, 0, 1)))
    assert source.fetch_record(spec_of()).revision != source.fetch_record(other).revision


def test_image_sets_are_told_apart(source: FlyemSource) -> None:
    raw = source.list_files(spec_of(image_set="raw"), source.fetch_record(spec_of(image_set="raw")))
    assert f"{BUCKET}/emdata/raw/jpeg" in raw[0].url
    assert source.fetch_record(spec_of(image_set="raw")).revision != source.fetch_record(spec_of()).revision
    with pytest.raises(NotFound, match="clahe_yz, raw, dvid"):
        source.fetch_record(spec_of(image_set="jpeg"))


def test_unknown_labels_are_named(source: FlyemSource) -> None:
    with pytest.raises(NotFound, match="known by name are segmentation"):
        source.fetch_record(spec_of(label_images=("nuclei",)))


def test_the_source_says_only_what_it_was_told(portal: FlyemPortal, source: FlyemSource) -> None:
    claims = source.fetch_record(spec_of()).claims
    assert {claim.evidence.origin for claim in claims} == {Origin.PORTAL}
    assert {urlsplit(c.evidence.where)[:2] for c in claims} == {urlsplit(portal.url)[:2]}
    assert not [claim for claim in claims if claim.evidence.raw in ("", None)]


class LinkPortal(FlyemPortal):
    """Answers the link with a redirect to `fragment`."""

    fragment = ""

    def answer(self, request: Request) -> Reply:
        if request.path == "/hemibrain-ng":
            return Reply(b"", status=302, headers={"Location": f"/neuroglancer/{self.fragment}"})
        if request.path == f"/{BUCKET}/state.json":
            return text(json.dumps(neuroglancer_state()), "application/json")
        return super().answer(request)


@pytest.fixture
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkPortal]:
    with LinkPortal(tmp_path_factory.getbasetemp() / "flyem", region=REGION) as running:
        yield running


def files_by(link: LinkPortal) -> list[RemoteFile]:
    source = FlyemSource(**link.options, timeout_s=5, retries=0, backoff_s=0)
    return source.list_files(spec_of(), source.fetch_record(spec_of()))


def test_a_link_may_lead_to_a_file_in_the_bucket(link: LinkPortal) -> None:
    link.fragment = f"#!gs://{BUCKET}/state.json"
    assert "/emdata/clahe_yz/" in files_by(link)[0].url


@pytest.mark.parametrize(
    ("fragment", "error", "found"),
    [
        ("", SourceUnavailable, "without the state"),
        ("#help", SourceUnavailable, "without the state"),
        ("#!%7B%22layers%22", RecordInvalid, "not JSON"),
        ("#!%5B1%5D", RecordInvalid, "no object"),
        ("#!%7B%22layers%22%3A%5B%5D%7D", RecordInvalid, "its layers are none"),
        ("#!%7B%22layers%22%3A5%7D", RecordInvalid, "its layers are none"),
        ("#!" + "%5B" * 900 + "%5D" * 900, RecordInvalid, "nests deeper"),
        ("#!gs://../other", InputRefused, "neither s3://"),
        ("#!file:///etc/passwd", RecordInvalid, "public hosts only"),
        ("#!http://example.org/state.json", RecordInvalid, "public hosts only"),
        ("#!https://127.0.0.1/state.json", RecordInvalid, "public hosts only"),
    ],
)
def test_a_link_that_shows_nothing_is_named(
    link: LinkPortal, fragment: str, error: type[Exception], found: str
) -> None:
    link.fragment = fragment
    with pytest.raises(error, match=found):
        files_by(link)


def shows(source: str) -> str:
    """The fragment of a view whose image is `source`."""
    return "#!" + quote(json.dumps({"layers": [{"type": "image", "name": "em", "source": source}]}))


@pytest.mark.parametrize("form", ["precomputed://{}", "{}|neuroglancer-precomputed:"])
def test_a_view_leads_to_objects_of_a_store(link: LinkPortal, form: str) -> None:
    link.fragment = shows(form.format(f"gs://{BUCKET}/emdata/raw/jpeg"))
    assert "/emdata/raw/" in files_by(link)[0].url


@pytest.mark.parametrize("form", ["precomputed://{}", "{}|neuroglancer-precomputed:"])
@pytest.mark.parametrize("where", ["{folder}", "file://{folder}", "precomputed://{folder}", "{url}/bucket"])
def test_a_view_never_leads_to_this_machine(link: LinkPortal, form: str, where: str) -> None:
    address = where.format(folder=link.tree / "emdata/clahe_yz/jpeg", url=link.url)
    link.fragment = shows(form.format(address))
    with pytest.raises(RecordInvalid, match="public hosts only"):
        files_by(link)


def test_documents_lead_to_public_addresses_only() -> None:
    for address in ("gs://bucket/em", "S3://bucket/em", "https://data.example.org:8443/em"):
        assert told_address(address, "link") == address
    for host in (
        "10.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0x1",
        "[::1]",
        "localhost",
        "metadata.internal",
        "[",
        "",
    ):
        with pytest.raises(RecordInvalid, match="public hosts only"):
            told_address(f"https://{host}/em", "link")
    for address in (
        "http://example.org/em",
        "https://a@192.168.0.1/em",
        "ftp://example.org/em",
        "../em",
        "~/em",
    ):
        with pytest.raises(RecordInvalid, match="public hosts only"):
            told_address(address, "link")


def test_sources_may_be_texts_objects_or_lists() -> None:
    layers = [
        {"type": "image", "name": "a", "source": "x"},
        {"type": "image", "name": "b", "source": {"url": "y", "subsources": {"mesh": True}}},
        {"type": "image", "name": "c", "source": ["z", {"url": "w"}]},
        {"type": "image", "name": "d"},
        "not a layer",
    ]
    state = State("url", "", {"layers": layers, "dimensions": {"x": [8e-9, "m"], "y": [4, "nm"], "z": 1}})
    assert [layer.sources for layer in state.layers()] == [("x",), ("y",), ("z", "w"), ()]
    assert state.voxel_nm("x") == pytest.approx(8)
    assert (state.voxel_nm("y"), state.voxel_nm("z"), state.voxel_nm("t")) == (4, None, None)
    assert State("url", "", {"dimensions": {"x": [10**400, "m"]}}).voxel_nm("x") is None


def test_the_link_is_percent_encoded_json(portal: FlyemPortal, source: FlyemSource) -> None:
    record = source.fetch_record(spec_of())
    assert json.loads(record.documents["link.json"]) == neuroglancer_state()
    assert "%7B" in quote(record.documents["link.json"])
