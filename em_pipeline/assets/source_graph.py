"""The graph of one source: five assets, one partition per dataset, one run from portal to catalogue."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import dagster as dg

from em_pipeline.assets import shown
from em_pipeline.assets.failures import reported
from em_pipeline.assets.partitions import dataset_partitions
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.domain.wording import counted
from em_pipeline.ingest.build import build
from em_pipeline.ingest.fetch import fetch
from em_pipeline.ingest.publish import publish
from em_pipeline.ingest.scrape import scrape
from em_pipeline.ingest.specs import find_spec
from em_pipeline.ingest.validate import CHECK_NAMES, WARNINGS, validate
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.resources.progress import LoggedProgress
from em_pipeline.sources.base import Source

Step = Callable[[Workspace, DatasetSpec], dg.MaterializeResult]

# Only transient errors come this far; the layers below have already asked several times.
RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
RECHUNK_POOL = "rechunk"


def host_pool(source: Source) -> str:
    """Name of the pool that bounds how many runs talk to the servers of a source's institution at once.

    EMPIAR and IDR are two portals on the same EBI servers, which count connections by address.
    """
    return f"{source.institution}_host"


def ingest_job_name(slug: str) -> str:
    """Name of the job that takes one dataset of a source through all five assets."""
    return f"{slug}_ingest"


def build_source_definitions(source: Source) -> dg.Definitions:
    """Assets `record → raw_files → ome_zarr → validation_report → catalog_entry` and their job.

    They need the resource `workspace`. A report that does not pass fails its blocking checks and stops
    the run; the catalogue refuses such a version in any case.
    """
    slug = source.slug
    report = dg.AssetKey([slug, "validation_report"])
    checks = [dg.AssetCheckSpec(name, asset=report, blocking=name not in WARNINGS) for name in CHECK_NAMES]
    assets = [
        _asset(slug, "record", _record, pool=host_pool(source), kind="json"),
        _asset(slug, "raw_files", _raw_files, after="record", pool=host_pool(source), kind="file"),
        _asset(slug, "ome_zarr", _ome_zarr, after="raw_files", pool=RECHUNK_POOL, kind="zarr"),
        _asset(
            slug,
            "validation_report",
            _validation_report,
            after="ome_zarr",
            pool=RECHUNK_POOL,
            kind="json",
            checks=checks,
        ),
        _asset(slug, "catalog_entry", _catalog_entry, after="validation_report", kind="postgres"),
    ]
    job = dg.define_asset_job(
        ingest_job_name(slug),
        selection=dg.AssetSelection.groups(slug),
        description=f"One dataset of {slug} from its portal to the catalogue.",
    )
    return dg.Definitions(assets=assets, jobs=[job])


def _asset(
    slug: str,
    name: str,
    step: Step,
    *,
    kind: str,
    after: str | None = None,
    pool: str | None = None,
    checks: Sequence[dg.AssetCheckSpec] = (),
) -> dg.AssetsDefinition:
    @dg.asset(
        name=name,
        key_prefix=slug,
        group_name=slug,
        partitions_def=dataset_partitions(slug),
        deps=[dg.AssetKey([slug, after])] if after else [],
        check_specs=checks,
        pool=pool,
        retry_policy=RETRIES,
        kinds={kind},
        description=step.__doc__,
    )
    def asset(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> dg.MaterializeResult:
        progress = LoggedProgress(context.log.info, workspace.progress)
        with reported(workspace, context.partition_key):
            try:
                spec = find_spec(workspace.catalog, context.partition_key)
                return step(replace(workspace, progress=progress), spec)
            finally:
                progress.flush()

    return asset


def _record(workspace: Workspace, spec: DatasetSpec) -> dg.MaterializeResult:
    """What the portal says of the dataset, each value with its evidence."""
    scraped = scrape(workspace, spec)
    record = scraped.record
    found = f"{counted(len(record.values()), 'value')}, {counted(len(record.conflicts), 'conflict')}"
    workspace.progress.note(f"record: revision {record.revision}, {found}")
    return dg.MaterializeResult(
        metadata=shown.record_metadata(scraped.record),
        data_version=dg.DataVersion(scraped.portal.revision),
    )


def _raw_files(workspace: Workspace, spec: DatasetSpec) -> dg.MaterializeResult:
    """The dataset's files, whole, with their SHA-256."""
    fetched = fetch(workspace, spec)
    manifest = fetched.manifest
    held = "already held" if fetched.already_held else "held"
    workspace.progress.note(
        f"raw files: {counted(len(manifest.files), 'file')}, {counted(manifest.size, 'byte')}, {held}"
    )
    return dg.MaterializeResult(
        metadata=shown.files_metadata(fetched.manifest, fetched.already_held),
        data_version=dg.DataVersion(fetched.manifest.digest),
    )


def _ome_zarr(workspace: Workspace, spec: DatasetSpec) -> dg.MaterializeResult:
    """The volume as OME-Zarr 0.5 in 128³ chunks, staged until it is published."""
    built = build(workspace, spec)
    made = "already there, not read again"
    if built.written is not None:
        made = f"written in {built.written.seconds:.1f} s"
    workspace.progress.note(f"volume: version {built.version}, {made}")
    return dg.MaterializeResult(
        metadata=shown.volume_metadata(built), data_version=dg.DataVersion(built.version)
    )


def _validation_report(workspace: Workspace, spec: DatasetSpec) -> dg.MaterializeResult:
    """Every reason found not to publish the volume."""
    report = validate(workspace, spec)
    results = [
        dg.AssetCheckResult(
            check_name=check.name,
            passed=check.passed,
            severity=dg.AssetCheckSeverity.WARN if check.name in WARNINGS else dg.AssetCheckSeverity.ERROR,
            description=check.message,
        )
        for check in report.checks
    ]
    return dg.MaterializeResult(metadata=shown.report_metadata(report), check_results=results)


def _catalog_entry(workspace: Workspace, spec: DatasetSpec) -> dg.MaterializeResult:
    """The published version in the catalogue: visible at once or not at all."""
    outcome = publish(workspace, spec)
    workspace.progress.note(
        f"catalogue: version {outcome.version} {'is now' if outcome.changed else 'was'} published"
        f"{'; its volume is written again' if outcome.written_again else ''}"
    )
    return dg.MaterializeResult(
        metadata={
            "version": outcome.version,
            "changed": outcome.changed,
            "written_again": outcome.written_again,
            "blocks": outcome.blocks,
        },
        data_version=dg.DataVersion(outcome.version),
    )
