"""A source whose volumes are arrays in memory, behind one small file of this machine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord
from em_pipeline_tests.volumes.arrays import ArrayVolume

SLUG = "arrays"


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
