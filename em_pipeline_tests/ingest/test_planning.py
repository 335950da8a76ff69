"""`em plan` of files on this machine, of a spec that asks for a part, and of an address."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from em_pipeline.domain.errors import BudgetSpent, InputRefused, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape
from em_pipeline.ingest import planning
from em_pipeline.ingest.asked import Asked, spec_of
from em_pipeline.ingest.fetch import fetch
from em_pipeline.ingest.planning import Outlook, outlook
from em_pipeline.ingest.scrape import scrape
from em_pipeline.ingest.specs import find_spec
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.files import FilesSource, spec_for
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline.storage.store import open_store
from em_pipeline.volumes.distributed import DaskCluster
from em_pipeline.volumes.memory import PROCESS_BYTES, THREAD_BYTES, Means
from em_pipeline.volumes.plan import RechunkPlan, plan_rechunk
from em_pipeline_tests.buckets import BUCKET
from em_pipeline_tests.formats.test_precomputed import written
from em_pipeline_tests.ingest.test_inspection import DVID
from em_pipeline_tests.portals.folder import Folder
from em_pipeline_tests.portals.gcs import GcsServer

SHAPE = (20, 140, 150)
SIZE = PartialVoxelSize(z=40, y=4, x=4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    path = folder / "scan.tif"
    voxels = np.random.default_rng(0).integers(0, 99, SHAPE, np.uint8)
    tifffile.imwrite(path, voxels, photometric="minisblack")
    return path


def planned(workspace: Workspace, target: str, **said: object) -> Outlook:
    asked = Asked(voxel_size=SIZE, **said)  # type: ignore[arg-type] # fields of Asked
    return outlook(workspace, spec_of(target, asked, {}, workspace.sources))


def test_a_file_here_is_sampled_and_nothing_is_written(workspace: Workspace, file: Path) -> None:
    found = planned(workspace, str(file))
    ((_, image),) = found.images
    assert image.levels[0].shape == SHAPE
    assert [level.halved for level in image.levels] == ["yx", ""]
    assert image.sample is not None
    assert 0 < image.sample.ratio < 1
    assert image.process_bytes <= found.memory_budget == workspace.memory_budget
    assert list(workspace.store.list("")) == []


def test_a_box_is_planned_as_a_box(workspace: Workspace, file: Path) -> None:
    box = BoundingBox(start=Shape(1, 2, 3), stop=Shape(11, 82, 93))
    ((_, image),) = planned(workspace, str(file), box=box).images
    assert image.levels[0].shape == (10, 80, 90)


def told_to_give(refusal: InputRefused) -> int:
    """The memory budget, MiB, that would be enough."""
    (enough,) = re.findall(r"Give (\d+) MiB \(EM_MEMORY_BUDGET=\1MiB\)", refusal.to_do)
    return int(enough)


def test_with_little_memory_fewer_threads_work(workspace: Workspace, tmp_path: Path) -> None:
    """What one thread can do with is enough, however many there could be."""
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, np.zeros((130, 140, 150), np.int16), photometric="minisblack")
    tight = replace(workspace, memory_budget=278 << 20, threads=16)
    ((_, image),) = planned(tight, str(path)).images
    assert image.threads == 1
    assert str(image).endswith("on 1 thread of 16: EM_MEMORY_BUDGET serves no more")
    assert image.process_bytes <= tight.memory_budget
    with pytest.raises(InputRefused, match=r"need \d+ MiB on 1 thread\b") as refused:
        planned(replace(tight, memory_budget=250 << 20), str(path))
    enough = told_to_give(refused.value)
    ((_, image),) = planned(replace(tight, memory_budget=enough << 20), str(path)).images
    assert image.process_bytes <= enough << 20


@pytest.mark.parametrize(
    ("shape", "threads"), [((1, 9000, 9000), 1), ((3, 16000, 16000), 4)], ids=["plan", "decode"]
)
def test_the_memory_that_large_pieces_need_is_named_and_right(
    workspace: Workspace, tmp_path: Path, shape: tuple[int, int, int], threads: int
) -> None:
    path = tmp_path / "strip.tif"
    planes = (np.zeros(shape[1:], np.uint8) for _ in range(shape[0]))
    tifffile.imwrite(
        path, planes, shape=shape, dtype=np.uint8, compression="deflate", rowsperstrip=shape[1],
        photometric="minisblack",
    )  # fmt: skip
    tight = replace(workspace, memory_budget=256 << 20, threads=threads)
    with pytest.raises(InputRefused, match="each decoded whole") as refused:
        planned(tight, str(path))
    enough = told_to_give(refused.value)
    with pytest.raises(InputRefused, match="MiB"):
        planned(replace(tight, memory_budget=(enough - 1) << 20), str(path))
    ((_, image),) = planned(replace(tight, memory_budget=enough << 20), str(path)).images
    assert image.process_bytes <= enough << 20


def test_where_other_machines_write_the_plan_says_so(workspace: Workspace, file: Path) -> None:
    assert planned(workspace, str(file)).notes == ()
    cluster = DaskCluster("tcp://scheduler:8786")
    with Folder(file.parent) as folder:
        for target in (str(file), f"{folder.url}/scan.tif"):
            note = planned(replace(workspace, compute=cluster), target).notes[-1]
            assert "the workers of the Dask scheduler tcp://scheduler:8786" in note
            assert "of this machine's cores alone (docs/costs.md" in note


def test_what_the_store_holds_and_is_asked_for_at_once_counts(
    workspace: Workspace, file: Path, gcs_service: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Means] = []

    def plan(*given: Any, means: Means, **options: Any) -> RechunkPlan:
        seen.append(means)
        return plan_rechunk(*given, means=means, **options)

    monkeypatch.setattr(planning, "plan_rechunk", plan)
    bucket = open_store(f"gs://{BUCKET}/plans", ObjectEndpoints(gs=gcs_service.url))
    for store in (workspace.store, bucket):
        seen.clear()
        planned(replace(workspace, store=store, memory_budget=1 << 30), str(file))
        place = store.blobs("staging")
        assert {(m.sink_bytes, m.requests_at_once) for m in seen} == {
            (place.sink_bytes, place.requests_at_once)
        }
    assert workspace.store.blobs("staging").requests_at_once == 0 < bucket.blobs("staging").requests_at_once


def test_the_rows_of_many_chunks_count_too(workspace: Workspace, tmp_path: Path) -> None:
    """A thin volume takes little memory for voxels, and much for the ledger of its chunks."""
    path = tmp_path / "thin.tif"
    tifffile.memmap(path, shape=(1, 30_000, 30_000), dtype=np.uint8, bigtiff=True).flush()
    tight = replace(workspace, memory_budget=256 << 20, threads=1)
    with pytest.raises(InputRefused, match=r"Ingest 73,\d+ chunks within 256 MiB") as refused:
        planned(tight, str(path))
    enough = told_to_give(refused.value)
    with pytest.raises(InputRefused, match=r"Ingest 73,\d+ chunks"):
        planned(replace(tight, memory_budget=(enough - 1) << 20), str(path))
    ((_, image),) = planned(replace(tight, memory_budget=enough << 20), str(path)).images
    assert 300 << 20 < image.process_bytes <= enough << 20
    # Also where voxels are what there is too little for, and less would be enough for those.
    with pytest.raises(InputRefused, match="voxels in flight") as refused:
        planned(replace(tight, memory_budget=PROCESS_BYTES + THREAD_BYTES + (1 << 20)), str(path))
    assert told_to_give(refused.value) == enough


@pytest.mark.parametrize("big", ["first page", "every page"])
def test_an_address_of_plain_rows_is_planned_like_the_file(
    workspace: Workspace, file: Path, big: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if big == "first page":
        monkeypatch.setattr("em_pipeline.formats.tiff_headers.tiff_volume", _spent)
    tight = replace(workspace, memory_budget=256 << 20, threads=1)
    tifffile.memmap(file, shape=(130, 3000, 9000), dtype=np.uint8, bigtiff=True).flush()
    with Folder(file.parent) as folder:
        plans = [planned(tight, target).images[0][1] for target in (f"{folder.url}/scan.tif", str(file))]
    there, here = plans
    assert (there.levels, there.amplification) == (here.levels, here.amplification)
    assert there.process_bytes == pytest.approx(here.process_bytes, abs=2 << 20)


def _spent(*_: object) -> None:
    raise BudgetSpent("Read", "more than is allowed")


def test_of_an_address_only_headers_are_read(workspace: Workspace, file: Path) -> None:
    with Folder(file.parent) as folder:
        url = folder.url
        ((_, image),) = (found := planned(workspace, f"{url}/scan.tif")).images
        assert image.levels[0].shape == SHAPE
        assert (image.sample, image.write_bytes, image.seconds) == (None, None, None)
        assert any(note.startswith("planned from headers") for note in found.notes)
        box = BoundingBox(start=Shape(0, 0, 0), stop=Shape(21, 1, 1))
        with pytest.raises(InputRefused, match="the volume is \\(20, 140, 150\\)"):
            planned(workspace, f"{url}/scan.tif", box=box)
        with pytest.raises(InputRefused, match="level 3"):
            planned(workspace, f"{url}/scan.tif", level=3)


def test_a_portal_s_dataset_is_looked_at_before_it_is_downloaded_and_sampled_after(
    workspace: Workspace,
) -> None:
    spec = find_spec(workspace.catalog, "empiar-11759")
    before = outlook(workspace, spec)
    assert before.images[0][1].sample is None
    assert list(workspace.store.list("")) == []
    scrape(workspace, spec)
    fetch(workspace, spec)
    after = outlook(workspace, spec)
    assert after.notes == ()
    assert after.images[0][1].sample is not None


def test_more_than_an_ingest_would_take_is_not_planned(workspace: Workspace, tmp_path: Path) -> None:
    written(tmp_path / "em", np.ones((21, 37, 50), np.uint8))
    files = FilesSource(largest_gb="0.00003", retries=0)
    small = replace(workspace, sources={**workspace.sources, "files": files})
    with Folder(tmp_path) as folder:
        for step in (outlook, scrape):
            with pytest.raises(InputRefused, match="EM_SOURCES__FILES__LARGEST_GB"):
                step(small, spec_for(f"{folder.url}/em"))
        box = BoundingBox.at((0, 0, 0), (8, 8, 8))
        assert planned(small, f"{folder.url}/em", box=box).images
    assert planned(small, str(tmp_path / "em")).images


def test_a_dvid_address_is_refused_as_what_it_is(workspace: Workspace, tmp_path: Path) -> None:
    instance = tmp_path / "api" / "node" / "abc" / "grayscale"
    instance.mkdir(parents=True)
    (instance / "info").write_text(json.dumps(DVID))
    with Folder(tmp_path) as folder:
        for step in (outlook, scrape):
            with pytest.raises(UnsupportedFormat, match=r"DVID instance of uint8blk.*--image-set dvid"):
                step(workspace, spec_for(f"{folder.url}/api/node/abc/grayscale"))
