"""The commands of `em`."""

import sys
from contextlib import suppress
from typing import cast

import typer

from em_pipeline.cli import catalogue, dev, discover, forget, ingest, inspect, plan, services, table, volume
from em_pipeline.cli.output import EXIT_CODES, fail
from em_pipeline.domain.errors import InputRefused

# Typer's own class, whichever click it carries.
UsageError = cast(type[Exception], typer.BadParameter.__bases__[0])

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
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("rm")(forget.rm)
app.command("discover")(discover.discover)
app.command("ls")(catalogue.ls)
app.command("show")(catalogue.show)
app.command("table")(table.compare)
app.command("verify")(volume.verify)
app.command("block")(volume.block)
app.command("serve")(services.serve)
app.command("dev")(dev.dev)
app.command("config")(services.config)
app.add_typer(services.db, name="db")


def main() -> None:
    """Entry point of the `em` command; with `--json` a wrong use is answered as JSON too."""
    if "--json" not in sys.argv:
        app()
        return
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        found = str(getattr(error, "message", error))
        with suppress(typer.Exit):
            fail(InputRefused("Read the command", found, "See `em COMMAND --help`"), as_json=True)
        sys.exit(InputRefused.exit_code)
