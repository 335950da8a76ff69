"""Claims that come from the spec and from what an ingest itself measured."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from em_pipeline import __version__
from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.evidence import RANK, Claim, Conflict, Evidence, Origin
from em_pipeline.domain.files import Manifest
from em_pipeline.domain.geometry import BoundingBox, VoxelSize
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.record import FIELD_NAMES, DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.domain.wording import figure
from em_pipeline.volumes.statistics import VolumeStatistics

SHAPE = "core.volume_shape."
# Follows the field of a conflict about the volume that the record describes a box of.
OF_THE_WHOLE = " of the whole volume"


def spec_claims(spec: DatasetSpec) -> list[Claim]:
    """A person's overrides, the voxel size given with the spec, and the curated values."""
    where = f"spec of {spec.dataset_id}"
    claims = [
        Claim(
            field=field,
            value=entry.value,
            evidence=Evidence(
                origin=Origin.OVERRIDE,
                where=where,
                field=f"overrides.{field}",
                extractor="ingest.spec",
                raw=entry.value,
                reason=entry.reason,
            ),
        )
        for field, entry in spec.overrides.items()
    ]
    if spec.voxel_size_nm is not None:
        reason = spec.voxel_size_reason or "given with the spec"
        claims += [
            Claim(
                field=f"core.voxel_size_nm.{axis}",
                value=size,
                evidence=Evidence(
                    origin=Origin.OVERRIDE,
                    where=where,
                    field=f"voxel_size_nm.{axis}",
                    extractor="ingest.spec",
                    raw=size,
                    reason=reason,
                ),
            )
            for axis, size in zip("zyx", spec.voxel_size_nm, strict=True)
            if size is not None
        ]
        if spec.voxel_size_nm.x is not None:
            claims.append(
                Claim(
                    field="core.unit",
                    value="nm",
                    evidence=Evidence(
                        origin=Origin.OVERRIDE,
                        where=where,
                        field="voxel_size_nm",
                        extractor="ingest.spec",
                        raw="nm",
                        reason=reason,
                    ),
                )
            )
    claims += [
        Claim(
            field=field,
            value=curated.value,
            evidence=Evidence(
                origin=Origin.CURATED,
                where=curated.page,
                field=curated.quote or field,
                extractor="ingest.curated",
                raw=curated.value,
                reason=f"read on {curated.read_on}",
            ),
        )
        for field, curated in spec.curated.items()
    ]
    return claims


def volume_record(
    spec: DatasetSpec, manifest: Manifest, portal: Iterable[Claim], volume: LazyVolume, box: BoundingBox
) -> DatasetRecord:
    """The record once the files have spoken: spec, files, manifest and portal claims resolved.

    Of a box, the shape is the box's. Claims about the shape of the whole are left out; where they disagree,
    the record's conflicts say so, as conflicts on `core.volume_shape.… of the whole volume`.
    """
    claims = [*spec_claims(spec), *volume.claims, *manifest_claims(manifest), *portal]
    claims = [*_unit_of_the_kept_size(claims), *offset_claims(spec, box)]
    if box == BoundingBox.of_shape(volume.shape):
        return DatasetRecord.resolve(spec.dataset_id, manifest.revision, claims)
    of_whole = [claim for claim in claims if claim.field.startswith(SHAPE)]
    claims = [claim for claim in claims if not claim.field.startswith(SHAPE)]
    claims += [
        _computed(f"{SHAPE}{axis}", size, f"spec of {spec.dataset_id}", "bounding_box")
        for axis, size in zip("zyx", box.shape, strict=True)
    ]
    whole = DatasetRecord.resolve(spec.dataset_id, manifest.revision, of_whole)
    conflicts = [replace(conflict, field=f"{conflict.field}{OF_THE_WHOLE}") for conflict in whole.conflicts]
    return _with_conflicts(DatasetRecord.resolve(spec.dataset_id, manifest.revision, claims), conflicts)


def _with_conflicts(record: DatasetRecord, conflicts: Iterable[Conflict]) -> DatasetRecord:
    return record.model_copy(update={"conflicts": (*record.conflicts, *conflicts)})


def _unit_of_the_kept_size(claims: Sequence[Claim]) -> list[Claim]:
    """The claims without units that go with another voxel size than the one along x that is kept.

    Two documents that give one size in two units do not disagree.
    """
    sizes = [c for c in claims if c.field == "core.voxel_size_nm.x" and c.value is not None]
    kept = min(sizes, key=lambda claim: RANK[claim.evidence.origin], default=None)
    if kept is None:
        return list(claims)
    speaking = (kept.evidence.origin, Origin.OVERRIDE)
    return [c for c in claims if c.field != "core.unit" or c.evidence.origin in speaking]


def offset_claims(spec: DatasetSpec, box: BoundingBox) -> list[Claim]:
    """Where the volume begins in the source, as the spec says; at 0 where it asks for the whole."""
    at = "bounding_box.start" if spec.bounding_box else "no bounding_box"
    return [
        _computed(f"core.offset.{axis}", start, f"spec of {spec.dataset_id}", at)
        for axis, start in zip("zyx", box.start, strict=True)
    ]


def with_statistics(record: DatasetRecord, statistics: VolumeStatistics, ledger: str) -> DatasetRecord:
    """The record with the statistics of level 0, as the ledger holds them."""
    measured = {name: getattr(statistics, name) for name in ("min", "max", "mean", "std", "p01", "p99")}
    claims = [
        _computed(f"technical.statistics.{name}", value, ledger, name) for name, value in measured.items()
    ]
    resolved = DatasetRecord.resolve(record.dataset_id, record.revision, [*record.claims, *claims])
    # Those about the whole volume rest on claims that the record of a box does not hold.
    return _with_conflicts(resolved, (one for one in record.conflicts if one.field not in FIELD_NAMES))


def manifest_claims(manifest: Manifest) -> list[Claim]:
    """Size, count and hash of the raw files, and what made the volume from them."""
    where = f"manifest of {manifest.dataset_id} at {manifest.revision}"
    return [
        _computed("technical.file_size_bytes", manifest.size, where, "files[].size"),
        _computed("technical.file_count", len(manifest.files), where, "files"),
        _computed("technical.sha256", manifest.digest, where, "files[].sha256"),
        _computed("provenance.pipeline", "em-pipeline", "em_pipeline", "__name__"),
        _computed("provenance.pipeline_version", __version__, "em_pipeline", "__version__"),
    ]


def voxel_size_of(record: DatasetRecord, names: Sequence[str]) -> VoxelSize:
    """The voxel size the record settled on. Raises `InputRefused` where an axis is unknown."""
    size = record.fields.core.voxel_size_nm
    if size.z is not None and size.y is not None and size.x is not None:
        return VoxelSize(z=size.z, y=size.y, x=size.x)
    known = {"z": size.z, "y": size.y, "x": size.x}
    said = ", ".join(f"{axis}={figure(value)} nm" for axis, value in known.items() if value is not None)
    missing = [axis for axis, value in known.items() if value is None]
    template = ",".join(axis.upper() if axis in missing else "" for axis in "zyx")
    raise InputRefused(
        f"Find the voxel size of {record.dataset_id} in {names[0] if names else 'its files'}",
        f"nothing says the size along {', '.join(missing)}" + (f" (known: {said})" if said else ""),
        f"Give it in nanometres with --voxel-size {template} (an empty part is taken from the file)",
    )


def _computed(field: str, value: object, where: str, at: str) -> Claim:
    evidence = Evidence(origin=Origin.COMPUTED, where=where, field=at, extractor="ingest.measured", raw=value)
    return Claim(field=field, value=value, evidence=evidence)
