"""A source whose volumes are arrays in memory, behind one small file of this machine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
from sqlalchemy import Engine

from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.evidence import Claim, Evidence, Origin
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord
from em_pipeline.storage.download import DownloadPolicy
from em_pipeline.storage.store import LocalStore
from em_pipeline_tests.volumes.arrays import ArrayVolume

SLUG = "arrays"
SHAPE = Shape(20, 140, 150)
RNG = np.random.default_rng(3)
RAW = RNG.integers(1, 255, SHAPE, np.uint8)
CELLS = (np.uint64(2**63) + RNG.integers(0, 7, SHAPE, np.uint64)).astype(np.uint64)
MITO = RNG.integers(-1, 4, (10, 70, 60), np.int32)
NAMES = ("cell seg", "mito")
BOX = BoundingBox.at((3, 10, 21), (15, 129, 100))


@dataclass
class ArraysSource:
    """`image` and `labels` as they are asked for."""

    folder: Path
    image: ArrayVolume
    labels: dict[str, ArrayVolume] = field(default_factory=dict)

    slug: str = SLUG
    institution: str = "test"
    licence_policy: str = "none"
    max_connections: int = 1
    requests_per_second: float | None = None

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:
        return ()

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        return PortalRecord(revision="r1", claims=())

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        path = self.folder / "raw.bin"
        path.write_bytes(b"raw")
        return [RemoteFile(url=path.as_uri(), path="raw.bin", size=3)]

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        return self.image

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        return dict(self.labels)


def labelled(folder: Path) -> ArraysSource:
    """An image, a label image on its grid, and a coarser one that ends before the image does."""
    image = ArrayVolume(RAW.copy(), voxel_size=(8, 4, 4), translation_nm=(100, 0, 0), claims=CLAIMS)
    labels = {
        "cell seg": ArrayVolume(CELLS.copy(), voxel_size=(8, 4, 4), translation_nm=(100, 0, 0)),
        "mito": ArrayVolume(MITO, voxel_size=(16, 8, 8), translation_nm=(104, 2, 2)),
    }
    return ArraysSource(folder, image, labels)


def workspace_of(source: ArraysSource, store: Path, engine: Engine) -> Workspace:
    """One that knows this source alone."""
    return Workspace(
        spool=store / "spool",
        store=LocalStore(store),
        catalog=Catalog(engine),
        sources={SLUG: source},
        policy=DownloadPolicy(),
        memory_budget=512 << 20,
        threads=1,
        progress=Silent(),
    )


def _claim(field: str, value: object) -> Claim:
    evidence = Evidence(origin=Origin.FILE, where="raw.bin", field=field, extractor="test", raw=value)
    return Claim(field=field, value=value, evidence=evidence)


CLAIMS = (
    _claim("core.data_type", "uint8"),
    *(_claim(f"core.volume_shape.{axis}", n) for axis, n in zip("zyx", SHAPE, strict=True)),
    *(_claim(f"core.voxel_size_nm.{axis}", n) for axis, n in zip("zyx", (8.0, 4.0, 4.0), strict=True)),
)
