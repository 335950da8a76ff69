"""The one assembly point: every source's graph, and the resource they share."""

import gc
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from em_pipeline.assets.collection import build_collection_definitions
from em_pipeline.assets.partitions import curated_ids, dataset_partitions, register
from em_pipeline.assets.source_graph import (
    RECHUNK_POOL,
    build_source_definitions,
    host_pool,
    ingest_job_name,
)
from em_pipeline.domain.identity import short_hash
from em_pipeline.ingest.discovery_policy import DiscoveryPolicy
from em_pipeline.resources.workspace import workspace_resource
from em_pipeline.sensors.discovery import build_discovery_sensor
from em_pipeline.settings import Executor, Settings, load_settings
from em_pipeline.sources.base import Source, WatchedSource
from em_pipeline.sources.registry import load_sources
from em_pipeline.storage.object_urls import endpoints_of

EXECUTORS = {
    Executor.IN_PROCESS: dg.in_process_executor,
    Executor.MULTIPROCESS: dg.multiprocess_executor.configured({"max_concurrent": 2}),
}


def build_definitions(
    sources: Iterable[Source],
    settings: Settings,
    resource_overrides: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """Definitions of these sources; `resource_overrides` replaces resources by name."""
    sources = list(sources)
    return dg.Definitions.merge(
        *(build_source_definitions(source) for source in sources),
        build_collection_definitions(source.slug for source in sources),
        dg.Definitions(
            sensors=[_sensor(source, settings) for source in sources if isinstance(source, WatchedSource)],
            resources={"workspace": workspace_resource, **(resource_overrides or {})},
            executor=EXECUTORS[settings.executor],
        ),
    )


def _sensor(source: WatchedSource, settings: Settings) -> dg.SensorDefinition:
    return build_discovery_sensor(
        source,
        DiscoveryPolicy.of_source(source, settings.discovery.get(source.slug, {})),
        job_name=ingest_job_name(source.slug),
        partitions=dataset_partitions(source.slug),
    )


def prepare_instance(sources: Mapping[str, Source]) -> None:
    """Make the instance that `DAGSTER_HOME` names, if it names one, ready for runs of these sources.

    The curated datasets become partitions, and each pool gets its limit: Dagster itself sets it only once the
    first runs of a pool are under way, however many. A file there remembers what was done, because opening
    an instance takes longer than all else here.
    """
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        return
    ids = {slug: sorted(curated_ids(slug)) for slug in sorted(sources)}
    pools = sorted({RECHUNK_POOL, *(host_pool(source) for source in sources.values())})
    done = Path(home) / f".em-prepared-{short_hash(*(i for slug in ids for i in ids[slug]), '', *pools)}"
    if done.exists():
        return
    with dg.DagsterInstance.get() as instance:
        for slug in ids:
            register(instance, slug, ids[slug])
        for pool in pools:
            instance.event_log_storage.initialize_concurrency_limit_to_default(pool)
    done.touch()


@cache
def _from_environment() -> dg.Definitions:
    """Dagster asks for the definitions once per step; this process's settings do not change meanwhile."""
    settings = load_settings().settings
    sources = load_sources(settings.sources, endpoints=endpoints_of(settings))
    prepare_instance(sources)
    # What was imported so far lives as long as the process: the collector need not visit it at every pass.
    gc.freeze()
    return build_definitions(sources.values(), settings)


@dg.definitions
def defs() -> dg.Definitions:
    """What `dagster` and `dg` load."""
    return _from_environment()
