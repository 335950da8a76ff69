"""One set of partitions per source: its dataset ids."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

import dagster as dg

from em_pipeline.ingest.workspace import open_catalog
from em_pipeline.settings import load_settings
from em_pipeline.sources.curated import curated_specs


def partitions_name(slug: str) -> str:
    """Name of a source's set of partitions in the Dagster instance."""
    return f"{slug}_datasets"


def curated_ids(slug: str) -> frozenset[str]:
    """Ids of the curated datasets of a source."""
    return frozenset(spec.dataset_id for spec in curated_specs() if spec.source == slug)


class DatasetPartitions(dg.DynamicPartitionsDefinition):
    """Dynamic partitions of one source, to which every dataset with a spec belongs.

    The id of one that the instance does not know yet (curated, or registered with another instance) is
    added when it is asked for, so that `dagster asset materialize --partition` works on an instance that
    was never used.
    """

    def has_partition_key(
        self,
        partition_key: str,
        current_time: datetime | None = None,
        dynamic_partitions_store: Any = None,
    ) -> bool:
        """Whether the id is a partition; one with a spec becomes one."""
        if super().has_partition_key(partition_key, current_time, dynamic_partitions_store):
            return True
        with dg.partition_loading_context(current_time, dynamic_partitions_store) as context:
            store = context.dynamic_partitions_store
            if not isinstance(store, dg.DagsterInstance) or not self._has_spec(partition_key):
                return False
            register(store, self._slug, [partition_key])
            return True

    @property
    def _slug(self) -> str:
        return (self.name or "").removesuffix("_datasets")

    def _has_spec(self, dataset_id: str) -> bool:
        if dataset_id in curated_ids(self._slug):
            return True
        with open_catalog(load_settings().settings) as catalog:
            spec = catalog.spec(dataset_id)
        return spec is not None and spec.source == self._slug


def dataset_partitions(slug: str) -> DatasetPartitions:
    """The partitions of a source."""
    return DatasetPartitions(name=partitions_name(slug))


def register(instance: dg.DagsterInstance, slug: str, dataset_ids: Collection[str]) -> list[str]:
    """Make datasets partitions of their source; gives those that were not."""
    known = set(instance.get_dynamic_partitions(partitions_name(slug)))
    new = sorted(set(dataset_ids) - known)
    if new:
        instance.add_dynamic_partitions(partitions_name(slug), new)
    return new


def forget(instance: dg.DagsterInstance, slug: str, dataset_id: str) -> None:
    """Make a dataset no partition of its source any more; its past runs stay in the instance."""
    if dataset_id in instance.get_dynamic_partitions(partitions_name(slug)):
        instance.delete_dynamic_partition(partitions_name(slug), dataset_id)
