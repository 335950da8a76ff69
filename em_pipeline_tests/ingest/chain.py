"""The five steps in a row, and what a store looks like afterwards."""

import hashlib
from pathlib import Path

from em_pipeline.catalog.entries import PublishOutcome
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.build import build, current_build
from em_pipeline.ingest.fetch import fetch
from em_pipeline.ingest.publish import publish
from em_pipeline.ingest.scrape import scrape
from em_pipeline.ingest.validate import validate
from em_pipeline.ingest.workspace import Workspace

STEPS = (scrape, fetch, build, validate, publish)


def run_chain(workspace: Workspace, spec: DatasetSpec) -> PublishOutcome:
    scrape(workspace, spec)
    fetch(workspace, spec)
    build(workspace, spec)
    validate(workspace, spec)
    return publish(workspace, spec)


def volume_of(workspace: Workspace, spec: DatasetSpec) -> Path:
    """Folder of the current volume, staged or published, in a store on a disk."""
    return workspace.store.local_path(current_build(workspace, spec).files.volume)


def hashes(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
