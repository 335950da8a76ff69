"""What a person sees of each step."""

from pathlib import Path

import numpy as np
import pytest

from em_pipeline.assets.shown import written_metadata
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.rechunk import WrittenVolume
from em_pipeline.volumes.statistics import VolumeStatistics, measure


@pytest.mark.parametrize(("seconds", "speed"), [(0.0, 0.0), (2.0, 1.5)])
def test_speed_of_a_volume_also_where_an_earlier_run_completed_it(seconds: float, speed: float) -> None:
    summary, histogram = measure(np.zeros((1, 1, 1), np.uint8))
    written = WrittenVolume(
        volume=LocalBlobs(Path("v")),
        ledger="l",
        ledger_sha256="0" * 64,
        statistics=VolumeStatistics(**vars(summary), dtype=np.dtype(np.uint8), histogram=histogram),
        levels=(),
        chunks={},
        bytes_stored=1,
        bytes_read=int(seconds * 1_500_000),
        seconds=seconds,
    )
    assert written_metadata(written)["mb_per_s"].value == speed
