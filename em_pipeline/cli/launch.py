"""Running a dataset's graph in this process, as Dagster's UI or CLI would."""

from dataclasses import dataclass

import dagster as dg

from em_pipeline.assets.failures import CANCELLED
from em_pipeline.assets.partitions import register
from em_pipeline.assets.source_graph import ingest_job_name
from em_pipeline.definitions import build_definitions
from em_pipeline.domain.errors import EmError, NotPublishable
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.resources.instance import open_instance
from em_pipeline.resources.processes import close_dead_runs, process_tags
from em_pipeline.settings import Settings

# The run's events go to the instance and the progress to the bars; the console stays with those.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
# What a step or run ends with that was interrupted outside our code, between Dagster's own lines.
INTERRUPTS = {dg.DagsterExecutionInterruptedError.__name__, KeyboardInterrupt.__name__}


@dataclass(frozen=True)
class Launched:
    """A run that succeeded: its Dagster run id, and whether a new version became visible.

    `written_again` is True where none did, but the volume of the visible one had been deleted.
    """

    run_id: str
    version: str
    changed: bool
    written_again: bool

    @property
    def looked_at(self) -> bool:
        """Whether the run read the published volume, and did not only find that it was published."""
        return self.changed or self.written_again

    @property
    def did(self) -> str:
        """What the run did, to follow the dataset's id in a sentence."""
        if self.changed:
            return "published"
        if self.written_again:
            return "was already published; its deleted volume was written again"
        return "was already published; nothing to do"


def run_ingest(workspace: Workspace, spec: DatasetSpec, settings: Settings) -> Launched:
    """Register the dataset as a partition and run its five assets in this process.

    The run is recorded in the Dagster instance of the settings. Raises the `EmError` that a step ended
    with, `NotPublishable` where the volume did not pass validation, and `KeyboardInterrupt` where the run was
    interrupted.
    """
    source = workspace.source(spec.source)
    definitions = build_definitions([source], settings, {"workspace": workspace})
    with open_instance(settings) as instance:
        register(instance, spec.source, [spec.dataset_id])
        close_dead_runs(instance)
        job = definitions.resolve_job_def(ingest_job_name(spec.source))
        result = job.execute_in_process(
            instance=instance,
            partition_key=spec.dataset_id,
            run_config=QUIET,
            raise_on_error=False,
            tags=process_tags(),
        )
        if not result.success:
            raise _refused(result, spec, workspace) or _failure(result, spec)
    entry = result.asset_materializations_for_node(f"{spec.source}__catalog_entry")[0].metadata
    return Launched(
        result.run_id,
        version=str(entry["version"].value),
        changed=bool(entry["changed"].value),
        written_again=bool(entry["written_again"].value),
    )


def _refused(
    result: dg.ExecuteInProcessResult, spec: DatasetSpec, workspace: Workspace
) -> NotPublishable | None:
    """What a validation found that did not pass; None where none was made, or it passed."""
    failed = [
        f"{check.check_name}: {check.description}"
        for check in result.get_asset_check_evaluations()
        if check.blocking and not check.passed
    ]
    if not failed:
        return None
    more = f" ({len(failed)} such checks)" if len(failed) > 1 else ""
    version = result.asset_materializations_for_node(f"{spec.source}__ome_zarr")[0].metadata["version"].value
    published = workspace.catalog.published_version(spec.dataset_id)
    to_do = "Run the same again: a stage that did not pass is deleted and written anew"
    if published is not None and published.version == version:
        to_do = f"Run `em verify {spec.dataset_id} --discard`, then the same again: it writes the same bytes"
    return NotPublishable(
        f"Validate volume {version} of {spec.dataset_id}",
        f"{failed[0]}{more}",
        f"{to_do}. What is found once more is no damage of a disk; Dagster run {result.run_id} has it all",
    )


def _failure(result: dg.ExecuteInProcessResult, spec: DatasetSpec) -> EmError | KeyboardInterrupt:
    kinds = {kind.slug: kind for kind in EmError.__subclasses__()}
    for event in result.all_events:
        if _is_interrupt(event):
            return KeyboardInterrupt()
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        if data.user_failure_data is not None and "kind" in data.user_failure_data.metadata:
            said = {key: value.value for key, value in data.user_failure_data.metadata.items()}
            if said["kind"] == CANCELLED:
                return KeyboardInterrupt()
            kind = kinds.get(str(said["kind"]), EmError)
            return kind(str(said["tried"]), str(said["found"]), str(said["to_do"]))
        return EmError(
            f"Run {event.step_key} of {spec.dataset_id}",
            data.error.message.strip() if data.error else "the step failed without a message",
            f"The Dagster run {result.run_id} holds the log",
        )
    return EmError(f"Ingest {spec.dataset_id}", "the run failed before its first step", "")


def _is_interrupt(event: dg.DagsterEvent) -> bool:
    if event.is_step_failure:
        error = event.step_failure_data.error
    elif event.is_job_failure:
        error = event.job_failure_data.error
    else:
        return False
    return error is not None and error.cls_name in INTERRUPTS
