"""What real portals do that a loader must be ready for: one test per line of the matrix, named after it.

Each drives a source against its portal's replay, as far along the chain as the line reaches, and fails where
the handling of its line is taken away.
"""

import hashlib
import json
import struct
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from em_pipeline.demo.epfl_portal import EpflPortal
from em_pipeline.demo.flyem_portal import BUCKET, FlyemPortal
from em_pipeline.demo.idr_portal import IdrPortal
from em_pipeline.demo.openorganelle_portal import OpenOrganellePortal
from em_pipeline.demo.portal import EBI_SEARCH, DemoPortal
from em_pipeline.demo.portal_entries import rest_answer, xml_header
from em_pipeline.demo.replay import MAINTENANCE, Replay, Reply, Request, Trouble
from em_pipeline.domain.errors import InputRefused, RecordInvalid, SourceUnavailable, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.dm_tags import read_tags
from em_pipeline.sources.base import HeldFile, PortalRecord, Source
from em_pipeline.sources.epfl import TORRENT
from em_pipeline.sources.registry import load_sources
from em_pipeline.storage.download import DownloadPolicy, download
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.memory import Means
from em_pipeline.volumes.plan import plan_rechunk
from em_pipeline.volumes.preview import preview_png
from em_pipeline.volumes.rechunk import WrittenVolume, rechunk
from em_pipeline_tests.volumes.written import open_in

pytestmark = pytest.mark.integration

RETINA_SHAPE = (4, 60, 50)
RETINA = DatasetSpec(source="empiar", accession="11759")
ENTRY = "/empiar/api/entry/EMPIAR-11759/"
HEADER = "/empiar/world_availability/11759/11759.xml"
SECTION = "F57-8_test1_3VBSED_slice_0002.dm3"
SECTION_PATH = f"/empiar/world_availability/11759/data/{SECTION}"
LARGE_SHAPE = (3, 1500, 1600)  # sections of more than 1 MiB, which are fetched in ranges
SEARCH = "/biostudies/api/v1/BioImages-EMPIAR/search"
NO_HITS = json.dumps({"totalHits": 0, "isTotalHitsExact": True, "hits": []})
TRAINING = DatasetSpec(source="epfl", accession="training")
CHROMATIN = DatasetSpec(source="idr", accession="9846137")
NACC = DatasetSpec(source="openorganelle", accession="jrc_mus-nacc-2", level="s4")
INFO = f"/{BUCKET}/emdata/clahe_yz/jpeg/info"
REGION = BoundingBox.at((11968, 10944, 9984), (128, 128, 128))
BOX = BoundingBox.at((12000, 11000, 10000), (70, 60, 80))
COARSE = "2048.0x2048.0x2048.0"


def hemibrain(**given: Any) -> DatasetSpec:
    return DatasetSpec(source="flyem", accession="hemibrain", dataset_id="flyem-hemibrain-test", **given)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the portals' generated files."""
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture
def empiar(generated: Path) -> Iterator[DemoPortal]:
    with DemoPortal(generated / "empiar", retina_shape=RETINA_SHAPE) as portal:
        yield portal


@pytest.fixture
def epfl(generated: Path) -> Iterator[EpflPortal]:
    with EpflPortal(generated / "epfl") as portal:
        yield portal


@pytest.fixture
def idr(generated: Path) -> Iterator[IdrPortal]:
    with IdrPortal(generated / "idr", shape=(12, 40, 50)) as portal:
        yield portal


@pytest.fixture
def organelles(generated: Path) -> Iterator[OpenOrganellePortal]:
    with OpenOrganellePortal(generated / "openorganelle") as portal:
        yield portal


@pytest.fixture
def flyem(generated: Path) -> Iterator[FlyemPortal]:
    with FlyemPortal(generated / "flyem", region=REGION) as portal:
        yield portal


def source_of(slug: str, portal: Replay) -> Source:
    return load_sources({slug: {**portal.options, "retries": "0", "backoff_s": "0"}})[slug]


def record_of(portal: Replay, spec: DatasetSpec) -> PortalRecord:
    return source_of(spec.source, portal).fetch_record(spec)


def said(record: PortalRecord, field: str) -> list[Any]:
    return [claim.value for claim in record.claims if claim.field == field]


def held(portal: Replay, spec: DatasetSpec, folder: Path, **limits: Any) -> list[HeldFile]:
    """The raw files, downloaded; by default without patience for anything."""
    source = source_of(spec.source, portal)
    record = source.fetch_record(spec)
    manifest = download(
        source.list_files(spec, record), folder, dataset_id=spec.dataset_id, revision=record.revision,
        policy=DownloadPolicy(**{"retries": 0, "backoff_s": 0.01, **limits}), progress=Silent(),
    )  # fmt: skip
    return [HeldFile(file, folder / file.path) for file in manifest.files]


def opened(portal: Replay, spec: DatasetSpec, folder: Path, **limits: Any) -> LazyVolume:
    files = held(portal, spec, folder, **limits)
    return source_of(spec.source, portal).open_volume(spec, files)


def written(volume: LazyVolume, box: BoundingBox, folder: Path) -> WrittenVolume:
    """The box of the volume as it would be published."""
    voxel_size = volume.voxel_size_nm.complete()
    assert voxel_size is not None
    plan = plan_rechunk(
        box.shape, volume.dtype, voxel_size, translation_nm=volume.translation_nm,
        source_chunk=volume.decode_shape, means=Means(256 << 20, threads=2),
    )  # fmt: skip
    return rechunk(volume, box, plan, LocalBlobs(folder), name="matrix", progress=Silent())


def change_entry(portal: DemoPortal, change: Callable[[dict[str, Any]], None]) -> None:
    """What EMPIAR answers for 11759 from now on."""
    answer = rest_answer(next(entry for entry in portal.entries if entry.accession == "11759"))
    change(answer["EMPIAR-11759"])
    portal.replace(ENTRY, json.dumps(answer))


def test_listing_missing_a_file(empiar: DemoPortal) -> None:
    source = source_of("empiar", empiar)
    record = source.fetch_record(RETINA)
    empiar.omit(SECTION, times=2)
    assert SECTION in [file.path for file in source.list_files(RETINA, record)]
    empiar.omit(SECTION, times=99)
    with pytest.raises(RecordInvalid, match=r"3 of 4 files.*missing between them: 2"):
        source.list_files(RETINA, record)


class Telling(DemoPortal):
    """Keeps the ranges that are asked of `SECTION`, and may send a page in place of it."""

    def __init__(self, folder: Path, shape: tuple[int, int, int] = RETINA_SHAPE) -> None:
        super().__init__(folder, retina_shape=shape)
        self.served = self.tree / "11759" / "data" / SECTION
        self.ranges: list[tuple[int, int]] = []
        self.page: Reply | None = None

    def answer(self, request: Request) -> Reply:
        if request.path == SECTION_PATH and request.method == "GET":
            if asked := request.headers.get("Range"):
                first, last = asked.removeprefix("bytes=").split("-")
                self.ranges.append((int(first), int(last)))
            if self.page is not None:
                return self.page
        return super().answer(request)


def only_section(portal: Telling, folder: Path, **limits: Any) -> str:
    """The SHA-256 of `SECTION` as it was downloaded; troubles of it begin with the second GET."""
    source = source_of("empiar", portal)
    record = source.fetch_record(RETINA)
    files = [file for file in source.list_files(RETINA, record) if file.path == SECTION]
    portal.ranges.clear()
    portal.trouble(Trouble.STALL, SECTION, times=1, after=1)
    manifest = download(
        files, folder, dataset_id="empiar-11759", revision=record.revision,
        policy=DownloadPolicy(connections=1, backoff_s=0.01, **limits), progress=Silent(),
    )  # fmt: skip
    return manifest.files[0].sha256


def test_hanging_range_get(generated: Path, tmp_path: Path) -> None:
    with Telling(generated / "large", LARGE_SHAPE) as portal:
        began = time.monotonic()
        sha256 = only_section(portal, tmp_path / "patient", read_timeout_s=2.0, retries=1)
        assert time.monotonic() - began < 50  # the portal hangs for a minute
        assert sha256 == hashlib.sha256(portal.served.read_bytes()).hexdigest()
        (first, last), *again = portal.ranges[1:]  # half of what was asked for came
        assert first > 0
        assert [begin for begin, _ in again][:1] == [first + (last + 1 - first) // 2]
        began = time.monotonic()
        with pytest.raises(SourceUnavailable, match=r"no bytes for 0\.4 s"):
            only_section(portal, tmp_path / "hasty", read_timeout_s=0.4, retries=0)
        assert time.monotonic() - began < 50


def test_200_with_html(empiar: DemoPortal, tmp_path: Path) -> None:
    for document in (ENTRY, HEADER, "/11759/data/"):
        empiar.trouble(Trouble.HTML, document)
        with pytest.raises(SourceUnavailable):
            held(empiar, RETINA, tmp_path)
        empiar.heal()
    empiar.trouble(Trouble.HTML, SECTION, after=1)  # after the HEAD
    with pytest.raises(SourceUnavailable, match="web page"):
        held(empiar, RETINA, tmp_path)
    assert not (tmp_path / SECTION).exists()


@pytest.mark.parametrize(
    ("page", "kind", "as_long"),
    [
        pytest.param(MAINTENANCE, "application/octet-stream", True, id="as data of the listed size"),
        pytest.param(MAINTENANCE, "application/octet-stream", False, id="as data of another size"),
        pytest.param("We will be back soon.", "text/html", True, id="known by its type alone"),
    ],
)
def test_200_with_html_in_place_of_data(
    generated: Path, tmp_path: Path, page: str, kind: str, as_long: bool
) -> None:
    with Telling(generated / "empiar") as portal:
        size = portal.served.stat().st_size
        portal.page = Reply(page.encode().ljust(size if as_long else 0), kind)
        with pytest.raises(SourceUnavailable, match="web page"):
            held(portal, RETINA, tmp_path)
    assert not (tmp_path / SECTION).exists()


def test_imgdata_exception(idr: IdrPortal, tmp_path: Path) -> None:
    inset = DatasetSpec(source="idr", accession="9846132")  # the API gives no sizes: imgData is asked
    record = record_of(idr, inset)
    assert idr.requests["/webclient/imgData/9846132/"] == 1
    assert said(record, "core.voxel_size_nm.x") == []
    assert said(record, "core.volume_shape.x") == [50]
    assert tuple(opened(idr, inset, tmp_path).voxel_size_nm) == pytest.approx((20.0, 20.0, 20.0))
    idr.migrating = False
    assert said(record_of(idr, inset), "core.voxel_size_nm.x") == [pytest.approx(20.0)]


def test_percent_20_url(epfl: EpflPortal, tmp_path: Path) -> None:
    (file,) = held(epfl, TRAINING, tmp_path)
    assert "/data/%20ElectronMicroscopy_Hippocampus/training.tif" in file.file.url
    assert file.path.read_bytes() == (epfl.tree / "training.tif").read_bytes()
    page = record_of(epfl, TRAINING).page  # its links, with and without %20, are the same addresses
    assert page is not None
    assert (page.links_only_on_the_page, page.links_not_on_the_page) == ((), ())


def test_literal_u00b5m(idr: IdrPortal, tmp_path: Path) -> None:
    files = held(idr, CHROMATIN, tmp_path)
    assert b"unit=\\u00B5m\n" in files[0].path.read_bytes()[:400]
    with source_of("idr", idr).open_volume(CHROMATIN, files) as volume:
        assert tuple(volume.voxel_size_nm) == pytest.approx((20.0, 20.0, 20.0))


def data_type(kind: int) -> bytes:
    """The tag of an image's type as DM3 writes it: one number, unsigned and of 32 bits."""
    return b"DataType%%%%" + struct.pack(">II", 1, 5) + struct.pack("<I", kind)


RGB, GREY = data_type(23), data_type(6)
NO_THUMBNAILS, NO_SOURCES = (b"Thumbnails", b"Unheard of"), (b"ImageSourceList", b"ImageUnheardOf.")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([], id="as it is"),
        pytest.param([(RGB, GREY), NO_SOURCES], id="known by the list of thumbnails alone"),
        pytest.param([(RGB, GREY), NO_THUMBNAILS], id="known by what the document shows alone"),
        pytest.param([NO_SOURCES, NO_THUMBNAILS], id="known by its colours alone"),
    ],
)
def test_thumbnail_first_dm3_with_moving_offset(
    empiar: DemoPortal, tmp_path: Path, changes: list[tuple[bytes, bytes]]
) -> None:
    files = held(empiar, RETINA, tmp_path)
    planes, offsets = [], set()
    for file in files:
        content = file.path.read_bytes()
        for now, then in changes:
            assert content.count(now) == 1
            content = content.replace(now, then)
        file.path.write_bytes(content)
        with file.path.open("rb") as stream:
            images = list(read_tags(stream).tree["ImageList"].values())
        assert images[0]["ImageData"]["DataType"] == (6 if (RGB, GREY) in changes else 23)
        offset = images[1]["ImageData"]["Data"]["offset"]
        offsets.add(offset)
        planes.append(np.fromfile(file.path, np.uint8, 60 * 50, offset=offset).reshape(60, 50))
    assert len(offsets) == 2
    with source_of("empiar", empiar).open_volume(RETINA, files) as volume:
        np.testing.assert_array_equal(volume.read(BoundingBox.of_shape(volume.shape)), planes)


def test_nothing_but_thumbnails_in_a_dm3(empiar: DemoPortal, tmp_path: Path) -> None:
    files = held(empiar, RETINA, tmp_path)
    for file in files:
        content = file.path.read_bytes().replace(GREY, data_type(5)).replace(*NO_THUMBNAILS)
        file.path.write_bytes(content)
    with pytest.raises(UnsupportedFormat, match=r"complex data.*ImageList\.0: RGB data \(DataType 23\)"):
        source_of("empiar", empiar).open_volume(RETINA, files)


def test_string_or_null_image_width(empiar: DemoPortal) -> None:
    empiar.trouble(Trouble.MISSING, HEADER)
    for given, value in (("5628", [5628]), (5628, [5628]), (None, []), ("", [])):
        change_entry(empiar, lambda entry, given=given: entry["imagesets"][0].update(image_width=given))  # type: ignore[misc]
        assert said(record_of(empiar, RETINA), "core.volume_shape.x") == value


def test_wrong_catalogue_dims(empiar: DemoPortal, tmp_path: Path) -> None:
    record = record_of(empiar, RETINA)
    with opened(empiar, RETINA, tmp_path) as volume:
        resolved = DatasetRecord.resolve("empiar-11759", record.revision, [*record.claims, *volume.claims])
    shape = resolved.fields.core.volume_shape
    assert (shape.z, shape.y, shape.x) == RETINA_SHAPE
    rejected = {(conflict.field, conflict.rejected.value) for conflict in resolved.conflicts}
    assert {("core.volume_shape.y", 5632), ("core.volume_shape.x", 5628)} <= rejected


def test_angstrom_vs_um_vs_nm_vs_m(
    empiar: DemoPortal, idr: IdrPortal, organelles: OpenOrganellePortal, flyem: FlyemPortal
) -> None:
    in_angstrom, in_um = record_of(empiar, RETINA), record_of(idr, CHROMATIN)
    in_nm, in_m = record_of(organelles, NACC), record_of(flyem, hemibrain(bounding_box=BOX))
    assert said(in_angstrom, "core.voxel_size_nm.x") == [8.0, 8.0]
    assert said(in_um, "core.voxel_size_nm.x") == [pytest.approx(20.0)]
    assert said(in_nm, "core.voxel_size_nm.z")[0] == pytest.approx(16 * 2.96)
    by_link = [claim for claim in in_m.claims if claim.evidence.field == "dimensions.x"]
    assert [(claim.value, claim.evidence.raw) for claim in by_link] == [(pytest.approx(8.0), [8e-9, "m"])]


def test_data_encoding_absent(flyem: FlyemPortal, tmp_path: Path) -> None:
    scale = json.loads((flyem.tree / "emdata/clahe_yz/jpeg/info").read_text())["scales"][0]
    assert "data_encoding" not in scale["sharding"]
    with opened(flyem, hemibrain(bounding_box=BOX), tmp_path) as volume:
        voxels, truth = volume.read(BOX), flyem.grey[32:102, 56:116, 16:96]
    assert np.corrcoef(voxels.ravel(), truth.ravel())[0, 1] > 0.9  # JPEG loses a little


def test_clipped_edge_jpeg(flyem: FlyemPortal, tmp_path: Path) -> None:
    spec = hemibrain(level=COARSE)
    files = held(flyem, spec, tmp_path)
    last = next(file.path for file in files if file.path.name == "128-135_128-156_128-162")
    assert Image.open(BytesIO(last.read_bytes())).size == (7, 28 * 34)
    with source_of("flyem", flyem).open_volume(spec, files) as volume:
        assert volume.shape == (162, 156, 135)
        assert volume.read(BoundingBox.at((160, 154, 133), (2, 2, 2))).min() > 0


def test_int16_with_narrow_window(organelles: OpenOrganellePortal, tmp_path: Path) -> None:
    box = BoundingBox.at((0, 0, 0), (35, 100, 100))
    with opened(organelles, NACC, tmp_path / "raw") as volume:
        tissue, made = volume.read(box), written(volume, box, tmp_path / "out")
    with open_in(tmp_path / "out") as reader:
        assert reader.levels[0].dtype == np.int16
        np.testing.assert_array_equal(reader.read_block(0, box).data, tissue)
        preview = Image.open(BytesIO(preview_png(reader, made.statistics)))
    assert 4000 < tissue.min() < tissue.max() < 6200
    # Rescaled by the range of the type, a window of 1000 would be four greys of 256.
    assert np.asarray(preview.convert("L"))[60:160, 60:160].std() > 20


def test_half_voxel_translations(organelles: OpenOrganellePortal, tmp_path: Path) -> None:
    with opened(organelles, NACC, tmp_path / "raw") as volume:
        assert volume.translation_nm == pytest.approx((22.2, 30.0, 30.0))
        made = written(volume, BoundingBox.of_shape(volume.shape), tmp_path / "out")
    document = json.loads(made.volume.read("zarr.json"))
    first, second = document["attributes"]["ome"]["multiscales"][0]["datasets"][:2]
    places = [entry["coordinateTransformations"][1]["translation"] for entry in (first, second)]
    assert places[0] == pytest.approx([22.2, 30.0, 30.0])
    # The next level's voxels are twice as large where it is halved: their centres lie half a voxel further.
    sizes = [entry["coordinateTransformations"][0]["scale"] for entry in (first, second)]
    assert places[1] == pytest.approx([p + (b - a) / 2 for p, a, b in zip(places[0], *sizes, strict=True)])


def test_cross_references_str_or_dict(empiar: DemoPortal) -> None:
    for given in (["EMD-1"], [{"name": "EMD-1"}]):
        change_entry(empiar, lambda entry, given=given: entry.update(cross_references=given))  # type: ignore[misc]
        assert record_of(empiar, RETINA).facts["cross_references"] == ["EMD-1"]


def test_xmltodict_singleton(empiar: DemoPortal) -> None:
    one = '<author order="1">Demonstration D</author>'
    document = xml_header(next(entry for entry in empiar.entries if entry.accession == "11759"))
    assert document.count(one) == 1
    for authors, cited in ((one, "Demonstration D"), (one + one.replace("1", "2"), "Demonstration D, " * 2)):
        empiar.replace(HEADER, document.replace(one, authors))
        by_rest, by_header = said(record_of(empiar, RETINA), "rights.citation")
        assert by_rest.startswith("Demonstration D (2024). ")
        assert by_header.startswith(f"{cited.removesuffix(', ')} (2024). ")


def test_xy_and_xz_duplicate(idr: IdrPortal) -> None:
    listed = {ref.accession: ref.title for ref in source_of("idr", idr).list_datasets()}
    assert "_xy.tif" in listed["9846137"]
    assert "9846138" not in listed  # the same volume, resliced
    (file,) = source_of("idr", idr).list_files(CHROMATIN, record_of(idr, CHROMATIN))
    assert file.path.endswith("_xy.tif")


def test_401_from_epfl(epfl: EpflPortal, tmp_path: Path) -> None:
    files = source_of("epfl", epfl).list_files(TRAINING, record := record_of(epfl, TRAINING))
    epfl.asks_for_password = True
    with pytest.raises(InputRefused, match=TORRENT) as refused:
        record_of(epfl, TRAINING)
    assert "401" in str(refused.value)
    with pytest.raises(InputRefused, match="401"):
        download(files, tmp_path, dataset_id="epfl-training", revision=record.revision,
                 policy=DownloadPolicy(retries=0), progress=Silent())  # fmt: skip


def test_503_from_dvid(flyem: FlyemPortal, tmp_path: Path) -> None:
    spec = hemibrain(bounding_box=BOX, image_set="dvid")
    flyem.busy = 3
    with opened(flyem, spec, tmp_path / "patient", retries=4) as volume:
        np.testing.assert_array_equal(volume.read(BOX), flyem.grey[32:102, 56:116, 16:96])
    assert flyem.busy == 0
    flyem.busy = 99
    with pytest.raises(SourceUnavailable, match="503"):
        held(flyem, spec, tmp_path / "hasty")


def test_biostudies_zero_hit_control(empiar: DemoPortal) -> None:
    source = source_of("empiar", empiar)
    listed = {ref.accession for ref in source.list_datasets()}
    empiar.replace(SEARCH, NO_HITS)  # what a wrong collection name answers
    assert {ref.accession for ref in source.list_datasets()} == listed  # EBI Search stands in
    assert empiar.requests[EBI_SEARCH] == 1
    stranger = {"accession": "EMPIAR-10000", "title": "", "release_date": "2016-01-01"}
    empiar.replace(SEARCH, json.dumps({"totalHits": 1, "isTotalHitsExact": True, "hits": [stranger]}))
    assert {ref.accession for ref in source.list_datasets()} == listed
    empiar.replace(EBI_SEARCH, json.dumps({"hitCount": 0, "entries": []}))
    with pytest.raises(SourceUnavailable, match=r"neither BioStudies .* nor EBI Search"):
        list(source.list_datasets())
