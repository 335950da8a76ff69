"""`em ingest`, `em register`: from a name, a path or a URL to a dataset."""

from typing import TYPE_CHECKING

from em_pipeline.cli.bars import Bars
from em_pipeline.cli.options import Options, taking_options
from em_pipeline.cli.output import answering, by_axis, console, errors, print_json, size
from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.domain.wording import counted
from em_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from em_pipeline.ingest.asked import Asked
    from em_pipeline.ingest.workspace import Workspace


@taking_options
def ingest(target: str, options: Options, as_json: bool) -> None:
    """Take a dataset from its portal, path or URL to a published volume.

    Runs its five Dagster assets in this process; a second time continues, or finds nothing to do.
    """
    with answering(as_json):
        said = options()
        from em_pipeline.cli.launch import run_ingest
        from em_pipeline.ingest.workspace import open_workspace

        settings = load_settings().settings
        with Bars(errors) as bars, open_workspace(settings, bars) as workspace:
            spec = _spec(workspace, target, said)
            earlier = workspace.catalog.spec(spec.dataset_id)
            _save(workspace, spec)
            try:
                launched = run_ingest(workspace, spec, settings)
            except (InputRefused, NotFound):
                if spec != earlier:
                    _take_back(workspace, spec, earlier, settings)
                raise
            summary = workspace.catalog.dataset(spec.dataset_id).summary
        if as_json:
            print_json(
                {
                    "dataset_id": spec.dataset_id,
                    "version": launched.version,
                    "changed": launched.changed,
                    "written_again": launched.written_again,
                    "run_id": launched.run_id,
                    "shape": summary.shape,
                    "voxel_size_nm": list(summary.voxel_size_nm) if summary.voxel_size_nm else None,
                    "dtype": summary.data_type,
                    "conflicts": summary.conflicts,
                    "stored_bytes": summary.stored_bytes,
                }
            )
            return
        console.print(f"[bold]{spec.dataset_id}[/] {launched.did}: version {launched.version}")
        console.print(
            f"{by_axis(summary.shape)} {summary.data_type}, "
            f"{by_axis(list(summary.voxel_size_nm or ()))} nm, {size(summary.stored_bytes)} stored, "
            f"{counted(summary.conflicts, 'conflict')}"
        )
        if not launched.looked_at:
            console.print(f"Its bytes were not looked at now: em verify {spec.dataset_id} looks again")
        console.print(f"Next: em show {spec.dataset_id} · em block {spec.dataset_id} 0 0 0 --out block.png")


@taking_options
def register(target: str, options: Options, as_json: bool) -> None:
    """Make a dataset known to the catalogue and a partition in Dagster, without ingesting it."""
    with answering(as_json):
        said = options()
        from em_pipeline.assets.partitions import register as register_partition
        from em_pipeline.ingest.workspace import open_workspace
        from em_pipeline.resources.instance import open_instance

        settings = load_settings().settings
        with Bars(errors) as bars, open_workspace(settings, bars) as workspace:
            spec = _spec(workspace, target, said)
            _save(workspace, spec)
            with open_instance(settings) as instance:
                new = register_partition(instance, spec.source, [spec.dataset_id])
        if as_json:
            print_json({"dataset_id": spec.dataset_id, "source": spec.source, "new": bool(new)})
        else:
            console.print(
                f"{spec.dataset_id} is {'now ' if new else 'already '}a partition of {spec.source}."
            )


def _take_back(
    workspace: "Workspace", spec: DatasetSpec, earlier: DatasetSpec | None, settings: Settings
) -> None:
    """Let a wish that was refused not stand in the way of the next."""
    from em_pipeline.assets.partitions import forget as forget_partition
    from em_pipeline.ingest.forget import take_back
    from em_pipeline.resources.instance import open_instance

    if take_back(workspace, spec.dataset_id, earlier):
        with open_instance(settings) as instance:
            forget_partition(instance, spec.source, spec.dataset_id)


def _save(workspace: "Workspace", spec: DatasetSpec) -> None:
    """Keep the spec; a changed one only while no step is at work, which would lose its thread."""
    from em_pipeline.storage.lock import dataset_lock

    if workspace.catalog.spec(spec.dataset_id) == spec:
        return
    with dataset_lock(workspace.store, spec.dataset_id):
        workspace.catalog.save_spec(spec)


def _spec(workspace: "Workspace", target: str, said: "Asked") -> DatasetSpec:
    from em_pipeline.ingest.asked import spec_of
    from em_pipeline.ingest.specs import known_specs

    return spec_of(target, said, known_specs(workspace.catalog), workspace.sources)
