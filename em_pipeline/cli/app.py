"""The commands of `em`."""

import typer

from em_pipeline.cli import catalogue, dev, ingest, services, volume
from em_pipeline.cli.output import EXIT_CODES

app = typer.Typer(
    name="em",
    help="Public electron-microscopy volumes as verified OME-Zarr in 128³ chunks.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("ingest")(ingest.ingest)
app.command("register")(ingest.register)
app.command("ls")(catalogue.ls)
app.command("show")(catalogue.show)
app.command("verify")(volume.verify)
app.command("block")(volume.block)
app.command("serve")(services.serve)
app.command("dev")(dev.dev)
app.command("config")(services.config)
app.add_typer(services.db, name="db")


def main() -> None:
    """Entry point of the `em` command."""
    app()
