"""The pages of OpenOrganelle's site, rendered."""

from typing import Any

import pytest

from em_pipeline.demo.openorganelle_page import page
from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.sources.openorganelle_page import page_claims

URL = "https://openorganelle.janelia.org/datasets/jrc_mus-nacc-2"


def values(claims: list[Claim]) -> dict[str, Any]:
    return {claim.field: claim.value for claim in claims}


def test_every_value_in_the_units_of_a_record() -> None:
    claims = page_claims(URL, page("jrc_mus-nacc-2"), finest=True)
    assert values(claims) == {
        "core.title": "Mouse nucleus accumbens",
        "core.description": "Generated stand-in for a sample of mouse nucleus accumbens",
        "core.imaging_start_date": "2015-03-09",
        "acquisition.duration_days": 1.0,
        "acquisition.bias_v": 500.0,
        "acquisition.scan_rate_mhz": 0.4,
        "acquisition.beam_current_pa": 220.0,
        "acquisition.accelerating_voltage_kv": 0.2,
        "rights.doi": "10.25378/janelia.24222898",
        "rights.citation": "Xu et al., 2021, https://doi.org/10.1038/s41586-021-03992-4; "
        "Xu et al., 2017, https://doi.org/10.7554/eLife.25916; "
        "Wu et al., 2017, https://doi.org/10.1073/pnas.1701078114",
        "core.voxel_size_nm.x": 4.0,
        "core.voxel_size_nm.y": 4.0,
        "core.voxel_size_nm.z": 2.96,
    }
    DatasetRecord.resolve("openorganelle-x", "1", claims)


def test_the_voxel_size_is_of_the_finest_level_only() -> None:
    claims = page_claims(URL, page("jrc_mus-nacc-2"), finest=False)
    assert not [claim for claim in claims if claim.field.startswith("core.voxel_size_nm")]


def test_evidence_quotes_the_page() -> None:
    claims = page_claims(URL, page("jrc_mus-nacc-2"), finest=True)
    current = next(claim for claim in claims if claim.field == "acquisition.beam_current_pa")
    assert (current.evidence.where, current.evidence.raw) == (URL, "0.22")
    assert current.evidence.field == "FIB-SEM parameters / Current (nA)"


def test_what_is_unknown_is_not_claimed() -> None:
    said = values(page_claims(URL, page("jrc_mus-kidney"), finest=True))
    assert "acquisition.bias_v" not in said
    assert said["acquisition.accelerating_voltage_kv"] == 1.2


def test_a_doi_of_segmentations_is_not_that_of_the_micrographs() -> None:
    segmented = page("jrc_mus-nacc-2").replace("reconstructed FIB-SEM data", "Nuclei predictions")
    assert "rights.doi" not in values(page_claims(URL, segmented, finest=True))


@pytest.mark.parametrize(
    "html",
    [
        "",
        '<html><body><div id="root"></div><script src="app.js"></script></body></html>',
        "<!DOCTYPE html><title>Maintenance</title><p><strong>Bias (Volts)</strong>: 5</p>",
    ],
)
def test_a_page_that_is_not_rendered_says_nothing(html: str) -> None:
    assert page_claims(URL, html, finest=True) == []


@pytest.mark.parametrize(
    ("shown", "instead"),
    [
        ("Mon Mar 09 2015", "in spring"),
        ("(4, 4, 2.96) (x, y, z)", "4 nm"),
        ("(4, 4, 2.96) (x, y, z)", "(4, 4) (x, y, z)"),
        ("<strong>Current (nA)</strong>: 0.22", "<strong>Current (nA)</strong>: low"),
        ("Current (nA)", "Current (mA)"),
    ],
)
def test_what_cannot_be_read_is_not_claimed(shown: str, instead: str) -> None:
    whole = values(page_claims(URL, page("jrc_mus-nacc-2"), finest=True))
    assert shown in page("jrc_mus-nacc-2")
    said = values(page_claims(URL, page("jrc_mus-nacc-2").replace(shown, instead), finest=True))
    assert said.items() < whole.items()
