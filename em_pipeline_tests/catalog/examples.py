"""A small version to publish, and parts of it to spoil."""

import math
from dataclasses import replace
from datetime import date
from typing import Any

import pyarrow as pa

from em_pipeline.catalog.entries import LabelImage, LevelRow, VersionToPublish
from em_pipeline.domain.evidence import Claim, Evidence, Origin
from em_pipeline.domain.files import Manifest, RawFile
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.report import CheckResult, Severity, ValidationReport
from em_pipeline.domain.spec import DatasetSpec

DATASET = "files-cell"
LEDGER_SHA256 = "a" * 64

PASSED = (
    CheckResult(name="ledger", passed=True, message="12 chunks agree", details={"chunks": 12}),
    CheckResult(name="contrast", passed=False, severity=Severity.WARNING, message="p99 - p01 is 4"),
)
FAILED = (CheckResult(name="ledger", passed=False, message="1 chunk is corrupt"), PASSED[0])


def claim(field: str, value: Any, origin: Origin = Origin.PORTAL, raw: Any = None) -> Claim:
    evidence = Evidence(origin=origin, where="https://portal.test/1", field=field, extractor="test", raw=raw)
    return Claim(field=field, value=value, evidence=evidence)


def record(dataset_id: str = DATASET, revision: str = "r1", *more: Claim) -> DatasetRecord:
    """A record with one conflict (the voxel size along z) and a raw value that holds a NUL."""
    claims = [
        claim("core.title", "A cell"),
        claim("core.data_type", "uint8"),
        claim("core.modality", "FIB-SEM"),
        claim("core.imaging_start_date", date(2021, 3, 4)),
        claim("core.voxel_size_nm.z", 9.0),
        claim("core.voxel_size_nm.z", 8.0, Origin.FILE, raw="ImageJ=1.52\0spacing=8"),
        claim("sample.organism", "Mus musculus"),
        claim("rights.licence", "CC-BY-4.0"),
    ]
    return DatasetRecord.resolve(dataset_id, revision, [*claims, *more])


def ledger(level_0: tuple[int, int, int] = (2, 2, 2)) -> pa.Table:
    """Level 0 of that many chunks, the last of them fill, and a level 1 of one chunk."""
    places = [(0, z, y, x) for z in range(level_0[0]) for y in range(level_0[1]) for x in range(level_0[2])]
    rows: list[dict[str, Any]] = []
    for number, (level, z, y, x) in enumerate([*places, (1, 0, 0, 0)]):
        fill = number == len(places) - 1
        mean = math.nan if fill else float(number)
        rows.append(
            {"level": level, "z": z, "y": y, "x": x, "nbytes": 0 if fill else 100 + number}
            | {"crc32c": 0 if fill else 2**32 - 1 - number, "state": "fill" if fill else "data"}
            | {"valid_fraction": 1.0, "min": mean, "max": mean, "mean": mean, "std": mean}
            | {"p01": mean, "p99": mean, "extra": number}
        )
    return pa.Table.from_pylist(rows)


def levels() -> tuple[LevelRow, ...]:
    chunk, shard = (128, 128, 128), (256, 256, 256)
    return (
        LevelRow(0, (200, 210, 220), chunk, shard, (8.0, 4.0, 4.0), (0.0, 0.0, 0.0)),
        LevelRow(1, (100, 105, 110), chunk, chunk, (16.0, 8.0, 8.0), (4.0, 2.0, 2.0)),
    )


def version(
    dataset_id: str = DATASET,
    name: str = "v1",
    revision: str = "r1",
    ledger_sha256: str = LEDGER_SHA256,
    checks: tuple[CheckResult, ...] = PASSED,
    **parts: Any,
) -> VersionToPublish:
    """A version that may be published, but for what is said otherwise."""
    source, accession = dataset_id.split("-", 1)
    files = (
        RawFile(url="https://portal.test/a.tif", path="a.tif", size=700, sha256="1" * 64, etag='"x"'),
        RawFile(url="https://portal.test/b.tif", path="b.tif", size=300, sha256="2" * 64),
    )
    known: dict[str, Any] = {
        "dataset_id": dataset_id,
        "version": name,
        "revision": revision,
        "spec": DatasetSpec(source=source, accession=accession, include=("*.tif",)),
        "record": record(dataset_id, revision),
        "manifest": Manifest(dataset_id=dataset_id, revision=revision, files=files),
        "report": ValidationReport(
            dataset_id=dataset_id, version=name, ledger_sha256=ledger_sha256, checks=checks
        ),
        "levels": levels(),
        "ledger": ledger(),
        "statistics": {"mean": 3.0, "std": math.nan},
        "ledger_sha256": ledger_sha256,
        "volume_key": f"volumes/{dataset_id}/{name}.ome.zarr",
        "ledger_key": f"volumes/{dataset_id}/{name}.ledger.parquet",
        "stored_bytes": 821,
        "writer_version": "0.1.0",
    }
    return VersionToPublish(**(known | parts))


def with_labels(new: VersionToPublish, **sha256: str) -> VersionToPublish:
    """The same with a label image in each folder named, sealed by a ledger of that SHA-256."""
    base = f"volumes/{new.dataset_id}/{new.version}"
    labels = tuple(
        LabelImage(
            folder=folder,
            name=f"my {folder}",
            data_type="uint64",
            levels=levels(),
            coverage=1.0,
            ledger_sha256=digest,
            volume_key=f"{base}.ome.zarr/labels/{folder}",
            ledger_key=f"{base}.labels.{folder}.ledger.parquet",
            stored_bytes=5,
        )
        for folder, digest in sha256.items()
    )
    return replace(new, labels=labels, report=new.report.model_copy(update={"label_ledgers": sha256}))
