"""`em dev`: Dagster's UI and daemon and the sidecar, under one roof until interrupted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from em_pipeline.cli.output import Json, answering, console, print_json
from em_pipeline.domain.errors import ServiceUnavailable
from em_pipeline.settings import load_settings

# Seconds a service may take to end by itself before it is killed.
GRACE_S = 15.0


def dev(
    dagster_port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    api_port: Annotated[int | None, typer.Option(help="Port of the sidecar; default the setting.")] = None,
    as_json: Json = False,
) -> None:
    """Run Dagster's UI and daemon and the sidecar for a person to use, until interrupted."""
    with answering(as_json):
        from em_pipeline.ingest.workspace import open_catalog
        from em_pipeline.resources.instance import open_instance

        settings = load_settings().settings
        # Dagster's processes all start at once, and would trip over each other in a new home.
        with open_instance(settings) as instance:
            environ = {**os.environ, "DAGSTER_HOME": instance.root_directory}
        port = settings.api_port if api_port is None else api_port
        commands = {
            "dagster dev": [
                *(_script("dagster"), "dev", "-m", "em_pipeline.definitions"),
                *("--host", settings.api_host, "--port", str(dagster_port)),
            ],
            "em serve": [_script("em"), "serve", "--port", str(port)],
        }
        # Held so that the embedded server outlives each run that uses it.
        with open_catalog(settings):
            ui, api = (f"http://{settings.api_host}:{number}" for number in (dagster_port, port))
            if as_json:
                print_json({"dagster": ui, "api": api})
            else:
                console.print(f"Dagster UI: {ui}", markup=False)
                console.print(f"Sidecar:    {api}/docs", markup=False)
            _supervise(commands, environ)


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _supervise(commands: Mapping[str, list[str]], environ: Mapping[str, str]) -> None:
    """Run the commands until one ends or we are told to stop, then end all of them, with their children."""
    # A supervisor that is terminated must still end what it started. Set here because a shell starts
    # background commands with SIGINT ignored.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.default_int_handler)
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            running[name] = subprocess.Popen(command, env=dict(environ), start_new_session=True)
        while True:
            for name, process in running.items():
                if process.poll() is not None:
                    raise ServiceUnavailable(
                        f"Run {name}", f"it ended with exit code {process.returncode}", "Its output is above"
                    )
            time.sleep(0.5)
    finally:
        for process in running.values():
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # The whole session: `dagster dev` leaves its children to whoever ends it, and ignores SIGINT.
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            process.poll()
            if not _group_lives(process.pid):
                return
            time.sleep(0.1)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
