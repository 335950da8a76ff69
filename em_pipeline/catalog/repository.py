"""The catalogue: what was asked for, what is under way, what is published."""

from sqlalchemy import Engine

from em_pipeline.catalog.entries import (
    BlockPage,
    DatasetDetail,
    DatasetSummary,
    LevelRow,
    PublishedVersion,
    PublishOutcome,
    SpecOrigin,
    VersionToPublish,
)
from em_pipeline.domain.record import Status
from em_pipeline.domain.spec import DatasetSpec

__all__ = ["Catalog", "LevelRow", "PublishOutcome", "VersionToPublish"]


class Catalog:
    """The catalogue in the database behind `engine`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def save_spec(self, spec: DatasetSpec, origin: SpecOrigin = "run-time") -> None: ...
    def spec(self, dataset_id: str) -> DatasetSpec | None: ...
    def specs(self, source: str | None = None) -> list[DatasetSpec]: ...
    def begin(self, dataset_id: str, source: str, message: str = "") -> None: ...
    def set_status(
        self,
        dataset_id: str,
        status: Status,
        *,
        progress: float | None = None,
        message: str = "",
        revision: str | None = None,
    ) -> None: ...
    def publish(self, version: VersionToPublish) -> PublishOutcome: ...
    def published(self) -> list[DatasetSummary]: ...
    def all_datasets(self) -> list[DatasetSummary]: ...
    def dataset(self, dataset_id: str) -> DatasetDetail: ...
    def published_version(self, dataset_id: str) -> PublishedVersion | None: ...
    def blocks(
        self,
        dataset_id: str,
        *,
        state: str | None = None,
        after: tuple[int, int, int] | None = None,
        limit: int = 1000,
    ) -> BlockPage: ...
