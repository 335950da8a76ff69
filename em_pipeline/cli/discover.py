"""`em discover`: what a source's sensor would take, and why not the rest."""

from typing import Annotated

import typer

from em_pipeline.cli.output import Json, answering, console, print_json, table
from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.wording import counted
from em_pipeline.settings import load_settings


def discover(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A source whose portal lists its datasets.")
    ],
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Only entries released on that day or later; those whose portal does not say "
            "when are skipped. Without: the setting.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which entries of a portal its sensor would ingest at its first look, and why not the others.

    Nothing is registered or ingested. The rules are the settings `discovery.<source>`. Sizes are those that
    the portal states of whole entries, not of what is taken of them. An entry whose portal does not state its
    size is skipped unless max_size is none.
    """
    with answering(as_json):
        from em_pipeline.domain.progress import Silent
        from em_pipeline.ingest.discovery import Cursor
        from em_pipeline.ingest.discovery_policy import DiscoveryPolicy
        from em_pipeline.ingest.specs import known_specs
        from em_pipeline.ingest.watch import look
        from em_pipeline.ingest.workspace import open_workspace
        from em_pipeline.sources.base import WatchedSource

        settings = load_settings().settings
        with open_workspace(settings, Silent()) as workspace:
            watched = workspace.source(source.lower())
            if not isinstance(watched, WatchedSource):
                raise InputRefused(
                    f"Discover datasets of {watched.slug}",
                    "it has no portal that lists them",
                    "`em ingest` takes a path or URL",
                )
            options = settings.discovery.get(watched.slug, {}) | ({"since": since} if since else {})
            policy = DiscoveryPolicy.of_source(watched, options)
            registered = known_specs(workspace.catalog)
            found = look(workspace, watched, Cursor(), policy, registered=registered)
        if as_json:
            print_json(
                {
                    "take": [request.dataset_id for request in found.run_requests],
                    "skipped": dict(found.skipped),
                    "waiting": found.waiting,
                }
            )
            return
        new = {spec.dataset_id for spec in found.register}
        rows = [(one.dataset_id, one.revision, one.dataset_id in new) for one in found.run_requests]
        table(f"Would be ingested ({len(rows)})", ["dataset", "revision", "new"], rows)
        console.print()
        table(f"Skipped ({len(found.skipped)})", ["accession", "why"], list(found.skipped.items()))
        if found.waiting:
            console.print(
                f"{counted(found.waiting, 'more entry waits', 'more entries wait')} for the next looks."
            )
