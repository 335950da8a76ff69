"""Volumes over spooled files, pickled for a machine whose spool does not have them."""

import pickle
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from em_pipeline.domain.errors import ChecksumMismatch, NotFound
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import Fetching
from em_pipeline.domain.progress import Progress
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import open_volume
from em_pipeline.ingest.build import build
from em_pipeline.ingest.spooled_volume import SpooledVolume
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.volumes.compute import Job, ThisProcess
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline_tests.formats.helpers import ramp
from em_pipeline_tests.formats.samples import SAMPLES
from em_pipeline_tests.ingest.chain import STEPS
from em_pipeline_tests.ingest.spooled import spool_folder, uploaded
from em_pipeline_tests.object_stores import StoreInBucket

pytestmark = pytest.mark.integration

SHAPE = Shape(9, 37, 50)
BOX = BoundingBox.of_shape(SHAPE)
CORNER = DatasetSpec(
    source="empiar",
    accession="11759",
    dataset_id="empiar-11759-corner",
    bounding_box={"start": (0, 0, 0), "stop": (16, 64, 64)},
)
# One sample for each way in which readers keep the paths of their files.
READERS = ("tiff", "png-stack", "dm", "mrc", "hdf5", "zarr3-sharded", "n5-gzip", "precomputed-sharded")


@pytest.fixture
def stack(tmp_path: Path, s3_blobs: ObjectBlobs) -> SpooledVolume:
    """Nine planes, which this machine has."""
    folder = spool_folder(tmp_path / "spool")
    for z, plane in enumerate(ramp(SHAPE, "u1")):
        tifffile.imwrite(folder / f"p{z}.tif", plane, photometric="minisblack")
    return uploaded(open_volume(sorted(folder.iterdir())), folder, s3_blobs)


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spool of another machine, which this process takes for its own."""
    monkeypatch.setenv("EM_SPOOL", str(tmp_path / "other"))
    return tmp_path / "other"


def elsewhere(volume: SpooledVolume) -> SpooledVolume:
    return unpickled(pickle.dumps(volume))


def unpickled(payload: bytes) -> SpooledVolume:
    found = pickle.loads(payload)
    assert isinstance(found, SpooledVolume)
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.tif"))


@pytest.mark.parametrize("name", READERS)
def test_every_format_reads_the_same_where_its_files_have_to_be_brought(
    tmp_path: Path, s3_blobs: ObjectBlobs, other: Path, name: str
) -> None:
    sample = SAMPLES[name]
    folder = spool_folder(tmp_path / "spool")
    volume = sample.write(folder, ramp(SHAPE, sample.dtypes[0]))
    box = BoundingBox.of_shape(volume.shape)
    expected = volume.read(box)
    payload = pickle.dumps(uploaded(volume, folder, s3_blobs))
    shutil.rmtree(tmp_path / "spool")
    found = unpickled(payload)
    assert isinstance(found, Fetching)
    assert found.lacks(box)
    np.testing.assert_array_equal(found.read(box), expected)
    assert not found.lacks(box)
    assert not (tmp_path / "spool").exists()
    assert not unpickled(payload).lacks(box)


def test_of_a_stack_only_the_planes_that_are_read_are_brought(stack: SpooledVolume, other: Path) -> None:
    found = elsewhere(stack)
    assert names(other) == []
    box = BoundingBox.at((2, 0, 0), (2, 37, 50))
    np.testing.assert_array_equal(found.read(box), stack.read(box))
    assert names(other) == ["p2.tif", "p3.tif"]
    assert not found.lacks(box)
    assert found.lacks(BOX)


@pytest.mark.parametrize("name", ["zarr2", "zarr3", "n5-gzip"])
def test_of_an_array_only_the_chunks_that_are_read_are_brought(
    tmp_path: Path, s3_blobs: ObjectBlobs, other: Path, name: str
) -> None:
    folder = spool_folder(tmp_path / "spool")
    volume = SAMPLES[name].write(folder, ramp(SHAPE, "u1"))
    box = BoundingBox.at((0, 0, 0), (8, 32, 32))
    expected = volume.read(box)
    found = elsewhere(uploaded(volume, folder, s3_blobs))
    np.testing.assert_array_equal(found.read(box), expected)
    chunks = {path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()}
    held = {path.relative_to(tmp_path / "spool").as_posix() for path in folder.rglob("*") if path.is_file()}
    assert len(chunks & held) < len(held) - 4
    np.testing.assert_array_equal(found.read(BOX), volume.read(BOX))


def test_threads_and_processes_take_turns(stack: SpooledVolume, other: Path) -> None:
    both = [elsewhere(stack), elsewhere(stack)]
    planes = [BoundingBox.at((z, 0, 0), (1, 37, 50)) for z in range(9)]
    with ThreadPoolExecutor(6) as pool:
        read = [pool.submit(volume.read, plane) for plane in planes for volume in both]
        voxels = [future.result() for future in read]
    np.testing.assert_array_equal(np.concatenate(voxels[::2]), stack.read(BOX))
    np.testing.assert_array_equal(np.concatenate(voxels[1::2]), stack.read(BOX))


def test_a_spool_that_is_seen_from_both_sides_is_used(
    stack: SpooledVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EM_HOME", str(tmp_path / "home"))
    found = elsewhere(stack)
    assert not found.lacks(BOX)
    assert found.read(BOX).any()
    assert not (tmp_path / "home").exists()
    payload = pickle.dumps(stack)
    shutil.rmtree(tmp_path / "spool")
    assert unpickled(payload).read(BOX).any()
    assert len(names(tmp_path / "home" / "spool")) == 9


def test_other_bytes_in_the_store_are_refused(
    stack: SpooledVolume, other: Path, s3_blobs: ObjectBlobs
) -> None:
    s3_blobs.write("files/p4.tif", bytes(s3_blobs.size("files/p4.tif") or 0))
    s3_blobs.delete("files/p5.tif")
    found = elsewhere(stack)
    with pytest.raises(ChecksumMismatch, match=r"p4\.tif"):
        found.read(BoundingBox.at((4, 0, 0), (1, 37, 50)))
    with pytest.raises(NotFound, match=r"p5\.tif"):
        found.read(BoundingBox.at((5, 0, 0), (1, 37, 50)))
    assert found.read(BoundingBox.at((6, 0, 0), (1, 37, 50))).any()
    assert names(other) == ["p6.tif"]


class AnotherMachine(ThisProcess):
    """Has units written with what arrives of a job on a machine that has another spool."""

    def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        super().run(pickle.loads(pickle.dumps(job)), level, units, progress)


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_dataset_is_built_by_machines_that_hold_none_of_its_files(
    remote: Workspace, other: Path, bucket: StoreInBucket
) -> None:
    for step in STEPS[:2]:
        step(remote, CORNER)
    version = build(replace(remote, compute=AnotherMachine()), CORNER).version
    there = {name: remote.store.read(name) for name in remote.store.list("staging")}
    assert len(list(other.rglob("*.dm3"))) == 16
    remote.store.delete_tree(f"staging/{CORNER.dataset_id}/{version}")
    assert build(remote, CORNER).version == version
    assert there == {name: remote.store.read(name) for name in remote.store.list("staging")}
