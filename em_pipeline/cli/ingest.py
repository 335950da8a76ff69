"""`em ingest`, `em register`: from a name, a path or a URL to a dataset."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_pipeline.cli.bars import Bars
from em_pipeline.cli.output import Json, answering, by_axis, console, errors, print_json, size
from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.domain.geometry import PartialVoxelSize
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.settings import load_settings

if TYPE_CHECKING:
    from em_pipeline.ingest.workspace import Workspace

URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)

FROM_FILE = "file"

VoxelSizeOption = Annotated[
    str | None,
    typer.Option(
        "--voxel-size",
        metavar="Z,Y,X",
        help="Nanometres; an empty part is taken from the file (50,,), one number is all three. "
        "It is kept for later runs; `file` takes it back.",
    ),
]
NameOption = Annotated[str | None, typer.Option(help="Name of a dataset made from a path or URL.")]
IncludeOption = Annotated[
    list[str] | None, typer.Option("--include", help="Only files whose name matches this glob; repeatable.")
]


def ingest(
    target: Annotated[str, typer.Argument(metavar="ID|PATH|URL", help="What to ingest.")],
    voxel_size: VoxelSizeOption = None,
    name: NameOption = None,
    include: IncludeOption = None,
    as_json: Json = False,
) -> None:
    """Take a dataset from its portal, path or URL to a published volume.

    Runs its five Dagster assets in this process; a second time continues, or finds nothing to do.
    """
    with answering(as_json):
        from em_pipeline.cli.launch import run_ingest
        from em_pipeline.ingest.workspace import open_workspace

        settings = load_settings().settings
        with Bars(errors) as bars, open_workspace(settings, bars) as workspace:
            spec = _spec(workspace, target, parse_voxel_size(voxel_size), name, tuple(include or ()))
            _save(workspace, spec)
            launched = run_ingest(workspace, spec, settings)
            summary = workspace.catalog.dataset(spec.dataset_id).summary
        if as_json:
            print_json(
                {
                    "dataset_id": spec.dataset_id,
                    "version": launched.version,
                    "changed": launched.changed,
                    "run_id": launched.run_id,
                    "shape": summary.shape,
                    "voxel_size_nm": list(summary.voxel_size_nm) if summary.voxel_size_nm else None,
                    "dtype": summary.data_type,
                    "conflicts": summary.conflicts,
                    "stored_bytes": summary.stored_bytes,
                }
            )
            return
        did = "published" if launched.changed else "was already published; nothing to do"
        console.print(f"[bold]{spec.dataset_id}[/] {did}: version {launched.version}")
        console.print(
            f"{by_axis(summary.shape)} {summary.data_type}, "
            f"{by_axis(list(summary.voxel_size_nm or ()))} nm, {size(summary.stored_bytes)} stored, "
            f"{summary.conflicts} conflicts"
        )
        console.print(f"Next: em show {spec.dataset_id} · em block {spec.dataset_id} 0 0 0 --out block.png")


def register(
    target: Annotated[str, typer.Argument(metavar="ID|PATH|URL", help="What to make known.")],
    voxel_size: VoxelSizeOption = None,
    name: NameOption = None,
    include: IncludeOption = None,
    as_json: Json = False,
) -> None:
    """Make a dataset known to the catalogue and a partition in Dagster, without ingesting it."""
    with answering(as_json):
        from em_pipeline.assets.partitions import register as register_partition
        from em_pipeline.ingest.workspace import open_workspace
        from em_pipeline.resources.instance import open_instance

        settings = load_settings().settings
        with Bars(errors) as bars, open_workspace(settings, bars) as workspace:
            spec = _spec(workspace, target, parse_voxel_size(voxel_size), name, tuple(include or ()))
            _save(workspace, spec)
            with open_instance(settings) as instance:
                new = register_partition(instance, spec.source, [spec.dataset_id])
        if as_json:
            print_json({"dataset_id": spec.dataset_id, "source": spec.source, "new": bool(new)})
        else:
            console.print(
                f"{spec.dataset_id} is {'now ' if new else 'already '}a partition of {spec.source}."
            )


def parse_voxel_size(text: str | None) -> PartialVoxelSize | None:
    """`Z,Y,X` in nanometres with parts that may be empty, one number for all three, or `file` for none.

    Raises `InputRefused` for anything else.
    """
    if text is None:
        return None
    if text.strip() == FROM_FILE:
        return PartialVoxelSize()
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1:
        parts *= 3
    try:
        if not any(parts):
            parts = [text]
        z, y, x = (float(part) if part else None for part in parts)
        return PartialVoxelSize(z=z, y=y, x=x)
    except ValueError as error:
        raise InputRefused(
            f"Read the voxel size {text!r}",
            "it is not three positive numbers of nanometres, z,y,x",
            "Write it like 50,8,8, or 50,, where the file knows y and x",
        ) from error


def _save(workspace: "Workspace", spec: DatasetSpec) -> None:
    """Keep the spec; a changed one only while no step is at work, which would lose its thread."""
    from em_pipeline.storage.lock import dataset_lock

    if workspace.catalog.spec(spec.dataset_id) == spec:
        return
    with dataset_lock(workspace.store, spec.dataset_id):
        workspace.catalog.save_spec(spec)


def _spec(
    workspace: "Workspace",
    target: str,
    voxel_size: PartialVoxelSize | None,
    name: str | None,
    include: tuple[str, ...],
) -> DatasetSpec:
    from em_pipeline.ingest.specs import known_specs, spec_from_id
    from em_pipeline.sources.files import spec_for

    if not target:
        raise InputRefused("Ingest ''", "it names nothing", "Give a dataset id, a path or a URL")
    known = known_specs(workspace.catalog)
    spec = known.get(target.lower()) or spec_from_id(target, workspace.sources)
    if spec is not None and Path(target).exists():
        raise InputRefused(
            f"Ingest {target}", "it is both a dataset id and a path here", f"Write ./{target} for the path"
        )
    if spec is None:
        if not URL.match(target) and not Path(target).exists():
            raise _unknown(target, known, workspace)
        fresh = spec_for(target, name=name)
        # What was once said of a dataset (its voxel size) holds until something else is said.
        spec = known.get(fresh.dataset_id, fresh).model_copy(update={"location": fresh.location})
    elif name:
        raise InputRefused(
            f"Name {target} {name!r}", "datasets of a portal have the portal's name", "Leave --name out"
        )
    changes: dict[str, object] = {}
    if voxel_size is not None:
        given = any(voxel_size)
        changes |= {
            "voxel_size_nm": voxel_size if given else None,
            "voxel_size_reason": "given with --voxel-size" if given else "",
        }
    if include:
        changes["include"] = include
    return spec.model_copy(update=changes)


def _unknown(target: str, known: dict[str, DatasetSpec], workspace: "Workspace") -> NotFound:
    import difflib

    nearest = difflib.get_close_matches(target.lower(), known, n=3)
    sources = ", ".join(sorted(workspace.sources))
    return NotFound(
        f"Ingest {target}",
        f"it is no path, no URL, no known dataset and no <source>-<accession> of {sources}",
        f"Nearest known: {', '.join(nearest)}" if nearest else "`em ls --all` lists what is known",
    )
