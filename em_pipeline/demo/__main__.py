"""`make demo`: replays of five portals, every step of a dataset of each, and a block read back.

Everything lies below the setting `home`; a second run finds the datasets published and does no work
again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from em_client import EMClient
from em_pipeline.demo.portals import DATASETS, replays, source_settings
from em_pipeline.ingest.workspace import open_catalog, store_of
from em_pipeline.resources.instance import prepare_dagster_home
from em_pipeline.settings import Settings, load_settings

console = Console(highlight=False)
# Without them a store in a bucket is looked for elsewhere.
ENDPOINTS = ("EM_STORE_ENDPOINT", "EM_S3_ENDPOINT", "EM_GS_ENDPOINT")


def main() -> None:
    """Run the demo; exits with the code of the first command that fails."""
    settings = load_settings().settings
    settings.home.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with replays(settings.home / "portals") as portals:
        console.rule("Five portals on this machine, each with its own layout and quirks")
        for slug, portal in portals.items():
            console.print(f"{slug:>14}  {portal.url}", markup=False)
        environ = {**os.environ, **source_settings(portals)}
        os.environ.update(environ)
        environ["DAGSTER_HOME"] = str(prepare_dagster_home(settings))
        # Held open so that the commands below share one embedded server instead of starting their own.
        with open_catalog(settings):
            for dataset in DATASETS:
                _em(environ, "register", *dataset.asked)
            for dataset in DATASETS:
                _materialize(environ, dataset.slug, dataset.dataset_id)
            sent = sum(portal.bytes_served for portal in portals.values())
            console.print(f"The portals sent {sent} bytes.")
            console.rule("The catalogue: em ls")
            _em(environ, "ls")
            console.rule("What they are and how they were acquired: em table")
            _em(environ, "table")
            console.rule("A block through the sidecar with the SDK")
            _read_a_block(environ, DATASETS[0].dataset_id)
            _next_steps(settings, DATASETS[0].dataset_id)
    console.print(f"Done in {time.monotonic() - began:.0f} s.")


def _materialize(environ: Mapping[str, str], slug: str, dataset_id: str) -> None:
    console.rule(f"dagster asset materialize --select group:{slug} --partition {dataset_id}")
    began = time.monotonic()
    command = [_script("dagster"), "asset", "materialize", "-m", "em_pipeline.definitions"]
    command += ["--select", f"group:{slug}", "--partition", dataset_id]
    # Dagster warns that this command has a successor and that options of its own are in beta.
    _run(command, {**environ, "PYTHONWARNINGS": "ignore"})
    console.print(f"{dataset_id}: {time.monotonic() - began:.1f} s")


def _em(environ: Mapping[str, str], *arguments: str) -> None:
    _run([_script("em"), *arguments], environ)


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _run(command: list[str], environ: Mapping[str, str]) -> None:
    console.file.flush()
    code = subprocess.run(command, env=dict(environ), check=False).returncode
    if code:
        console.print(f"{' '.join(command)} ended with exit code {code}", markup=False)
        raise SystemExit(code)


def _read_a_block(environ: Mapping[str, str], dataset_id: str) -> None:
    with _sidecar(environ) as url, EMClient(url) as client:
        datasets = client.list_datasets()
        console.print(f"{url}/api/v1/datasets lists {len(datasets)} datasets", markup=False)
        block = client.get_block(dataset_id, 0, 0, 0)
        data = block.data
        console.print(
            f"get_block({dataset_id!r}, 0, 0, 0): {data.shape} {data.dtype}, "
            f"values {data.min()}–{data.max()}, {block.valid_fraction:.0%} valid",
            markup=False,
            soft_wrap=True,
        )


@contextmanager
def _sidecar(environ: Mapping[str, str]) -> Iterator[str]:
    """A sidecar of its own process on a free port, for as long as the block lasts."""
    command = [_script("em"), "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, env=dict(environ), stdout=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            assert server.stdout is not None  # noqa: S101  # PIPE was asked for
            for line in server.stdout:
                lines.append(line)
                if line.startswith("}"):
                    break
            yield str(json.loads("".join(lines))["url"])
        finally:
            server.terminate()
            server.wait(timeout=15)


def _next_steps(settings: Settings, dataset_id: str) -> None:
    store = store_of(settings)
    with open_catalog(settings) as catalog:
        published = catalog.published_version(dataset_id)
    if published is None:
        raise SystemExit(f"{dataset_id} is not published")
    volume = store.blobs(published.volume_key).url
    shown = {"EM_HOME": str(settings.home), "EM_STORE_URL": settings.store_url}
    shown |= {name: os.environ.get(name, "") for name in ENDPOINTS}
    em = " ".join([*(f"{name}={value}" for name, value in shown.items() if value), _script("em")])
    console.rule("Where to look next")
    for what, where in (
        ("preview", volume.replace(".ome.zarr", ".preview.png")),
        ("volume", volume),
        ("record", f"{em} show {dataset_id}"),
        ("check", f"{em} verify {dataset_id}"),
        ("Dagster UI", f"{em} dev"),
    ):
        console.print(f"{what:>10}  {where}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
