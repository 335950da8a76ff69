"""`em show`: what is said of how a dataset's portal was read."""

from pathlib import Path

import pytest

from em_pipeline.cli.catalogue import _shown
from em_pipeline.demo.epfl_portal import FOLDER, PAGE, EpflPortal
from em_pipeline.domain.evidence import Claim, Evidence, Origin
from em_pipeline.domain.record import DatasetRecord
from em_pipeline_tests.commands import em, run


@pytest.mark.integration
@pytest.mark.slow
def test_drift_of_a_portals_page_is_shown(
    environment: dict[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with EpflPortal(tmp_path_factory.getbasetemp() / "epfl") as portal:
        moved = portal.article().replace("testing.tif", "testing_v2.tif")
        portal.replace(PAGE, f"<html><title>T</title>{moved}</html>")
        bases = {f"EM_SOURCES__EPFL__{name.upper()}": base for name, base in portal.options.items()}
        em({**environment, **bases}, "ingest", "epfl-training")
    files = f"{portal.url}{FOLDER.replace(' ', '%20')}"
    assert em(environment, "show", "epfl-training")["portal"] == {
        "page": {
            "url": f"{portal.url}{PAGE}",
            "how": "as sent",
            "links_only_on_the_page": [f"{files}testing_v2.tif"],
            "links_not_on_the_page": [f"{files}testing.tif"],
        },
        "unavailable": {},
    }
    shown = run(environment, "em", "show", "epfl-training").stdout
    for what, found in (
        ("page", f"{portal.url}{PAGE}"),
        ("read", "as sent"),
        ("link only on the page", f"{files}testing_v2.tif"),
        ("link not on the page", f"{files}testing.tif"),
    ):
        assert any(line.split() == [*what.split(), *found.split()] for line in shown.splitlines()), what
    elsewhere = {**environment, "EM_STORE_URL": str(tmp_path / "another")}
    assert em(elsewhere, "show", "epfl-training")["portal"] is None


@pytest.mark.parametrize(("data_type", "low", "high"), [("uint64", 0, 7), ("float32", 3.06e-42, 6.8)])
def test_percentiles_of_integers_are_shown_as_integers(data_type: str, low: float, high: float) -> None:
    evidence = Evidence(origin=Origin.FILE, where="a.tif", field="IFD 0", extractor="test")
    claim = Claim(field="core.data_type", value=data_type, evidence=evidence)
    record = DatasetRecord.resolve("files-a", "r1", [claim])
    assert _shown("technical.statistics.p01", 3.06e-42, record) == low
    assert _shown("technical.statistics.p99", 6.8, record) == high
    assert _shown("technical.statistics.mean", 3.4, record) == 3.4
