"""`em ls`, `em show`: what is in the catalogue."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_pipeline.cli.output import (
    DatasetId,
    Json,
    answering,
    by_axis,
    console,
    errors,
    print_json,
    printable,
    size,
    table,
)
from em_pipeline.domain.errors import StorageFailed
from em_pipeline.domain.record import Status
from em_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from em_pipeline.catalog.entries import DatasetDetail
    from em_pipeline.domain.record import DatasetRecord
    from em_pipeline.sources.base import PortalRecord


def ls(
    every: Annotated[
        bool, typer.Option("--all", help="Also datasets under way, failed, or only known.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the published datasets."""
    with answering(as_json):
        from em_pipeline.ingest.specs import known_specs
        from em_pipeline.ingest.workspace import open_catalog

        with open_catalog(load_settings().settings) as catalog:
            found = catalog.all_datasets() if every else catalog.published()
            rows = [dict(vars(summary)) for summary in found]
            if every:
                begun = {row["dataset_id"] for row in rows}
                rows += [
                    {"dataset_id": spec.dataset_id, "source": spec.source, "status": "known"}
                    for spec in known_specs(catalog).values()
                    if spec.dataset_id not in begun
                ]
        if as_json:
            print_json(rows)
        elif not rows:
            console.print(
                "No dataset is published yet. `em ingest ID|PATH|URL` ingests one, "
                "`em ls --all` shows what is known."
            )
        else:
            _print_rows(rows, every)


# Column heading → cell of a row. The last ones are shown only where the screen is wide enough.
COLUMNS: dict[str, Callable[[dict[str, Any]], object]] = {
    "dataset": lambda row: row["dataset_id"],
    "status": lambda row: row["status"],
    "z×y×x": lambda row: by_axis(row.get("shape")),
    "voxel nm": lambda row: by_axis(_sizes(row.get("voxel_size_nm"))),
    "dtype": lambda row: row.get("data_type"),
    "stored": lambda row: size(row.get("stored_bytes")),
    "conflicts": lambda row: row.get("conflicts"),
}
WIDE_COLUMNS: dict[str, Callable[[dict[str, Any]], object]] = {
    "organism": lambda row: row.get("organism"),
    "modality": lambda row: row.get("modality"),
    "licence": lambda row: row.get("licence"),
}
WIDE = 120


def _print_rows(rows: list[dict[str, Any]], every: bool) -> None:
    columns = COLUMNS | (WIDE_COLUMNS if console.width >= WIDE else {})
    table(
        f"{len(rows)} dataset{'s' if len(rows) != 1 else ''}",
        list(columns),
        [[cell(row) for cell in columns.values()] for row in rows],
        whole=("dataset", "status"),
    )
    for row in rows:
        if row.get("message") and (every or row["status"] == Status.PENDING):
            said = printable(f"{row['dataset_id']}: {row['message']}")
            console.print(said, markup=False, soft_wrap=True)


def _sizes(value: Any) -> list[float] | None:
    return None if value is None else list(value)


def show(dataset_id: DatasetId, as_json: Json = False) -> None:
    """Show a dataset's record with its evidence and conflicts, how its portal was read, and its checks."""
    with answering(as_json):
        from pydantic_core import to_jsonable_python

        from em_pipeline.ingest.specs import dataset_detail
        from em_pipeline.ingest.workspace import open_catalog

        settings = load_settings().settings
        with open_catalog(settings) as catalog:
            detail = dataset_detail(catalog, dataset_id)
        portal = _portal(detail, settings)
        if as_json:
            document = dict(vars(detail))
            for name in ("spec", "record"):
                model = getattr(detail, name)
                document[name] = model.model_dump(mode="json") if model else None
            document["conflicts"] = to_jsonable_python(detail.conflicts)
            document["checks"] = [check.model_dump(mode="json") for check in detail.checks]
            document["raw_files"] = [file.model_dump(mode="json") for file in detail.raw_files]
            document["portal"] = (
                portal.model_dump(mode="json", include={"page", "unavailable"}) if portal else None
            )
            print_json(document)
        else:
            _print_detail(detail, portal)


def _portal(detail: "DatasetDetail", settings: Settings) -> "PortalRecord | None":
    """What the portal said when the published version was made; None where the store has it no more."""
    from em_pipeline.ingest.scrape import portal_record_at
    from em_pipeline.ingest.workspace import store_of

    if detail.record is None:
        return None
    try:
        return portal_record_at(store_of(settings), detail.record.dataset_id, detail.record.revision)
    except StorageFailed as error:
        errors.print(f"How its portal was read is not known: {error}", markup=False, soft_wrap=True)
        return None


def _print_portal(portal: "PortalRecord") -> None:
    rows = []
    if page := portal.page:
        rows += [("page", page.url), ("read", page.how)]
        rows += [("link only on the page", link) for link in page.links_only_on_the_page or ()]
        rows += [("link not on the page", link) for link in page.links_not_on_the_page or ()]
        if (page.links_only_on_the_page, page.links_not_on_the_page) == ((), ()):
            rows.append(("links", "all as known"))
    rows += [(f"without {name}", why) for name, why in portal.unavailable.items()]
    if rows:
        console.print()
        table("Portal", ["what", "found"], rows)


# Of integers these are integers too, although they are kept as float64 and interpolated between wide ones.
OF_ONE_VOXEL = tuple(f"technical.statistics.{name}" for name in ("min", "max", "p01", "p99"))


def _shown(field: str, value: Any, record: "DatasetRecord") -> Any:
    data_type = record.fields.core.data_type or ""
    return round(value) if field in OF_ONE_VOXEL and "int" in data_type else value


def _print_detail(detail: Any, portal: "PortalRecord | None") -> None:
    summary = detail.summary
    console.print(summary.dataset_id, style="bold", markup=False, end="  ")
    console.print(summary.title or "", markup=False)
    console.print(f"{summary.status} {summary.progress:.0%}  {summary.message}", markup=False)
    if detail.record is None or detail.published is None:
        console.print("No version is published yet.")
        return
    console.print(
        f"version {detail.published.version} of revision {detail.record.revision}: "
        f"{detail.published.volume_key}",
        markup=False,
    )
    if detail.published.coverage < 1:
        lacking = 1 - detail.published.coverage
        console.print(f"{lacking:.3%} of the voxels are absent at the source", style="yellow")
    rows = []
    for field, value in detail.record.values().items():
        claim = detail.record.kept(field)
        evidence = claim.evidence
        reason = f" — {evidence.reason}" if evidence.reason else ""
        where = f"{evidence.where} · {evidence.field}{reason}"
        rows.append([field, _shown(field, value, detail.record), evidence.origin, where])
    console.print()
    table(
        f"Record ({detail.record.completeness:.0%} of the fields)",
        ["field", "value", "origin", "evidence"],
        rows,
    )
    console.print()
    table(
        f"Conflicts ({len(detail.conflicts)})",
        ["field", "kept", "from", "rejected", "from"],
        [
            [c.field, c.kept.value, c.kept.evidence.where, c.rejected.value, c.rejected.evidence.where]
            for c in detail.conflicts
        ],
    )
    if portal is not None:
        _print_portal(portal)
    console.print()
    table(
        "Levels",
        ["level", "shape", "scale nm"],
        [
            [level.level, by_axis(level.shape), by_axis(level.voxel_size_nm)]
            for level in detail.published.levels
        ],
    )
    if detail.published.labels:
        console.print()
        table(
            f"Label images ({len(detail.published.labels)})",
            ["folder", "name", "dtype", "shape", "scale nm", "at the source"],
            [
                [
                    f"labels/{label.folder}",
                    label.name,
                    label.data_type,
                    by_axis(label.levels[0].shape),
                    by_axis(label.levels[0].voxel_size_nm),
                    f"{label.coverage:.3%}",
                ]
                for label in detail.published.labels
            ],
        )
    console.print()
    table("Checks", ["check", "passed", "found"], [[c.name, c.passed, c.message] for c in detail.checks])
