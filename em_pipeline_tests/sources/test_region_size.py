"""One option, in the same words for every source: how much of a remote array is taken."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_pipeline.demo.idr_portal import IdrPortal
from em_pipeline.demo.openorganelle_portal import BUCKET, OpenOrganellePortal
from em_pipeline.demo.replay import Replay
from em_pipeline.demo.s3_bucket import Bucket
from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import Source
from em_pipeline.sources.files import FilesSource, spec_for
from em_pipeline.sources.idr import IdrSource
from em_pipeline.sources.openorganelle import OpenOrganelleSource
from em_pipeline.sources.precomputed import PrecomputedSource
from em_pipeline.sources.region_size import LARGEST_GB
from em_pipeline.sources.registry import load_sources
from em_pipeline_tests.formats.test_precomputed import written
from em_pipeline_tests.sources.arrays import Served

# Their datasets are files, each taken whole where the disk has room.
OF_FILES = {"empiar", "epfl"}
QUICK = {"timeout_s": 5, "retries": 0, "backoff_s": 0}
Case = tuple[Callable[..., Source], DatasetSpec]


def test_every_source_of_arrays_has_it() -> None:
    sources = {slug: source for slug, source in load_sources().items() if slug not in OF_FILES}
    for source in sources.values():
        option = inspect.signature(type(source)).parameters["largest_gb"]
        assert option.default == LARGEST_GB
        told = " ".join((inspect.getdoc(type(source)) or "").split())
        assert "At most `largest_gb` of a remote array, once decoded, are taken." in told


def served(kind: str, folder: Path) -> Replay:
    if kind == "idr":
        return IdrPortal(folder / "idr")
    if kind in ("openorganelle", "files zarr"):
        return OpenOrganellePortal(folder / "portal-OpenOrganellePortal")
    written(folder / "region-size" / "em", np.ones((21, 37, 50), np.uint8))
    return Served(Bucket("volumes", folder / "region-size"))


def case(kind: str, portal: Any) -> Case:
    if kind == "idr":
        spec = DatasetSpec(source="idr", accession="16000001")
        return lambda **more: IdrSource(**portal.options, **QUICK, **more), spec
    if kind == "openorganelle":
        spec = DatasetSpec(source="openorganelle", accession="jrc_mus-nacc-2", level="s4")
        return lambda **more: OpenOrganelleSource(**portal.options, **QUICK, **more), spec
    if kind == "files zarr":
        spec = spec_for(f"s3://{BUCKET}/jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2/em/fibsem-int16/s4")
        return lambda **more: FilesSource(s3=portal.url, **QUICK, **more), spec
    spec = spec_for(f"{portal.url}/volumes/em")
    return lambda **more: FilesSource(**QUICK, **more), spec


@pytest.fixture(params=["idr", "openorganelle", "files zarr", "files precomputed"])
def of_arrays(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with served(request.param, tmp_path_factory.getbasetemp()) as portal:
        yield case(request.param, portal)


def test_more_is_refused_and_the_option_raises_it(of_arrays: Case) -> None:
    make, spec = of_arrays
    with pytest.raises(
        InputRefused, match=rf"--roi.*--level.*largest_gb \(EM_SOURCES__{spec.source.upper()}__LARGEST_GB\)"
    ):
        make(largest_gb="0.00000001").fetch_record(spec)
    source = make(largest_gb="51")
    assert source.list_files(spec, source.fetch_record(spec))


def test_what_lies_on_this_machine_is_not_bounded_by_it(tmp_path: Path) -> None:
    folder = written(tmp_path / "em", np.ones((21, 37, 50), np.uint8))
    for source, spec in (
        (FilesSource(largest_gb="0.00000001"), spec_for(folder)),
        (
            PrecomputedSource(largest_gb="0.00000001"),
            DatasetSpec(source="precomputed", accession="a", location=str(folder)),
        ),
    ):
        assert source.list_files(spec, source.fetch_record(spec))
