"""Volumes written and published by the pipeline's own parts, without a portal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from em_pipeline.catalog.entries import LevelRow, VersionToPublish
from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.evidence import Claim, Evidence, Origin
from em_pipeline.domain.files import Manifest
from em_pipeline.domain.geometry import BoundingBox, VoxelSize
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.report import CheckResult, ValidationReport
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.versions import image_files
from em_pipeline.storage import keys
from em_pipeline.storage.store import LocalStore
from em_pipeline.volumes.memory import Means
from em_pipeline.volumes.plan import plan_rechunk
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.rechunk import rechunk
from em_pipeline_tests.volumes.arrays import ArrayVolume

REVISION = "r1"


@dataclass(frozen=True)
class Site:
    """A running sidecar: where it answers, what it stands on, and the voxels it must give."""

    url: str
    store: LocalStore
    catalog: Catalog
    arrays: dict[str, np.ndarray]

    def shards(self, dataset_id: str, version: str, level: int) -> list[Path]:
        """The stored shards of a level."""
        folder = self.store.local_path(keys.volume(dataset_id, version)) / str(level)
        return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json")


def write_volume(
    store: LocalStore,
    dataset_id: str,
    version: str,
    array: np.ndarray,
    *,
    voxel_size: tuple[float, float, float],
) -> None:
    """Rechunk `array` (z, y, x) into the place of a published version. `voxel_size` is nanometres."""
    z, y, x = voxel_size
    source = ArrayVolume(array, voxel_size=voxel_size)
    plan = plan_rechunk(
        source.shape,
        source.dtype,
        VoxelSize(z=z, y=y, x=x),
        source_chunk=source.decode_shape,
        means=Means(1 << 28, threads=1),
    )
    staged = store.blobs(keys.staging(dataset_id, version))
    box = BoundingBox.of_shape(source.shape)
    rechunk(source, box, plan, staged, name=dataset_id, progress=Silent())
    for name, key in (
        ("volume.ome.zarr", keys.volume(dataset_id, version)),
        ("ledger.parquet", keys.ledger(dataset_id, version)),
    ):
        target = store.local_path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        (staged.root / name).rename(target)


def publish(catalog: Catalog, store: LocalStore, dataset_id: str, version: str) -> None:
    """Publish a written volume in the catalogue, with a record whose organism two places disagree on."""
    volume_key, ledger_key = keys.volume(dataset_id, version), keys.ledger(dataset_id, version)
    with VolumeReader.open(*image_files(store, volume_key, ledger_key)) as reader:
        ledger, levels = reader.ledger, reader.levels
    source, accession = dataset_id.split("-", 1)
    statistics = {name: getattr(ledger.statistics, name) for name in ("min", "max", "mean", "p01", "p99")}
    catalog.publish(
        VersionToPublish(
            dataset_id=dataset_id,
            version=version,
            revision=REVISION,
            spec=DatasetSpec(source=source, accession=accession),
            record=_record(dataset_id, levels[0].dtype.name),
            manifest=Manifest(dataset_id=dataset_id, revision=REVISION, files=()),
            report=ValidationReport(
                dataset_id=dataset_id,
                version=version,
                ledger_sha256=ledger.sha256,
                checks=(CheckResult(name="readable", passed=True, message="every chunk was read"),),
            ),
            levels=[LevelRow.of(level) for level in levels],
            ledger=ledger.table(),
            statistics=statistics,
            ledger_sha256=ledger.sha256,
            volume_key=volume_key,
            ledger_key=ledger_key,
            stored_bytes=0,
            writer_version="test",
        )
    )


def _record(dataset_id: str, data_type: str) -> DatasetRecord:
    def claim(field: str, value: Any, origin: Origin, where: str) -> Claim:
        evidence = Evidence(origin=origin, where=where, field=field, extractor="test", raw=value)
        return Claim(field=field, value=value, evidence=evidence)

    return DatasetRecord.resolve(
        dataset_id,
        REVISION,
        [
            claim("core.title", f"Title of {dataset_id}", Origin.PORTAL, "entry.json"),
            claim("core.data_type", data_type, Origin.FILE, "volume.tif"),
            claim("sample.organism", "Mus musculus", Origin.PORTAL, "entry.json"),
            claim("sample.organism", "Rattus norvegicus", Origin.CURATED, "paper.html"),
            claim("rights.licence", "CC0-1.0", Origin.PORTAL, "entry.json"),
        ],
    )
