"""The real link, bucket, DVID and neuPrint: that they still are what the source takes them for. Kilobytes."""

from pathlib import Path

import pytest

from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import HeldFile, Source
from em_pipeline.sources.curated import curated_specs
from em_pipeline.sources.flyem import FlyemSource
from em_pipeline.sources.precomputed import PrecomputedSource
from em_pipeline.storage.download import DownloadPolicy, download

pytestmark = pytest.mark.live

# One chunk of the crop that the comparisons use.
CHUNK = BoundingBox.at((12032, 11008, 10048), (64, 64, 64))


def spec_of(**given: object) -> DatasetSpec:
    values = {"bounding_box": CHUNK, **given}
    return DatasetSpec.model_validate(
        {"source": "flyem", "accession": "hemibrain", "dataset_id": "flyem-hemibrain-chunk", **values}
    )


def held(source: Source, spec: DatasetSpec, folder: Path) -> list[HeldFile]:
    record = source.fetch_record(spec)
    manifest = download(
        source.list_files(spec, record),
        folder,
        dataset_id=spec.dataset_id,
        revision=record.revision,
        policy=DownloadPolicy(connections=source.max_connections),
        progress=Silent(),
    )
    return [HeldFile(file, folder / file.path) for file in manifest.files]


def test_the_record_of_hemibrain() -> None:
    record = FlyemSource().fetch_record(spec_of())
    values = DatasetRecord.resolve("flyem-hemibrain-chunk", record.revision, record.claims).values()
    assert [values[f"core.volume_shape.{axis}"] for axis in "zyx"] == [41394, 39725, 34427]
    assert [values[f"core.voxel_size_nm.{axis}"] for axis in "zyx"] == [8, 8, 8]
    assert values["core.data_type"] == "uint8"
    assert "dvid-grayscale" not in record.unavailable


def test_one_chunk_and_its_bodies(tmp_path: Path) -> None:
    source, spec = FlyemSource(), spec_of(label_images=("segmentation",))
    files = held(source, spec, tmp_path)
    voxels = source.open_volume(spec, files).read(CHUNK)
    assert voxels.std() > 5
    bodies = source.open_label_images(spec, files)["segmentation"]
    assert bodies.dtype == "uint64"
    assert bodies.read(CHUNK).any()


def test_dvid_still_sends_raw_voxels() -> None:
    spec = spec_of(image_set="dvid")
    source = FlyemSource()
    files = source.list_files(spec, source.fetch_record(spec))
    assert sum(file.size or 0 for file in files) < 3_000_000


@pytest.mark.parametrize(
    "spec", [spec for spec in curated_specs() if spec.source == "precomputed"], ids=lambda s: s.accession
)
def test_curated_volumes_are_where_their_specs_say(spec: DatasetSpec) -> None:
    source = PrecomputedSource()
    record = source.fetch_record(spec)
    values = DatasetRecord.resolve(spec.dataset_id, record.revision, record.claims).values()
    assert values["core.data_type"] == "uint8"
    assert source.list_files(spec, record)
