"""A sensor per source whose portal lists its datasets: new and revised entries become partitions and runs."""

import dagster as dg

from em_pipeline.ingest.discovery import Cursor, Discovery
from em_pipeline.ingest.discovery_policy import DiscoveryPolicy
from em_pipeline.ingest.watch import keep_specs, look
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.base import WatchedSource

SHOWN = 5


def sensor_name(slug: str) -> str:
    """Name of a source's discovery sensor."""
    return f"{slug}_new_datasets"


def build_discovery_sensor(
    source: WatchedSource,
    policy: DiscoveryPolicy,
    *,
    job_name: str,
    partitions: dg.DynamicPartitionsDefinition,
) -> dg.SensorDefinition:
    """The sensor of `source`; it is off until a person switches it on.

    It needs the resource `workspace`. An outage fails the tick: nothing is registered, requested or
    skipped, and the cursor stays where it was.
    """
    slug = source.slug

    @dg.sensor(
        name=sensor_name(slug),
        job_name=job_name,
        minimum_interval_seconds=policy.interval_s,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=f"New and revised entries of {slug} that the settings discovery.{slug} ask for.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
    ) -> dg.SensorResult:
        registered = context.instance.get_dynamic_partitions(str(partitions.name))
        cursor = Cursor.read(context.cursor)
        found = look(workspace, source, cursor, policy, registered=registered)
        for accession, reason in found.skipped.items():
            context.log.info(f"{accession} skipped: {reason}")
        # Saved first: a partition without a spec could not be run.
        keep_specs(workspace, found.register)
        return _result(found, partitions)

    return sensor


def _result(found: Discovery, partitions: dg.DynamicPartitionsDefinition) -> dg.SensorResult:
    new = sorted(spec.dataset_id for spec in found.register)
    requests = [
        dg.RunRequest(run_key=request.run_key, partition_key=request.dataset_id)
        for request in found.run_requests
    ]
    return dg.SensorResult(
        dynamic_partitions_requests=[partitions.build_add_request(new)] if new else [],
        run_requests=requests or None,
        skip_reason=None if requests else summary(found),
        cursor=found.new_cursor.text(),
    )


def summary(found: Discovery) -> str:
    """One line on a look that requests nothing."""
    reasons = [f"{accession}: {reason}" for accession, reason in list(found.skipped.items())[:SHOWN]]
    rest = len(found.skipped) - len(reasons)
    shown = "; ".join(reasons) + (f"; and {rest} more, see the log" if rest > 0 else "")
    return f"Nothing new to ingest. {len(found.skipped)} skipped{': ' + shown if shown else ''}"
