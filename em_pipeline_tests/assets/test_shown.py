"""What a person sees of each step."""

from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from em_pipeline.assets.shown import plan_metadata, written_metadata
from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.memory import Means
from em_pipeline.volumes.plan import plan_rechunk
from em_pipeline.volumes.plan_report import report
from em_pipeline.volumes.rechunk import WrittenVolume
from em_pipeline.volumes.statistics import VolumeStatistics, measure


@pytest.mark.parametrize(("seconds", "speed"), [(0.0, 0.0), (2.0, 1.5)])
def test_speed_of_a_volume_also_where_an_earlier_run_completed_it(seconds: float, speed: float) -> None:
    summary, histogram = measure(np.zeros((1, 1, 1), np.uint8))
    written = WrittenVolume(
        volume=LocalBlobs(Path("v")),
        ledger="ledger.parquet",
        ledger_sha256="0" * 64,
        statistics=VolumeStatistics(**vars(summary), dtype=np.dtype(np.uint8), histogram=histogram),
        levels=(),
        chunks={},
        bytes_stored=1,
        bytes_read=int(seconds * 1_500_000),
        seconds=seconds,
    )
    assert written_metadata(written)["mb_per_s"].value == speed


def test_a_plan_is_shown_with_its_levels() -> None:
    plan = plan_rechunk(
        Shape(100, 300, 300), "uint8", VoxelSize(z=20, y=5, x=5), source_chunk=Shape(1, 1, 300),
        means=Means(1 << 28, threads=2),
    )  # fmt: skip
    shown = plan_metadata(report(plan))
    assert shown["planned_read_bytes"].value == 100 * 300 * 300
    assert shown["planned_threads"].value == 2
    table = shown["plan"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data["halved"] for record in table.records] == ["yx", "yx", ""]
    assert [record.data["held"] for record in table.records] == [3, 3, 3]
