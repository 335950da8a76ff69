"""The precomputed source against volumes of other writers: on a web server and on this machine."""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from em_pipeline.demo.replay import Replay, Reply, Request, Trouble, not_found
from em_pipeline.demo.specimen import specimen
from em_pipeline.domain.errors import (
    InputRefused,
    NotFound,
    RecordInvalid,
    SourceUnavailable,
    UnsupportedFormat,
)
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.precomputed_info import parse_info
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.precomputed import PrecomputedSource
from em_pipeline.storage.download import DownloadPolicy, download
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints
from em_pipeline_tests.formats.helpers import ramp
from em_pipeline_tests.formats.test_precomputed import SHAPE, SHARDING, labels, written


class WebFolder(Replay):
    """A folder on a web server."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def answer(self, request: Request) -> Reply:
        path = self.folder / request.path.lstrip("/")
        return Reply(path) if path.is_file() else not_found()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebFolder]:
    with WebFolder(tmp_path / "served") as running:
        yield running


SOURCE = PrecomputedSource(timeout_s=5, retries=0, backoff_s=0)


def spec_at(location: object, **given: Any) -> DatasetSpec:
    return DatasetSpec(source="precomputed", accession="test", location=str(location), **given)


def held(
    spec: DatasetSpec,
    folder: Path,
    source: PrecomputedSource = SOURCE,
    endpoints: ObjectEndpoints = PUBLIC,
) -> list[HeldFile]:
    """The files as an ingest holds them: downloaded, or in place."""
    record = source.fetch_record(spec)
    files = source.list_files(spec, record)
    manifest = download(
        files,
        folder,
        dataset_id=spec.dataset_id,
        revision=record.revision,
        policy=DownloadPolicy(retries=0, endpoints=endpoints),
        progress=Silent(),
    )
    return [
        HeldFile(file, Path(file.url.removeprefix("file://")) if file.in_place else folder / file.path)
        for file in manifest.files
    ]


def read(spec: DatasetSpec, folder: Path) -> NDArray[Any]:
    with SOURCE.open_volume(spec, held(spec, folder)) as volume:
        return volume.read(spec.bounding_box or BoundingBox.of_shape(volume.shape))


@pytest.mark.parametrize("sharding", [None, SHARDING])
@pytest.mark.parametrize("remote", [True, False])
def test_a_volume_comes_whole(web: WebFolder, tmp_path: Path, sharding: Any, remote: bool) -> None:
    voxels = ramp(SHAPE)
    written(web.folder / "em", voxels, **({"sharding": sharding} if sharding else {}))
    location = f"{web.url}/em" if remote else web.folder / "em"
    np.testing.assert_array_equal(read(spec_at(location), tmp_path / "raw"), voxels)


@pytest.mark.parametrize("sharding", [None, SHARDING])
def test_a_region_costs_its_chunks_only(web: WebFolder, tmp_path: Path, sharding: Any) -> None:
    voxels = ramp(SHAPE)
    written(web.folder / "em", voxels, **({"sharding": sharding} if sharding else {}))
    box = BoundingBox.at((9, 13, 17), (3, 3, 20))
    spec = spec_at(f"{web.url}/em", bounding_box=box)
    np.testing.assert_array_equal(read(spec, tmp_path / "raw"), voxels[box.slices])
    chunks = list((tmp_path / "raw/image/4_4_30").iterdir())
    assert len(chunks) == 2


def test_chunks_that_were_never_written_are_asked_for_and_missing(web: WebFolder, tmp_path: Path) -> None:
    written(web.folder / "em", ramp(SHAPE), BoundingBox.at((0, 0, 0), (8, 12, 32)))
    spec = spec_at(f"{web.url}/em", bounding_box=BoundingBox.at((0, 0, 0), (8, 12, 50)))
    volume = SOURCE.open_volume(spec, held(spec, tmp_path / "raw"))
    assert list(volume.missing) == [BoundingBox(start=Shape(0, 0, 32), stop=Shape(8, 12, 50))]


def test_a_level_that_is_not_there_at_all_is_refused(web: WebFolder) -> None:
    folder = written(web.folder / "em", ramp(SHAPE))
    for chunk in (folder / "4_4_30").iterdir():
        chunk.unlink()
    spec = spec_at(f"{web.url}/em")
    record = SOURCE.fetch_record(spec)
    with pytest.raises(NotFound, match="holds none there"):
        SOURCE.list_files(spec, record)


def test_names_with_the_suffix_of_gzip_are_found_on_a_server(web: WebFolder, tmp_path: Path) -> None:
    """As cloud-volume writes them on a disk that is served: without them, all would read as zeros."""
    voxels = ramp(SHAPE)
    folder = written(web.folder / "em", voxels)
    for chunk in list((folder / "4_4_30").iterdir()):
        chunk.rename(f"{chunk}.gz")
    np.testing.assert_array_equal(read(spec_at(f"{web.url}/em"), tmp_path / "raw"), voxels)


class Bucket(WebFolder):
    """Objects that are kept compressed and sent so, whoever asks: as cloud-volume writes them to S3."""

    def answer(self, request: Request) -> Reply:
        reply = super().answer(request)
        return replace(reply, headers={"Content-Encoding": "gzip"}) if reply.status == 200 else reply


def test_objects_that_are_kept_compressed_stay_so(tmp_path: Path) -> None:
    voxels = ramp(SHAPE)
    folder = written(tmp_path / "served/bucket/em", voxels)
    for path in (folder / "info", *(folder / "4_4_30").iterdir()):
        path.write_bytes(gzip.compress(path.read_bytes()))
    with Bucket(tmp_path / "served") as bucket:
        source = PrecomputedSource(s3=bucket.url, timeout_s=5, retries=0, backoff_s=0)
        spec = spec_at("s3://bucket/em")
        files = held(spec, tmp_path / "raw", source, ObjectEndpoints(s3=bucket.url))
    volume = source.open_volume(spec, files)
    assert (tmp_path / "raw/image/info").read_bytes() == (folder / "info").read_bytes()
    np.testing.assert_array_equal(volume.read(BoundingBox.of_shape(SHAPE)), voxels)


@pytest.mark.parametrize("trouble", [Trouble.SERVER_ERROR, Trouble.RESET, Trouble.CUT])
def test_an_outage_while_downloading_is_no_missing_chunk(
    web: WebFolder, tmp_path: Path, trouble: Trouble
) -> None:
    written(web.folder / "em", ramp(SHAPE))
    spec = spec_at(f"{web.url}/em")
    record = SOURCE.fetch_record(spec)
    files = SOURCE.list_files(spec, record)
    web.trouble(trouble, "/em/4_4_30/39-55_")
    with pytest.raises(SourceUnavailable):
        download(
            files,
            tmp_path / "raw",
            dataset_id=spec.dataset_id,
            revision=record.revision,
            policy=DownloadPolicy(retries=0),
            progress=Silent(),
        )


def chunks_in(folder: Path, shard: str) -> set[BoundingBox]:
    """The chunks (boxes of voxels, z-y-x) of `written` that lie in that shard."""
    scale = parse_info((folder / "info").read_bytes(), "info").scale(None)
    assert scale.sharding is not None
    return {
        chunk
        for chunk in scale.grid.boxes(BoundingBox.of_shape(scale.shape))
        if scale.sharding.shard_name(scale.sharding.place(scale.grid.morton(chunk))[0]) == shard
    }


def marked(boxes: Iterable[BoundingBox], shape: Sequence[int]) -> bytes:
    """Which voxels the boxes cover, however they are cut."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box.slices] = True
    return mask.tobytes()


@pytest.mark.parametrize("remote", [True, False])
def test_chunks_of_a_shard_that_is_not_there_are_absent_and_no_others(
    web: WebFolder, tmp_path: Path, remote: bool
) -> None:
    voxels = ramp(SHAPE)
    folder = written(web.folder / "em", voxels, sharding=SHARDING)
    first, *others = sorted((folder / "4_4_30").iterdir())
    lost = chunks_in(folder, first.name)
    first.unlink()
    assert others
    assert lost
    spec = spec_at(f"{web.url}/em" if remote else folder)
    volume = SOURCE.open_volume(spec, held(spec, tmp_path / "raw"))
    assert marked(volume.missing, SHAPE) == marked(lost, SHAPE)
    for other in others:
        for chunk in chunks_in(folder, other.name):
            np.testing.assert_array_equal(volume.read(chunk), voxels[chunk.slices])


class Refusing(WebFolder):
    """Answers the shard `named` with `status` from the request after the next `healthy` ones on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.named, self.status, self.healthy = "", 404, 0

    def answer(self, request: Request) -> Reply:
        if self.named and request.path.endswith(self.named):
            self.healthy -= 1
            if self.healthy < 0:
                return replace(not_found(), status=self.status)
        return super().answer(request)


@pytest.mark.parametrize(
    ("status", "error"),
    [(410, NotFound), (403, InputRefused), (401, InputRefused), (503, SourceUnavailable)],
)
def test_a_shard_that_is_refused_is_no_shard_that_was_never_written(
    tmp_path: Path, status: int, error: type[Exception]
) -> None:
    folder = written(tmp_path / "served/em", ramp(SHAPE), sharding=SHARDING)
    with Refusing(tmp_path / "served") as web:
        spec = spec_at(f"{web.url}/em")
        record = SOURCE.fetch_record(spec)
        web.named, web.status = sorted((folder / "4_4_30").iterdir())[0].name, status
        with pytest.raises(error, match=f"HTTP {status}"):
            SOURCE.list_files(spec, record)


@pytest.mark.parametrize("healthy", [1, 2])
def test_a_shard_that_vanishes_after_its_index_was_read_is_an_error(tmp_path: Path, healthy: int) -> None:
    folder = written(tmp_path / "served/em", ramp(SHAPE), sharding={**SHARDING, "minishard_bits": 0})
    with Refusing(tmp_path / "served") as web:
        web.named, web.healthy = sorted((folder / "4_4_30").iterdir())[0].name, healthy
        with pytest.raises((UnsupportedFormat, NotFound), match=web.named):
            held(spec_at(f"{web.url}/em"), tmp_path / "raw")


def test_labels_come_along_from_where_the_image_lies(web: WebFolder, tmp_path: Path) -> None:
    """The label volume begins elsewhere and is of another size; positions decide, not indices."""
    image, ids = specimen(SHAPE, seed=4), labels()
    written(web.folder / "em", image, encoding="jpeg")
    written(
        web.folder / "seg",
        ids[4:, 6:, 8:],
        kind="segmentation",
        voxel_offset=[7 + 8, 1000 + 6, -3 + 4],
        sharding=SHARDING,
    )
    box = BoundingBox.at((2, 4, 20), (10, 20, 12))
    spec = spec_at(f"{web.url}/em", bounding_box=box, label_images=(f"cells={web.url}/seg",))
    files = held(spec, tmp_path / "raw")
    volume = SOURCE.open_volume(spec, files)
    image_labels = SOURCE.open_label_images(spec, files)["cells"]
    shift = [
        round((a - b) / nm)
        for a, b, nm in zip(image_labels.translation_nm, volume.translation_nm, (30, 4, 4), strict=True)
    ]
    assert shift == [4, 6, 8]
    inner = BoundingBox.at((4, 6, 20), (8, 18, 12))
    there = BoundingBox.at((0, 0, 12), (8, 18, 12))
    np.testing.assert_array_equal(image_labels.read(there), ids[inner.slices])


def test_labels_of_another_voxel_size_are_refused(web: WebFolder) -> None:
    written(web.folder / "em", ramp(SHAPE))
    written(web.folder / "seg", labels(), kind="segmentation", resolution=[8, 8, 30])
    with pytest.raises(InputRefused, match="8_8_30"):
        SOURCE.fetch_record(spec_at(f"{web.url}/em", label_images=(f"cells={web.url}/seg",)))


def test_labels_need_an_address(web: WebFolder) -> None:
    written(web.folder / "em", ramp(SHAPE))
    with pytest.raises(NotFound, match="name=address"):
        SOURCE.fetch_record(spec_at(f"{web.url}/em", label_images=("cells",)))


@pytest.mark.parametrize("name", ["../cells", "", "a b"])
def test_label_names_cannot_leave_their_folder(web: WebFolder, name: str) -> None:
    written(web.folder / "em", ramp(SHAPE))
    with pytest.raises(InputRefused, match="no plain name"):
        SOURCE.fetch_record(spec_at(f"{web.url}/em", label_images=(f"{name}={web.url}/em",)))


def test_too_much_is_refused_with_how_to_cut_it(web: WebFolder, tmp_path: Path) -> None:
    written(web.folder / "em", ramp(SHAPE))
    small = PrecomputedSource(retries=0, largest_gb="0.00003")
    spec = spec_at(f"{web.url}/em")
    record = small.fetch_record(spec)
    with pytest.raises(InputRefused, match="--roi"):
        small.list_files(spec, record)
    huge = spec_at(f"{web.url}/em", bounding_box=BoundingBox.of_shape(SHAPE))
    with pytest.raises(InputRefused, match="largest_gb"):
        small.list_files(huge, small.fetch_record(huge))
    boxed = spec_at(f"{web.url}/em", bounding_box=BoundingBox.at((0, 0, 0), (8, 8, 8)))
    assert held(boxed, tmp_path / "raw", small)


def test_a_box_outside_is_refused_before_anything_is_fetched(web: WebFolder) -> None:
    written(web.folder / "em", ramp(SHAPE))
    box = BoundingBox.at((0, 1000, 0), (1, 1, 1))  # a position, not an index
    with pytest.raises(InputRefused, match="counted from its first"):
        SOURCE.fetch_record(spec_at(f"{web.url}/em", bounding_box=box))


def test_claims_have_evidence_and_no_title_where_one_is_curated(web: WebFolder) -> None:
    written(web.folder / "em", ramp(SHAPE))
    spec = spec_at(f"precomputed://{web.url}/em/")
    record = SOURCE.fetch_record(spec)
    fields = DatasetRecord.resolve(spec.dataset_id, record.revision, record.claims).fields
    assert fields.core.title == "em"
    assert tuple(fields.core.volume_shape.__dict__.values()) == SHAPE
    assert {claim.evidence.where for claim in record.claims} == {f"{web.url}/em/info"}
    curated = {"core.title": {"value": "Titled", "page": "https://example.org", "read_on": "2026-01-01"}}
    titled = SOURCE.fetch_record(spec_at(f"{web.url}/em", curated=curated))
    assert "core.title" not in {claim.field for claim in titled.claims}


def test_the_revision_is_of_the_info_the_level_and_the_box(web: WebFolder) -> None:
    written(web.folder / "em", ramp(SHAPE))
    written(web.folder / "copy", ramp(SHAPE))
    box = BoundingBox.at((0, 0, 0), (1, 1, 1))
    specs = [
        spec_at(f"{web.url}/em"),
        spec_at(f"{web.url}/copy"),
        spec_at(f"{web.url}/em", bounding_box=box),
    ]
    assert len({SOURCE.fetch_record(spec).revision for spec in specs}) == 3
    record = SOURCE.fetch_record(specs[0])
    info = web.folder / "em/info"
    info.write_text(json.dumps({**json.loads(info.read_text()), "mesh": "mesh"}))
    with pytest.raises(RecordInvalid, match="has changed since"):
        SOURCE.list_files(specs[0], record)


def test_a_folder_without_a_volume_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file `info`"):
        SOURCE.fetch_record(spec_at(tmp_path))


def test_meshes_are_no_volume(web: WebFolder) -> None:
    (web.folder / "mesh").mkdir(parents=True)
    (web.folder / "mesh/info").write_text('{"@type": "neuroglancer_legacy_mesh"}')
    with pytest.raises(UnsupportedFormat, match="lists no scales"):
        SOURCE.fetch_record(spec_at(f"{web.url}/mesh"))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name", ["precomputed_image_jpeg", "precomputed_seg_compressed_segmentation", "precomputed_seg_sharded"]
)
def test_volumes_of_other_writers_in_place(shared_data: Path, tmp_path: Path, name: str) -> None:
    voxels = read(spec_at(shared_data / "derived" / name), tmp_path)
    assert voxels.shape == Shape(40, 96, 112)
    assert voxels.any()
