"""What the steps of an ingest work with, opened from settings and closed again."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Engine

from em_pipeline.catalog.embedded import EmbeddedPostgres
from em_pipeline.catalog.engine import check_schema, create_engine_for, current_revision, upgrade
from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.errors import NotFound
from em_pipeline.domain.progress import Progress
from em_pipeline.settings import ComputeBackend, Settings
from em_pipeline.sources.base import Source
from em_pipeline.sources.registry import load_sources
from em_pipeline.storage.direct_io import AppendedFile, DirectFile
from em_pipeline.storage.download import DownloadPolicy
from em_pipeline.storage.object_urls import endpoints_of
from em_pipeline.storage.store import Store, open_store
from em_pipeline.volumes.allocator import share_freed_memory
from em_pipeline.volumes.compute import Compute, ThisProcess


@dataclass(frozen=True)
class Workspace:
    """Store, catalogue and sources, with the limits to keep. `memory_budget` is in bytes.

    `spool` is the folder of this machine for raw files on their way into an object store and back.
    """

    store: Store
    spool: Path
    catalog: Catalog
    sources: Mapping[str, Source]
    policy: DownloadPolicy
    memory_budget: int
    threads: int
    progress: Progress
    compute: Compute = field(default_factory=ThisProcess)

    def source(self, slug: str) -> Source:
        """The source of that slug, or `NotFound` naming those there are."""
        try:
            return self.sources[slug]
        except KeyError:
            known = ", ".join(sorted(self.sources))
            raise NotFound(
                f"Find the source {slug!r}", f"the sources are {known}", "Install the package that brings it"
            ) from None

    def policy_for(self, source: Source) -> DownloadPolicy:
        """The download policy, held to the source's own limits."""
        return replace(
            self.policy,
            connections=min(self.policy.connections, source.max_connections),
            requests_per_second=source.requests_per_second,
        )


@contextmanager
def open_engine(settings: Settings) -> Iterator[Engine]:
    """The catalogue's database, whatever its schema; the embedded server runs for as long as needed.

    Raises `ServiceUnavailable` where no server answers or the embedded one does not start.
    """
    with ExitStack() as stack:
        url = settings.database_url
        if not url:
            url = stack.enter_context(EmbeddedPostgres(settings.postgres_folder))
        engine = create_engine_for(url)
        stack.callback(engine.dispose)
        yield engine


@contextmanager
def open_catalog(settings: Settings) -> Iterator[Catalog]:
    """The catalogue of these settings. An embedded database that has no tables yet is given them.

    Raises `SchemaMismatch` where the tables are of another revision, and like `open_engine`.
    """
    with open_engine(settings) as engine:
        if not settings.database_url and current_revision(engine) is None:
            upgrade(engine)
        check_schema(engine)
        yield Catalog(engine)


def store_of(settings: Settings) -> Store:
    """The store of these settings. Raises `InputRefused` like `open_store`."""
    endpoints = endpoints_of(settings)
    if settings.store_endpoint:
        base = settings.store_endpoint
        endpoints = replace(endpoints, s3=base, gs=base, setting="EM_STORE_ENDPOINT")
    return open_store(settings.store, endpoints, DirectFile if settings.direct_io else AppendedFile)


@contextmanager
def open_compute(settings: Settings) -> Iterator[Compute]:
    """What writes units by these settings. A Dask scheduler is connected to when there are units to write."""
    if settings.compute is not ComputeBackend.DASK:
        yield ThisProcess()
        return
    from em_pipeline.volumes.distributed import DaskCluster  # most processes never need to import Dask

    with DaskCluster(settings.dask_scheduler) as cluster:
        yield cluster


@contextmanager
def open_workspace(settings: Settings, progress: Progress) -> Iterator[Workspace]:
    """Everything an ingest needs, as the settings say. Raises like `open_catalog` and `open_store`."""
    share_freed_memory()
    endpoints = endpoints_of(settings)
    sources = load_sources(settings.sources, endpoints=endpoints)
    store = store_of(settings)
    with open_catalog(settings) as catalog, open_compute(settings) as compute:
        yield Workspace(
            store=store,
            spool=settings.spool_folder,
            catalog=catalog,
            sources=sources,
            policy=DownloadPolicy(
                connections=settings.download_connections,
                read_timeout_s=settings.download_timeout_s,
                retries=settings.download_retries,
                endpoints=endpoints,
            ),
            memory_budget=int(settings.memory_budget),
            threads=settings.threads,
            progress=progress,
            compute=compute,
        )
