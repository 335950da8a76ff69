"""Whatever befalls an ingest, nothing is published by halves, and the next one finishes it.

Outages at every moment are tried in `test_outages`, on what is downloaded; here on what is published.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from em_pipeline.catalog.engine import create_engine_for, upgrade
from em_pipeline.catalog.repository import Catalog
from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.build import build
from em_pipeline.ingest.fetch import fetch
from em_pipeline.ingest.publish import publish
from em_pipeline.ingest.scrape import scrape
from em_pipeline.ingest.validate import validate
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.base import Source
from em_pipeline.storage.store import LocalStore
from em_pipeline_tests.faults.subjects import SUBJECTS, policy
from em_pipeline_tests.ingest.chain import hashes, run_chain, volume_of

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@contextmanager
def workspace_in(folder: Path, database_url: str, source: Source) -> Iterator[Workspace]:
    engine = create_engine_for(database_url)
    upgrade(engine)
    try:
        yield Workspace(
            spool=folder / "spool",
            store=LocalStore(folder),
            catalog=Catalog(engine),
            sources={source.slug: source},
            policy=policy(),
            memory_budget=512 << 20,
            threads=2,
            progress=Silent(),
        )
    finally:
        engine.dispose()


def published(workspace: Workspace, spec: DatasetSpec) -> dict[str, str]:
    return hashes(volume_of(workspace, spec))


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_failed_ingest_publishes_nothing_and_the_next_finishes(
    name: str,
    database_url: str,
    empty_database_url: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    subject = SUBJECTS[name]
    with subject.portal(tmp_path_factory.getbasetemp() / f"outages-{name}") as portal:
        spec, source = subject.spec(portal), subject.source(portal)
        with workspace_in(tmp_path / "clean", database_url, source) as workspace:
            scrape(workspace, spec)
            fetch(workspace, spec)
            requests = portal.requests.total()
            with portal.refusing():  # what is downloaded is enough
                build(workspace, spec)
                validate(workspace, spec)
                assert publish(workspace, spec).changed
            clean = published(workspace, spec)
        with workspace_in(tmp_path / "troubled", empty_database_url, source) as workspace:
            # The first request is the record's; what fails last has most of the files already.
            for trouble, moment in ((Trouble.HTML, 0), (Trouble.CUT, requests - 1)):
                portal.heal()
                portal.trouble(trouble, after=moment)
                with pytest.raises(SourceUnavailable):
                    run_chain(workspace, spec)
                assert workspace.catalog.published() == []
                assert not workspace.store.local_path("volumes").exists()
            portal.heal()
            assert run_chain(workspace, spec).changed
            assert published(workspace, spec) == clean
