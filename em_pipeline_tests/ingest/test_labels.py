"""Datasets with label images, regions of what is only partly held, and what their source lacks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorstore
import zarr
from ome_zarr_models.v05.image import Image

from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.catalog.entries import PublishedVersion
from em_pipeline.domain.errors import InputRefused, NotPublishable, RecordInvalid
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.progress import Progress, Silent
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.build import build, current_build
from em_pipeline.ingest.damage import discard
from em_pipeline.ingest.fetch import fetch
from em_pipeline.ingest.forget import Kept, forget
from em_pipeline.ingest.publish import publish
from em_pipeline.ingest.scrape import scrape
from em_pipeline.ingest.validate import validate
from em_pipeline.ingest.versions import image_files
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.files import FilesSource
from em_pipeline.storage.store import LocalStore
from em_pipeline.volumes.compute import Job, ThisProcess
from em_pipeline.volumes.ledger import ChunkState, Ledger
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.verify import verify_decoded
from em_pipeline_tests.ingest.arrays_source import (
    BOX,
    CELLS,
    MITO,
    NAMES,
    RAW,
    SHAPE,
    SLUG,
    ArraysSource,
    labelled,
    workspace_of,
)
from em_pipeline_tests.ingest.chain import STEPS, hashes, run_chain, volume_of
from em_pipeline_tests.volumes.arrays import ArrayVolume, FailingVolume

pytestmark = pytest.mark.integration


@pytest.fixture
def source(tmp_path: Path) -> ArraysSource:
    return labelled(tmp_path)


@pytest.fixture
def arrays(tmp_path: Path, database_url: str, source: ArraysSource) -> Iterator[Workspace]:
    engine = create_engine_for(database_url)
    yield workspace_of(source, tmp_path / "store", engine)
    engine.dispose()


def spec_of(**options: Any) -> DatasetSpec:
    return DatasetSpec(source=SLUG, accession="a", **options)


def published(workspace: Workspace) -> PublishedVersion:
    found = workspace.catalog.published_version("arrays-a")
    assert found is not None
    return found


def test_label_images_lie_beside_their_image_with_every_id(arrays: Workspace) -> None:
    run_chain(arrays, spec_of(label_images=NAMES, bounding_box=BOX))
    served = published(arrays)
    volume = arrays.store.local_path(served.volume_key)
    image = Image.from_zarr(zarr.open_group(volume, mode="r", zarr_format=3))
    assert image.labels is not None
    assert sorted(image.labels.label_paths) == ["cell-seg", "mito"]
    np.testing.assert_array_equal(zarr.open_array(volume / "0", mode="r")[:], RAW[BOX.slices])
    cells = {"driver": "file", "path": f"{volume}/labels/cell-seg/0/"}
    stored = tensorstore.open({"driver": "zarr3", "kvstore": cells}).result().read().result()
    np.testing.assert_array_equal(stored, CELLS[BOX.slices])
    np.testing.assert_array_equal(
        zarr.open_array(volume / "labels/mito/0", mode="r")[:], MITO[1:9, 5:70, 10:60]
    )
    labels = {label.folder: label for label in served.labels}
    assert [(label.name, label.data_type) for label in served.labels] == [
        ("cell seg", "uint64"),
        ("mito", "int32"),
    ]
    assert labels["cell-seg"].levels[0].translation_nm == served.levels[0].translation_nm == (124, 40, 84)
    assert labels["mito"].levels[0].voxel_size_nm == (16, 8, 8)
    assert labels["mito"].levels[0].translation_nm == (104 + 16, 2 + 5 * 8, 2 + 10 * 8)
    assert len({len(label.levels) for label in served.labels} | {len(served.levels)}) == 1
    for label in served.labels:
        result = verify_decoded(
            *image_files(arrays.store, label.volume_key, label.ledger_key),
            ledger_sha256=label.ledger_sha256,
            threads=1,
            progress=Silent(),
        )
        assert result.passed
    report = {check.name: check for check in arrays.catalog.dataset("arrays-a").checks}
    assert "labels/mito does not cover the whole image" in report["geometry"].message
    assert report["coverage"].passed


@pytest.mark.parametrize(
    ("codec", "of_image", "of_labels"), [("none", "none", "none"), ("blosc-zstd", "blosc-zstd", "zstd-3")]
)
def test_no_codec_holds_for_label_images_and_any_other_for_the_image(
    arrays: Workspace, codec: str, of_image: str, of_labels: str
) -> None:
    run_chain(arrays, spec_of(label_images=NAMES, codec=codec))
    served = published(arrays)
    images = [(served.volume_key, served.ledger_key)]
    images += [(label.volume_key, label.ledger_key) for label in served.labels]
    readers = [VolumeReader.open(*image_files(arrays.store, *keys)) for keys in images]
    assert [reader.info.codec.name for reader in readers] == [of_image, of_labels, of_labels]


def test_the_same_bytes_whatever_the_order_and_no_work_twice(
    arrays: Workspace, source: ArraysSource, tmp_path: Path
) -> None:
    spec = spec_of(label_images=NAMES)
    run_chain(arrays, spec)
    before = hashes(arrays.store.local_path("volumes"))
    reads = len(source.image.reads), len(source.labels["mito"].reads)
    assert build(arrays, spec).written is None
    assert validate(arrays, spec).passed
    assert not publish(arrays, spec).changed
    assert (len(source.image.reads), len(source.labels["mito"].reads)) == reads
    source.labels = dict(reversed(source.labels.items()))
    other = replace(arrays, store=LocalStore(tmp_path / "other"))
    for step in STEPS[:3]:
        step(other, spec)
    found = hashes(volume_of(other, spec))
    assert {f"{path}" for path in found} <= {path.split(".ome.zarr/")[-1] for path in before}
    assert set(found.values()) <= set(before.values())


def test_image_and_label_images_are_written_by_what_the_workspace_computes_with(arrays: Workspace) -> None:
    class Counting(ThisProcess):
        places: ClassVar[set[str]] = set()

        def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
            self.places.add(job.workspace.volume.url.partition("volume.ome.zarr")[2])
            super().run(job, level, units, progress)

    with_counting = replace(arrays, compute=Counting())
    for step in STEPS[:3]:
        step(with_counting, spec_of(label_images=NAMES, bounding_box=BOX))
    assert Counting.places == {"", "/labels/cell-seg", "/labels/mito"}


def test_a_run_that_died_within_a_label_image_goes_on_there(arrays: Workspace, source: ArraysSource) -> None:
    spec = spec_of(label_images=NAMES)
    whole = source.labels["mito"]
    source.labels["mito"] = FailingVolume(
        MITO, RuntimeError("unplugged"), 0, voxel_size=(16, 8, 8), translation_nm=(104, 2, 2)
    )
    scrape(arrays, spec)
    fetch(arrays, spec)
    with pytest.raises(RuntimeError, match="unplugged"):
        build(arrays, spec)
    assert arrays.catalog.published() == []
    reads = len(source.image.reads), len(source.labels["cell seg"].reads)
    source.labels["mito"] = whole
    build(arrays, spec)
    assert (len(source.image.reads), len(source.labels["cell seg"].reads)) == reads
    assert validate(arrays, spec).passed


@pytest.mark.parametrize("name", ["labels/mito/0/c/0/0/0", "labels/mito/zarr.json", "labels/zarr.json"])
def test_a_damaged_label_image_is_not_published(arrays: Workspace, name: str) -> None:
    spec = spec_of(label_images=NAMES)
    for step in STEPS[:3]:
        step(arrays, spec)
    path = volume_of(arrays, spec) / name
    damaged = bytearray(path.read_bytes())
    damaged[10] ^= 1
    path.write_bytes(damaged)
    report = validate(arrays, spec)
    assert not report.passed
    assert "labels/" in str([check.message for check in report.failures])
    with pytest.raises(NotPublishable):
        publish(arrays, spec)


def test_a_label_image_of_other_voxels_is_found(arrays: Workspace, source: ArraysSource) -> None:
    spec = spec_of(label_images=NAMES)
    for step in STEPS[:3]:
        step(arrays, spec)
    source.labels["cell seg"].array[0, 0, 0] += 1
    failed = {check.name: check.message for check in validate(arrays, spec).failures}
    assert failed == {
        "faithful": "labels/cell-seg: level 0 differs from the raw files in the chunk at voxel "
        "(0, 0, 0) (z-y-x)"
    }


def test_a_ledger_of_a_label_image_is_sealed_by_the_report(arrays: Workspace) -> None:
    spec = spec_of(label_images=NAMES)
    for step in STEPS[:4]:
        step(arrays, spec)
    files = current_build(arrays, spec).files
    arrays.store.write(files.label_ledger("mito"), arrays.store.read(files.label_ledger("cell-seg")))
    with pytest.raises(NotPublishable, match="other bytes"):
        publish(arrays, spec)


def test_a_lost_ledger_of_a_label_image_is_made_again(arrays: Workspace) -> None:
    spec = spec_of(label_images=NAMES)
    for step in STEPS[:3]:
        step(arrays, spec)
    files = current_build(arrays, spec).files
    folder = volume_of(arrays, spec).parent
    before = hashes(folder)
    arrays.store.delete(files.label_ledger("mito"))
    build(arrays, spec)
    assert hashes(folder) == before
    run_chain(arrays, spec)
    arrays.store.write(current_build(arrays, spec).files.label_ledger("mito"), b"")
    with pytest.raises(RecordInvalid, match="one of its ledgers"):
        build(arrays, spec)


def test_a_source_that_gives_others_than_asked_for_is_refused(arrays: Workspace) -> None:
    spec = spec_of(label_images=("mito", "nuclei"))
    scrape(arrays, spec)
    fetch(arrays, spec)
    with pytest.raises(RecordInvalid, match=r"gives \['cell seg', 'mito'\].*names \['mito', 'nuclei'\]"):
        build(arrays, spec)


def test_label_images_are_refused_before_anything_is_read(arrays: Workspace, source: ArraysSource) -> None:
    source.labels["mito"] = ArrayVolume(MITO, voxel_size=(12, 8, 8))
    spec = spec_of(label_images=NAMES)
    scrape(arrays, spec)
    fetch(arrays, spec)
    with pytest.raises(InputRefused, match="12 nm along z"):
        build(arrays, spec)
    assert not source.image.reads


def test_what_the_source_lacks_is_absent_counted_and_shown(arrays: Workspace, source: ArraysSource) -> None:
    hole = BoundingBox.at((0, 0, 0), (20, 128, 128))
    source.image.array[hole.slices] = 77  # the source's own fill value
    source.image.missing = (hole,)
    source.labels["mito"].missing = (BoundingBox.at((0, 0, 0), (10, 7, 60)),)
    spec = spec_of(label_images=NAMES)
    run_chain(arrays, spec)
    share = 1 - 128 * 128 / (140 * 150)
    served = published(arrays)
    assert served.coverage == pytest.approx(share)
    assert [label.coverage for label in served.labels] == [1.0, pytest.approx(0.9)]
    (summary,) = arrays.catalog.published()
    assert summary.coverage == served.coverage
    checks = {check.name: check for check in arrays.catalog.dataset("arrays-a").checks}
    assert checks["complete"].passed
    assert not checks["coverage"].passed
    assert "78.019% of the voxels are absent at the source" in checks["coverage"].message
    assert "labels/mito: 10.000%" in checks["coverage"].message
    assert "all fill value, and lost ones look alike" in checks["coverage"].message
    ledger = Ledger.read(arrays.store.blobs("volumes/arrays-a"), served.ledger_key.rpartition("/")[2])
    assert ledger.row(0, (0, 0, 0)).state is ChunkState.ABSENT
    assert zarr.open_array(arrays.store.local_path(served.volume_key) / "0", mode="r")[0, 0, 0] == 0


def test_absence_that_the_ledger_does_not_know_is_found(arrays: Workspace, source: ArraysSource) -> None:
    spec = spec_of()
    for step in STEPS[:3]:
        step(arrays, spec)
    source.image.missing = (BoundingBox.at((0, 0, 0), (20, 10, 10)),)
    assert "complete" in {check.name for check in validate(arrays, spec).failures}


def test_a_region_is_whole_though_its_surroundings_are_not_held(
    arrays: Workspace, source: ArraysSource
) -> None:
    held = np.zeros(SHAPE, bool)
    held[BOX.slices] = True
    source.image.array[~held] = 0
    source.image.missing = (
        BoundingBox.at((0, 0, 0), (3, 140, 150)),
        BoundingBox(start=Shape(3, 139, 0), stop=SHAPE),
        BoundingBox.at((3, 0, 121), (17, 139, 29)),
    )
    run_chain(arrays, spec_of(bounding_box=BOX, bounding_box_reason="the part of interest"))
    served = published(arrays)
    assert served.coverage == 1.0
    assert served.levels[0].shape == tuple(BOX.shape)
    assert served.levels[0].translation_nm == (100 + 3 * 8, 10 * 4, 21 * 4)
    assert tuple(arrays.catalog.published()[0].shape or ()) == tuple(BOX.shape)
    volume = arrays.store.local_path(served.volume_key)
    np.testing.assert_array_equal(zarr.open_array(volume / "0", mode="r")[:], RAW[BOX.slices])


@pytest.mark.parametrize("label", [None, "mito"])
def test_a_version_of_other_bytes_than_were_published_is_refused_before_it_is_moved(
    arrays: Workspace, source: ArraysSource, label: str | None
) -> None:
    spec = spec_of(label_images=NAMES)
    run_chain(arrays, spec)
    first = published(arrays)
    discard(arrays.catalog, arrays.store, first)
    before = hashes(arrays.store.local_path("volumes"))
    image = source.labels[label] if label else source.image
    image.array = image.array[:, ::-1].copy()
    for _ in range(2):
        with pytest.raises(NotPublishable, match="em rm arrays-a --volume"):
            run_chain(arrays, spec)
        assert hashes(arrays.store.local_path("volumes")) == before
    assert not current_build(arrays, spec).files.volume.startswith("volumes")
    image.array = image.array[:, ::-1].copy()
    arrays.store.delete_tree(f"staging/arrays-a/{first.version}")
    again = run_chain(arrays, spec)
    assert (again.changed, again.written_again) == (False, True)
    assert not run_chain(arrays, spec).written_again
    assert published(arrays).ledger_sha256 == first.ledger_sha256
    discard(arrays.catalog, arrays.store, first)
    image.array = image.array[:, ::-1].copy()
    forget(arrays, "arrays-a", {Kept.VOLUMES})
    assert run_chain(arrays, spec).changed


def test_what_was_written_can_be_ingested_with_its_label_images(arrays: Workspace) -> None:
    run_chain(arrays, spec_of(label_images=NAMES))
    first = published(arrays)
    volume = arrays.store.local_path(first.volume_key)
    files = replace(arrays, sources={"files": FilesSource()})
    spec = DatasetSpec(source="files", accession="b", location=str(volume), label_images=("cell-seg",))
    run_chain(files, spec)
    again = arrays.catalog.published_version("files-b")
    assert again is not None
    assert again.levels == first.levels
    assert again.labels[0].levels == first.labels[0].levels
    stored = zarr.open_array(arrays.store.local_path(again.volume_key) / "labels/cell-seg/0", mode="r")[:]
    np.testing.assert_array_equal(stored, CELLS)
