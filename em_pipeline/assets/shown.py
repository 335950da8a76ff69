"""What a person sees of each step in the Dagster UI."""

import base64
import io
from collections.abc import Mapping, Sequence

import dagster as dg

from em_pipeline.domain.evidence import Conflict
from em_pipeline.domain.files import Manifest
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.report import ValidationReport
from em_pipeline.domain.wording import figure
from em_pipeline.ingest.build import Built
from em_pipeline.volumes.plan_report import PlanReport
from em_pipeline.volumes.rechunk import WrittenVolume

# The UI shows tables whole; longer ones belong to `em show`.
SHOWN_ROWS = 100
SHOWN_PIXELS = (900, 900)

Metadata = Mapping[str, dg.MetadataValue]


def record_metadata(record: DatasetRecord) -> dict[str, dg.MetadataValue]:
    """Every resolved value with where it was read, and the conflicts."""
    kept = [(field, record.kept(field)) for field in record.values()]
    rows = [
        dg.TableRecord(
            {
                "field": field,
                "value": str(claim.value)[:200],
                "origin": str(claim.evidence.origin),
                "where": claim.evidence.where,
                "at": claim.evidence.field[:120],
            }
        )
        for field, claim in kept
        if claim is not None
    ]
    return {
        "title": dg.MetadataValue.text(record.fields.core.title or ""),
        "revision": dg.MetadataValue.text(record.revision),
        "completeness": dg.MetadataValue.float(round(record.completeness, 3)),
        "conflicts": conflicts_metadata(record.conflicts),
        "values": dg.MetadataValue.table(
            rows[:SHOWN_ROWS], _text_columns("field", "value", "origin", "where", "at")
        ),
    }


def conflicts_metadata(conflicts: Sequence[Conflict]) -> dg.MetadataValue:
    """One line per disagreement: what was kept, what was rejected, who said so."""
    if not conflicts:
        return dg.MetadataValue.md("none")
    lines = ["| field | kept | from | rejected | from |", "|---|---|---|---|---|"]
    lines += [
        f"| {c.field} | {c.kept.value} | {c.kept.evidence.where} "
        f"| {c.rejected.value} | {c.rejected.evidence.where} |"
        for c in conflicts
    ]
    return dg.MetadataValue.md("\n".join(lines))


def files_metadata(manifest: Manifest, already_held: bool) -> dict[str, dg.MetadataValue]:
    """Count, bytes and a table of the raw files."""
    rows = [
        dg.TableRecord({"path": file.path, "bytes": file.size, "sha256": file.sha256, "url": file.url})
        for file in manifest.files[:SHOWN_ROWS]
    ]
    columns = [
        dg.TableColumn("path"),
        dg.TableColumn("bytes", type="int"),
        dg.TableColumn("sha256"),
        dg.TableColumn("url"),
    ]
    return {
        "files": dg.MetadataValue.int(len(manifest.files)),
        "bytes": dg.MetadataValue.int(manifest.size),
        "manifest_sha256": dg.MetadataValue.text(manifest.digest),
        "already_held": dg.MetadataValue.bool(already_held),
        "table": dg.MetadataValue.table(rows, dg.TableSchema(columns)),
    }


def volume_metadata(built: Built) -> dict[str, dg.MetadataValue]:
    """Shape, voxel size, speed, bytes, conflicts and the preview image."""
    core = built.record.fields.core
    metadata = {
        "version": dg.MetadataValue.text(built.version),
        "path": dg.MetadataValue.path(built.files.image().volume.url),
        "shape_zyx": dg.MetadataValue.text(
            " × ".join(str(n) for n in core.volume_shape.model_dump().values())
        ),
        "voxel_size_nm_zyx": dg.MetadataValue.text(
            " × ".join(figure(n) for n in core.voxel_size_nm.model_dump().values())
        ),
        "dtype": dg.MetadataValue.text(str(core.data_type)),
        "conflicts": conflicts_metadata(built.record.conflicts),
        "preview": preview_metadata(built),
        "already_written": dg.MetadataValue.bool(built.written is None),
    }
    if built.written is not None:
        metadata |= written_metadata(built.written)
    if built.plan is not None:
        metadata |= plan_metadata(built.plan)
    return metadata


def plan_metadata(plan: PlanReport) -> dict[str, dg.MetadataValue]:
    """What the plan said before anything was written, and its levels as a table."""
    rows = [
        dg.TableRecord(
            {
                "level": level.index,
                "shape": " × ".join(map(str, level.shape)),
                "halved": level.halved,
                "shards": level.shards,
                "units": level.units,
                "read at once": " × ".join(map(str, level.slab_shape)),
                "held": level.slabs_held,
            }
        )
        for level in plan.levels
    ]
    numbers = ("level", "shards", "units", "held")
    columns = [dg.TableColumn(name, type="int" if name in numbers else "string") for name in rows[0].data]
    return {
        "planned_read_bytes": dg.MetadataValue.int(plan.read_bytes),
        "planned_read_amplification": dg.MetadataValue.float(round(plan.amplification, 3)),
        "planned_scratch_bytes": dg.MetadataValue.int(plan.scratch_bytes),
        "planned_memory_bytes": dg.MetadataValue.int(plan.process_bytes),
        "planned_unit_bytes": dg.MetadataValue.int(plan.unit_bytes),
        "planned_threads": dg.MetadataValue.int(plan.threads),
        "plan": dg.MetadataValue.table(rows, dg.TableSchema(columns)),
    }


def written_metadata(written: WrittenVolume) -> dict[str, dg.MetadataValue]:
    """Bytes, speed and units of work; the speed is 0 where an earlier run had completed the volume."""
    speed = written.bytes_read / 1e6 / written.seconds if written.seconds else 0.0
    return {
        "stored_bytes": dg.MetadataValue.int(written.bytes_stored),
        "mb_per_s": dg.MetadataValue.float(round(speed, 1)),
        "units_done": dg.MetadataValue.int(written.units_done),
        "units_resumed": dg.MetadataValue.int(written.units_resumed),
    }


def preview_metadata(built: Built) -> dg.MetadataValue:
    """The preview, small enough to lie in the event log, shown in place."""
    from PIL import Image

    small = io.BytesIO()
    with Image.open(io.BytesIO(built.files.store.read(built.files.preview))) as picture:
        picture.thumbnail(SHOWN_PIXELS)
        picture.convert("RGB").save(small, "JPEG", quality=85)
    encoded = base64.b64encode(small.getvalue()).decode()
    return dg.MetadataValue.md(f"![preview of {built.version}](data:image/jpeg;base64,{encoded})")


def report_metadata(report: ValidationReport) -> dict[str, dg.MetadataValue]:
    """Each check with its outcome and what it found."""
    rows = [
        dg.TableRecord(
            {
                "check": check.name,
                "passed": check.passed,
                "severity": str(check.severity),
                "message": check.message[:400],
            }
        )
        for check in report.checks
    ]
    columns = [
        dg.TableColumn("check"),
        dg.TableColumn("passed", type="bool"),
        dg.TableColumn("severity"),
        dg.TableColumn("message"),
    ]
    return {
        "passed": dg.MetadataValue.bool(report.passed),
        "version": dg.MetadataValue.text(report.version),
        "checks": dg.MetadataValue.table(rows, dg.TableSchema(columns)),
    }


def _text_columns(*names: str) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(name) for name in names])
