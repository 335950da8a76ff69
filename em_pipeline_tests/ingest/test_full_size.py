"""EMPIAR-11759 at its real size: 16 DM3 slices of 5500 × 5496, in a portal that claims 5632 × 5628."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.ingest.build import current_build, open_source_volume
from em_pipeline.ingest.fetch import latest_manifest
from em_pipeline.ingest.specs import find_spec
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.registry import load_sources
from em_pipeline.volumes.conformance import read_elsewhere
from em_pipeline_tests.ingest.chain import run_chain

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SHAPE = (16, 5500, 5496)


def test_empiar_11759_at_full_size(tmp_path: Path, workspace: Workspace) -> None:
    with DemoPortal(tmp_path / "portal", retina_shape=SHAPE) as portal:
        full = replace(workspace, sources=load_sources({"empiar": portal.options}))
        spec = find_spec(full.catalog, "empiar-11759")
        assert run_chain(full, spec).changed
        assert sum(n for path, n in portal.requests.items() if path.endswith(".dm3")) <= 16 * 10
    detail = full.catalog.dataset("empiar-11759")
    assert detail.summary.shape == SHAPE
    assert detail.summary.data_type == "uint8"
    assert list(detail.summary.voxel_size_nm or ()) == pytest.approx(
        [50, 7.998250424861908, 7.998250424861908]
    )
    rejected = {(c.field, c.rejected.value) for c in detail.conflicts}
    assert {("core.volume_shape.y", 5632), ("core.volume_shape.x", 5628)} <= rejected
    built = current_build(full, spec)
    corner = BoundingBox.at((3, 5400, 5390), (13, 100, 106))
    with open_source_volume(full, spec, latest_manifest(full, spec)) as volume:
        np.testing.assert_array_equal(
            read_elsewhere(built.files.image().volume, "0", corner), volume.read(corner)
        )
