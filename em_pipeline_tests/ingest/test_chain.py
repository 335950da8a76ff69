"""A dataset from its portal to the catalogue, without Dagster."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import tifffile
import zarr

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.domain.errors import EmError, InputRefused, NotFound, NotPublishable, SourceUnavailable
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape
from em_pipeline.domain.record import Status
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.build import build, current_build, open_source_volume
from em_pipeline.ingest.fetch import fetch, latest_manifest
from em_pipeline.ingest.planning import outlook
from em_pipeline.ingest.publish import publish
from em_pipeline.ingest.scrape import scrape
from em_pipeline.ingest.specs import find_spec, known_specs, spec_from_id
from em_pipeline.ingest.validate import CHECK_NAMES, WARNINGS, validate
from em_pipeline.ingest.versions import version_of
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.files import spec_for
from em_pipeline.storage.store import LocalStore
from em_pipeline_tests.ingest.chain import STEPS, hashes, run_chain, volume_of
from em_pipeline_tests.volumes.arrays import ArrayVolume
from em_pipeline_tests.volumes.test_resume import Notes
from em_pipeline_tests.workspaces import RETINA

pytestmark = pytest.mark.integration


@pytest.fixture
def retina(workspace: Workspace) -> DatasetSpec:
    return find_spec(workspace.catalog, "empiar-11759")


def raw_voxels(workspace: Workspace, spec: DatasetSpec) -> np.ndarray:
    with open_source_volume(workspace, spec, latest_manifest(workspace, spec)) as volume:
        return volume.read(BoundingBox.of_shape(volume.shape))


def test_empiar_11759_comes_out_true(workspace: Workspace, retina: DatasetSpec) -> None:
    outcome = run_chain(workspace, retina)
    assert outcome.changed
    detail = workspace.catalog.dataset("empiar-11759")
    assert detail.record is not None
    fields = detail.record.fields
    assert tuple(fields.core.volume_shape.model_dump().values()) == RETINA
    sizes = fields.core.voxel_size_nm
    assert (sizes.z, sizes.y, sizes.x) == (50.0, pytest.approx(7.998250424861908), sizes.y)
    assert fields.core.data_type == "uint8"
    assert fields.core.modality == "SBF-SEM"
    assert "Danio rerio" in str(fields.sample.organism)
    assert fields.sample.tissue == "retina"
    assert fields.rights.licence == "CC0-1.0"
    rejected = {(c.field, c.rejected.value) for c in detail.conflicts}
    assert {("core.volume_shape.y", 5632), ("core.volume_shape.x", 5628)} <= rejected
    assert detail.summary.status is Status.COMPLETE
    for field in detail.record.values():
        claim = detail.record.kept(field)
        assert claim is not None
        assert claim.evidence.where
        assert claim.evidence.extractor


def test_the_volume_opens_elsewhere_with_the_raw_voxels(workspace: Workspace, retina: DatasetSpec) -> None:
    run_chain(workspace, retina)
    path = volume_of(workspace, retina)
    expected = raw_voxels(workspace, retina)
    np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[:], expected)
    store = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "0")}}).result()
    np.testing.assert_array_equal(store.read().result(), expected)


def test_a_second_run_does_no_work_again(
    workspace: Workspace, retina: DatasetSpec, portal: DemoPortal
) -> None:
    run_chain(workspace, retina)
    root = workspace.store.local_path("volumes")
    before = hashes(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    portal.requests.clear()
    scrape(workspace, retina)
    assert fetch(workspace, retina).already_held
    assert build(workspace, retina).written is None
    assert validate(workspace, retina).passed
    assert not publish(workspace, retina).changed
    assert not [path for path in portal.requests if path.endswith(".dm3")]
    assert hashes(root) == before
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")} == times


def test_the_checks_of_a_published_volume_are_said_to_be_old(
    workspace: Workspace, retina: DatasetSpec
) -> None:
    told = Notes()
    watched = replace(workspace, progress=told, threads=64, memory_budget=280 << 20)
    run_chain(watched, retina)
    assert any("of 64: EM_MEMORY_BUDGET serves no more" in note for note in told.notes)
    assert [note for note in told.notes if "looked at now" in note] == []
    flip_a_chunk_byte(volume_of(workspace, retina))
    told.notes.clear()
    assert validate(watched, retina).passed
    (note,) = told.notes
    published = workspace.catalog.published_version(retina.dataset_id)
    assert published is not None
    day = f"{published.published_at.astimezone(UTC):%Y-%m-%d}"
    assert f"made when it was published (first on {day}); no byte was looked at now" in note
    assert f"`em verify {retina.dataset_id}` looks again" in note


def test_nothing_is_visible_before_publication(workspace: Workspace, retina: DatasetSpec) -> None:
    for step in STEPS[:-1]:
        step(workspace, retina)
        assert workspace.catalog.published() == []
        assert workspace.catalog.published_version(retina.dataset_id) is None
        assert not workspace.store.local_path("volumes").exists()
    publish(workspace, retina)
    assert [summary.dataset_id for summary in workspace.catalog.published()] == ["empiar-11759"]
    pointer = json.loads(workspace.store.read("volumes/empiar-11759/latest.json"))
    assert pointer["version"] == current_build(workspace, retina).version
    assert list(workspace.store.local_path("staging").iterdir()) == []


def flip_a_chunk_byte(volume: Path) -> None:
    shard = volume / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)


def remove_a_shard(volume: Path) -> None:
    (volume / "0" / "c" / "0" / "0" / "0").unlink()


def break_the_metadata(volume: Path) -> None:
    document = json.loads((volume / "zarr.json").read_text())
    document["attributes"]["ome"]["multiscales"][0]["axes"][0]["name"] = "q"
    (volume / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize("damage", [flip_a_chunk_byte, remove_a_shard, break_the_metadata])
def test_a_damaged_volume_is_not_published(
    workspace: Workspace, retina: DatasetSpec, damage: Callable[[Path], None]
) -> None:
    for step in STEPS[:3]:
        step(workspace, retina)
    damage(volume_of(workspace, retina))
    report = validate(workspace, retina)
    assert not report.passed
    assert workspace.catalog.dataset(retina.dataset_id).summary.status is Status.FAILED
    with pytest.raises(NotPublishable, match="did not pass"):
        publish(workspace, retina)
    assert workspace.catalog.published() == []
    assert not workspace.store.local_path("volumes").exists()


def test_sections_that_seem_to_be_lost_are_told_before_and_after(
    workspace: Workspace, tmp_path: Path
) -> None:
    for number in (0, 1, 2, 4):
        plane = np.full((40, 50), number, np.uint8)
        tifffile.imwrite(tmp_path / f"{number:02}.tif", plane, photometric="minisblack")
    spec = spec_for(tmp_path, name="s", voxel_size=PartialVoxelSize(z=50, y=4, x=4))
    assert "1 number is missing in the file names: 3" in outlook(workspace, spec).notes
    for step in STEPS[:3]:
        step(workspace, spec)
    (warning,) = [check for check in validate(workspace, spec).checks if check.name == "coverage"]
    assert not warning.passed
    assert warning.message.startswith("1 number is missing in the file names: 3. Sections may be lost there")


def test_voxels_that_are_not_the_source_s_are_found(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = tmp_path / "stack.tif"
    data = np.random.default_rng(1).integers(0, 255, (4, 64, 64), np.uint8)
    tifffile.imwrite(stack, data, photometric="minisblack")
    spec = spec_for(stack, name="s", voxel_size=PartialVoxelSize(z=1, y=1, x=1))
    source = workspace.source("files")
    with monkeypatch.context() as wrong:
        opened = source.open_volume

        def mirrored(*given: Any) -> ArrayVolume:
            claims = opened(*given).claims
            return ArrayVolume(data[:, ::-1].copy(), voxel_size=(1.0, 1.0, 1.0), claims=claims)

        wrong.setattr(source, "open_volume", mirrored)
        for step in STEPS[:3]:
            step(workspace, spec)
    failed = {check.name for check in validate(workspace, spec).failures}
    assert "faithful" in failed


def test_a_stage_that_was_refused_is_made_anew(workspace: Workspace, retina: DatasetSpec) -> None:
    for step in STEPS[:3]:
        step(workspace, retina)
    flip_a_chunk_byte(volume_of(workspace, retina))
    assert not validate(workspace, retina).passed
    assert run_chain(workspace, retina).changed


def test_a_stage_damaged_after_a_killed_publication_is_validated_again(
    workspace: Workspace, retina: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in STEPS[:4]:
        step(workspace, retina)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "publish_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(workspace, retina)
    flip_a_chunk_byte(volume_of(workspace, retina))
    assert not validate(workspace, retina).passed
    with pytest.raises(NotPublishable):
        publish(workspace, retina)
    assert workspace.catalog.published() == []


def test_a_local_file_changed_in_place_is_not_published_under_its_old_hash(
    workspace: Workspace, tmp_path: Path
) -> None:
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.full((3, 40, 40), 7, np.uint8), photometric="minisblack")
    spec = spec_for(stack, name="s", voxel_size=PartialVoxelSize(z=1, y=1, x=1))
    scrape(workspace, spec)
    fetch(workspace, spec)
    data = bytearray(stack.read_bytes())
    data[-500:] = bytes(500)
    stack.write_bytes(data)
    with pytest.raises(NotFound, match="not all held"):
        build(workspace, spec)


@pytest.mark.parametrize("name", ["record.json", "manifest.json", "ledger.parquet", "preview.png"])
@pytest.mark.parametrize("text", ["", "{", '{"dataset_id": 1}'])
def test_damaged_documents_are_made_again(
    workspace: Workspace, retina: DatasetSpec, name: str, text: str
) -> None:
    for step in STEPS[:3]:
        step(workspace, retina)
    before = hashes(volume_of(workspace, retina))
    place = "raw" if name == "manifest.json" else "staging"
    (kept,) = workspace.store.local_path(f"{place}/empiar-11759").glob(f"*/{name}")
    kept.write_text(text)
    if name == "preview.png":
        kept.unlink()
    assert run_chain(workspace, retina).changed
    assert hashes(volume_of(workspace, retina)) == before


def test_publishing_without_a_report_is_refused(workspace: Workspace, retina: DatasetSpec) -> None:
    for step in STEPS[:3]:
        step(workspace, retina)
    with pytest.raises(NotPublishable, match="not validated"):
        publish(workspace, retina)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_step_out_of_order_says_what_comes_first(
    workspace: Workspace, retina: DatasetSpec, count: int
) -> None:
    with pytest.raises((NotFound, NotPublishable), match=r"Materialize empiar/\w+ first"):
        STEPS[count](workspace, retina)


def test_a_local_volume_without_voxel_size_is_refused_before_it_is_hashed(
    workspace: Workspace, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 20, 20), np.uint8), photometric="minisblack")
    spec = spec_for(tmp_path / "a.tif", name="a")
    scrape(workspace, spec)
    with pytest.raises(InputRefused, match=r"--voxel-size Z,Y,X"):
        fetch(workspace, spec)
    assert not list(workspace.store.local_path("raw/files-a").rglob("manifest.json"))


def test_a_remote_volume_without_voxel_size_is_refused(workspace: Workspace, portal: DemoPortal) -> None:
    held = min(path for path in portal.tree.rglob("*.tif"))
    below = held.relative_to(portal.tree).as_posix()
    spec = spec_for(f"{portal.url}/empiar/world_availability/{below}", name="far")
    scrape(workspace, spec)
    fetch(workspace, spec)
    with pytest.raises(InputRefused, match=r"--voxel-size Z"):
        build(workspace, spec)


def test_a_damaged_volume_is_written_again_once_it_is_deleted(
    workspace: Workspace, retina: DatasetSpec
) -> None:
    run_chain(workspace, retina)
    root = workspace.store.local_path("volumes")
    before = hashes(root)
    shutil.rmtree(volume_of(workspace, retina))
    assert not run_chain(workspace, retina).changed
    assert hashes(root) == before


def test_a_url_is_a_dataset_too(workspace: Workspace, portal: DemoPortal) -> None:
    (held,) = portal.tree.rglob("*.mrc")
    below = held.relative_to(portal.tree).as_posix()
    url = f"{portal.url}/empiar/world_availability/{below}"
    spec = spec_for(url, name="far")
    assert run_chain(workspace, spec).changed
    detail = workspace.catalog.dataset("files-far")
    assert list(detail.summary.voxel_size_nm or ()) == [10, 10, 10]
    assert [file.url for file in detail.raw_files] == [url]
    with pytest.raises(NotFound):
        scrape(workspace, spec_for(f"{url}.not", name="gone"))


def test_a_voxel_size_given_beats_the_file_and_is_shown(workspace: Workspace, tmp_path: Path) -> None:
    data = np.arange(3 * 20 * 20, dtype=np.uint16).reshape(3, 20, 20)
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        imagej=True,
        resolution=(1 / 4, 1 / 4),
        metadata={"unit": "nm", "spacing": 50.0, "axes": "ZYX"},
    )
    spec = spec_for(tmp_path / "a.tif", name="a", voxel_size=PartialVoxelSize(z=45), reason="measured")
    run_chain(workspace, spec)
    record = workspace.catalog.dataset("files-a").record
    assert record is not None
    size = record.fields.core.voxel_size_nm
    assert (size.z, size.y, size.x) == (45, 4, 4)
    (conflict,) = record.conflicts
    assert (conflict.field, conflict.rejected.value) == ("core.voxel_size_nm.z", 50.0)


def test_the_codec_that_suits_the_voxels_makes_no_other_version(
    workspace: Workspace, retina: DatasetSpec
) -> None:
    said = retina.model_copy(update={"codec": "zstd-1"})
    run_chain(workspace, said)
    first = current_build(workspace, said)
    assert first.version == version_of(retina, latest_manifest(workspace, retina))
    assert not run_chain(workspace, retina).changed
    assert not run_chain(workspace, said).changed
    other = retina.model_copy(update={"codec": "none"})
    assert run_chain(workspace, other).changed
    assert current_build(workspace, other).version != first.version
    assert current_build(workspace, said) == first


def test_a_version_under_its_own_name_is_found_whatever_its_codec(
    workspace: Workspace, retina: DatasetSpec
) -> None:
    run_chain(workspace, retina)
    manifest = latest_manifest(workspace, retina)
    said = retina.model_copy(update={"codec": "zstd-1"})
    names = [version_of(spec, manifest) for spec in (retina, said)]
    for path in workspace.store.local_path("volumes/empiar-11759").iterdir():
        path.rename(path.with_name(path.name.replace(*names)))
    assert current_build(workspace, said).version == names[1]
    assert build(workspace, said).written is None


def test_a_damaged_volume_does_not_tell_its_codec(workspace: Workspace, retina: DatasetSpec) -> None:
    run_chain(workspace, retina)
    (volume_of(workspace, retina) / "0" / "zarr.json").write_bytes(b"{")
    said = retina.model_copy(update={"codec": "zstd-1"})
    with pytest.raises(NotFound, match="not built"):
        current_build(workspace, said)


def test_a_bounding_box_becomes_the_volume(workspace: Workspace, retina: DatasetSpec) -> None:
    box = BoundingBox(start=Shape(2, 10, 5), stop=Shape(9, 100, 77))
    spec = retina.model_copy(update={"bounding_box": box})
    run_chain(workspace, spec)
    built, volume = current_build(workspace, spec), volume_of(workspace, spec)
    assert tuple(built.record.fields.core.volume_shape.model_dump().values()) == (7, 90, 72)
    stored = zarr.open_array(volume / "0", mode="r")[:]
    np.testing.assert_array_equal(stored, raw_voxels(workspace, spec)[box.slices])
    group = zarr.open_group(volume, mode="r")
    transforms = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert transforms[1]["translation"] == pytest.approx([2 * 50, 10 * 7.99825, 5 * 7.99825], rel=1e-4)


def test_a_bounding_box_outside_is_refused(workspace: Workspace, retina: DatasetSpec) -> None:
    box = BoundingBox.at((0, 0, 0), (17, 10, 10))
    spec = retina.model_copy(update={"bounding_box": box})
    scrape(workspace, spec)
    fetch(workspace, spec)
    with pytest.raises(InputRefused, match="Give a box inside it"):
        build(workspace, spec)


def test_a_lost_raw_file_is_fetched_again(
    workspace: Workspace, retina: DatasetSpec, portal: DemoPortal
) -> None:
    scrape(workspace, retina)
    manifest = fetch(workspace, retina).manifest
    held = workspace.store.local_path(f"raw/empiar-11759/{manifest.revision}/files")
    (held / manifest.files[3].path).unlink()
    portal.requests.clear()
    again = fetch(workspace, retina)
    assert not again.already_held
    assert again.manifest.digest == manifest.digest
    assert sum(path.endswith("0003.dm3") for path in portal.requests) == 1


def test_an_outage_changes_nothing(workspace: Workspace, retina: DatasetSpec, portal: DemoPortal) -> None:
    run_chain(workspace, retina)
    before = hashes(workspace.store.local_path("volumes"))
    portal.stop()
    with pytest.raises(SourceUnavailable):
        scrape(workspace, retina)
    assert hashes(workspace.store.local_path("volumes")) == before
    assert len(workspace.catalog.published()) == 1


def test_a_changed_local_file_is_a_new_version(workspace: Workspace, tmp_path: Path) -> None:
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.full((3, 20, 20), 7, np.uint8), photometric="minisblack")
    spec = spec_for(stack, name="s", voxel_size=PartialVoxelSize(z=1, y=1, x=1))
    first = run_chain(workspace, spec)
    tifffile.imwrite(stack, np.full((4, 20, 20), 9, np.uint8), photometric="minisblack")
    second = run_chain(workspace, spec)
    assert second.changed
    assert second.previous == first.version
    assert workspace.store.exists(f"volumes/files-s/{first.version}.ome.zarr/zarr.json")


def test_specs_are_found_by_id_and_by_portal_name(workspace: Workspace) -> None:
    assert "empiar-11759" in known_specs(workspace.catalog)
    assert spec_from_id("EMPIAR-10943", workspace.sources) == DatasetSpec(source="empiar", accession="10943")
    assert spec_from_id("nowhere-1", workspace.sources) is None
    assert spec_from_id("stack.tif", workspace.sources) is None
    with pytest.raises(NotFound, match="empiar-11759"):
        find_spec(workspace.catalog, "empiar-11795")
    with pytest.raises(InputRefused):
        spec_from_id("files-x", workspace.sources)


def test_checks_are_the_ones_announced(workspace: Workspace, retina: DatasetSpec) -> None:
    for step in STEPS[:3]:
        step(workspace, retina)
    report = validate(workspace, retina)
    assert tuple(check.name for check in report.checks) == CHECK_NAMES
    assert {check.name for check in report.checks if check.severity == "warning"} == WARNINGS
    assert isinstance(NotPublishable("a", "b"), EmError)
