"""What outages are tried on: each source against its replay, with a dataset of few requests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from em_pipeline.demo.portal import ARCHIVE, DemoPortal
from em_pipeline.demo.replay import Replay
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import PortalRecord, Source
from em_pipeline.sources.files import spec_for
from em_pipeline.sources.registry import load_sources
from em_pipeline.storage.download import DownloadPolicy, download
from em_pipeline_tests.contracts import case_epfl, case_flyem, case_idr, case_omezarr, case_openorganelle
from em_pipeline_tests.contracts.case_precomputed import CASE as PRECOMPUTED

# Seconds of silence that are borne: a busy machine is no outage, a stalled connection soon is.
PATIENT_S, HASTY_S = 20.0, 0.3
RETINA = (3, 60, 50)


@dataclass(frozen=True)
class Subject:
    """A replay, the settings that point the spec's source at it, and what is asked of the source."""

    portal: Callable[[Path], Replay]
    options: Callable[[Replay], Mapping[str, str]]
    spec: Callable[[Replay], DatasetSpec]

    def source(self, portal: Replay, *, retries: int = 0, timeout_s: float = PATIENT_S) -> Source:
        """The source; it asks for one thing at a time, so that the n-th request is always the same one."""
        slug = self.spec(portal).source
        patience = {"timeout_s": str(timeout_s), "retries": str(retries), "backoff_s": "0.01"}
        source = load_sources({slug: {**self.options(portal), **patience}})[slug]
        source.max_connections = 1
        return source


@dataclass(frozen=True)
class Held:
    """What a source said of a dataset, and the raw files: SHA-256 by path, and the paths of absent ones.

    `optional` are the paths that the source listed as those of files that may be absent.
    """

    record: PortalRecord
    sha256: Mapping[str, str]
    absent: frozenset[str]
    optional: frozenset[str]

    @property
    def claims(self) -> list[Claim]:
        return list(self.record.claims)


def hold(source: Source, spec: DatasetSpec, folder: Path, limits: DownloadPolicy) -> Held:
    """All that an ingest asks of a portal: record, listing, download. What follows reads held files only."""
    record = source.fetch_record(spec)
    files = source.list_files(spec, record)
    manifest = download(
        files, folder, dataset_id=spec.dataset_id, revision=record.revision, policy=limits, progress=Silent()
    )
    return Held(
        record=record,
        sha256={file.path: file.sha256 for file in manifest.files},
        absent=frozenset(manifest.absent),
        optional=frozenset(file.path for file in files if file.may_be_absent),
    )


def policy(*, retries: int = 0, timeout_s: float = PATIENT_S) -> DownloadPolicy:
    return DownloadPolicy(connections=1, read_timeout_s=timeout_s, retries=retries, backoff_s=0.01)


def _own(portal: Replay) -> Mapping[str, str]:
    return portal.options


def _none(_: Replay) -> Mapping[str, str]:
    return {}


def _mrc(portal: Replay) -> DatasetSpec:
    return spec_for(f"{portal.url}{ARCHIVE}99001/data/cortex_fibsem.mrc", name="mrc")


def _zarr(portal: Replay) -> DatasetSpec:
    made = case_omezarr.CASE.spec(portal)
    return spec_for(str(made.location), name="zarr").model_copy(update={"level": "s5"})


def _dvid(_: Replay) -> DatasetSpec:
    return DatasetSpec(
        source="flyem", accession="hemibrain", dataset_id="flyem-hemibrain-dvid", image_set="dvid",
        bounding_box=BoundingBox.at((12000, 11000, 10000), (70, 60, 80)),
    )  # fmt: skip


SUBJECTS: Mapping[str, Subject] = {
    "empiar": Subject(
        lambda folder: DemoPortal(folder, retina_shape=RETINA),
        _own,
        lambda _: DatasetSpec(source="empiar", accession="11759"),
    ),
    "epfl": Subject(case_epfl.CASE.portal, _own, case_epfl.CASE.spec),
    "idr": Subject(case_idr.CASE.portal, _own, case_idr.CASE.spec),
    "idr-zarr": Subject(
        case_idr.CASE.portal, _own, lambda _: DatasetSpec(source="idr", accession="16000001")
    ),
    "openorganelle": Subject(
        case_openorganelle.CASE.portal,
        _own,
        lambda portal: case_openorganelle.CASE.spec(portal).model_copy(update={"level": "s5"}),
    ),
    "flyem": Subject(case_flyem.CASE.portal, _own, case_flyem.CASE.spec),
    "flyem-dvid": Subject(case_flyem.CASE.portal, _own, _dvid),
    "omezarr": Subject(case_omezarr.CASE.portal, _none, case_omezarr.CASE.spec),
    "precomputed": Subject(PRECOMPUTED.portal, lambda portal: {"gs": portal.url}, PRECOMPUTED.spec),
    "files-mrc": Subject(DemoPortal, _none, _mrc),
    "files-zarr": Subject(case_omezarr.CASE.portal, _none, _zarr),
}
