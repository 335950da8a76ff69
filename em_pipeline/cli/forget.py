"""`em rm`: forget a dataset."""

from typing import Annotated

import typer

from em_pipeline.cli.bars import Bars
from em_pipeline.cli.output import DatasetId, Json, answering, console, errors, print_json
from em_pipeline.domain.errors import InputRefused
from em_pipeline.settings import load_settings


def rm(
    dataset_id: DatasetId,
    volume: Annotated[bool, typer.Option("--volume", help="Also delete its published versions.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Also delete its downloaded files.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Forget a dataset: its place in the catalogue, its partition, what was staged."""
    with answering(as_json):
        if not yes and as_json:
            raise InputRefused(f"Forget {dataset_id}", "nobody can be asked with --json", "Add --yes")
        from em_pipeline.assets.partitions import forget as forget_partition
        from em_pipeline.ingest.forget import Kept, forget
        from em_pipeline.ingest.workspace import open_workspace
        from em_pipeline.resources.instance import open_instance

        also = {part for part, said in ((Kept.VOLUMES, volume), (Kept.RAW, raw)) if said}
        if not yes:
            with_these = f" with its {' and '.join(sorted(also))}" if also else ""
            typer.confirm(f"Forget {dataset_id}{with_these}?", abort=True, err=True)
        settings = load_settings().settings
        with Bars(errors) as bars, open_workspace(settings, bars) as workspace:
            done = forget(workspace, dataset_id, also)
            with open_instance(settings) as instance:
                forget_partition(instance, dataset_id.partition("-")[0], dataset_id)
        if as_json:
            print_json({"dataset_id": dataset_id, "deleted": list(done.folders), "curated": done.curated})
            return
        console.print(f"{dataset_id} is forgotten; deleted: {', '.join(done.folders) or 'nothing'}")
        if done.curated:
            console.print("It is in the curated list, so it stays known, as the list describes it.")
