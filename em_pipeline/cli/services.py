"""`em serve`, `em config`, `em db …`: the services and their settings."""

from typing import Annotated

import typer

from em_pipeline.cli.output import Json, answering, console, print_json, table
from em_pipeline.settings import load_settings

db = typer.Typer(help="The catalogue's database.", no_args_is_help=True)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; default the setting api_host.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to bind, 0 picks one; default the setting api_port.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve published volumes over HTTP (read-only) until interrupted."""
    with answering(as_json):
        from em_pipeline.api.server import serve as serve_api
        from em_pipeline.ingest.workspace import open_catalog, store_of

        settings = load_settings().settings
        store = store_of(settings)

        def say(url: str) -> None:
            if as_json:
                print_json({"url": url})
            else:
                console.print(f"Serving on {url} (documentation at {url}/docs)", markup=False)

        with open_catalog(settings) as catalog:
            serve_api(
                host=host or settings.api_host,
                port=settings.api_port if port is None else port,
                catalog=catalog,
                store=store,
                announce=say,
            )


def config(as_json: Json = False) -> None:
    """Show every setting, its value and where that came from."""
    with answering(as_json):
        from em_pipeline.sources.registry import load_sources
        from em_pipeline.storage.object_urls import endpoints_of

        loaded = load_settings()
        load_sources(loaded.settings.sources, endpoints=endpoints_of(loaded.settings))
        rows = loaded.shown()
        if as_json:
            print_json({key: {"value": value, "from": where} for key, value, where in rows})
        else:
            table("Settings", ["key", "value", "from"], rows)


@db.command("upgrade")
def upgrade_command(as_json: Json = False) -> None:
    """Bring the catalogue's tables to the revision of this code."""
    with answering(as_json):
        from em_pipeline.catalog.engine import current_revision, upgrade
        from em_pipeline.ingest.workspace import open_engine

        with open_engine(load_settings().settings) as engine:
            before = current_revision(engine)
            upgrade(engine)
            after = current_revision(engine)
        if as_json:
            print_json({"before": before, "after": after})
        else:
            console.print(
                f"The catalogue was at revision {before or 'none'} and is at {after}.", markup=False
            )


@db.command("status")
def status_command(as_json: Json = False) -> None:
    """Show the catalogue's server and the revision of its tables."""
    with answering(as_json):
        from em_pipeline.catalog.engine import current_revision, head_revision
        from em_pipeline.ingest.workspace import open_engine

        with open_engine(load_settings().settings) as engine:
            document = {
                "url": engine.url.render_as_string(hide_password=True),
                "revision": current_revision(engine),
                "needed": head_revision(),
            }
        if as_json:
            print_json(document)
        else:
            for key, value in document.items():
                console.print(f"{key:>9}  {value}", markup=False)
