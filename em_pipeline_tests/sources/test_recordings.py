"""EMPIAR's own answers, as recorded, give the right claims."""

import json
from pathlib import Path
from typing import Any

import pytest
from defusedxml import ElementTree

from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.sources.claimant import curated_claim
from em_pipeline.sources.empiar_claims import LICENCE, claims_of
from em_pipeline.sources.empiar_entry import from_rest, from_xml

pytestmark = pytest.mark.shared_data

RETINA = {
    "core.unit": "Å",
    "core.title": "Developing retina in zebrafish 55 hpf larval eye.",
    "core.volume_shape.z": 16,
    "core.volume_shape.y": 5632,
    "core.volume_shape.x": 5628,
    "core.voxel_size_nm.z": 50.0,
    "core.voxel_size_nm.y": 8.0,
    "core.voxel_size_nm.x": 8.0,
    "core.data_type": "uint8",
    "core.modality": "SBF-SEM",
    "technical.file_format": "DM3",
    "acquisition.accelerating_voltage_kv": 1.9,
    "acquisition.beam_current_pa": 200.0,
    "acquisition.dwell_time_us": 0.5,
    "acquisition.microscope": "FEI Magellan400",
    "sample.organism": "Danio rerio",
    "sample.tissue": "retina",
    "rights.doi": "10.6019/EMPIAR-11759",
    "rights.citation": (
        "Wilsch-Bräuninger M (2024). Developing retina in zebrafish 55 hpf larval eye. EMPIAR. "
        "https://doi.org/10.6019/EMPIAR-11759"
    ),
}


def values(claims: list[Claim]) -> dict[str, Any]:
    return {claim.field: claim.value for claim in claims}


def rest_claims(recordings: Path) -> list[Claim]:
    text = (recordings / "empiar" / "api_entry_EMPIAR-11759.recorded.json").read_text()
    return claims_of(from_rest("https://rest", "11759", json.loads(text)), 0, "test")


def xml_claims(recordings: Path, name: str) -> list[Claim]:
    root = ElementTree.fromstring((recordings / "empiar" / name).read_text())
    return claims_of(from_xml("https://xml", root), 0, "test")


def test_the_rest_answer_of_11759(recordings: Path) -> None:
    found = values(rest_claims(recordings))
    assert found.pop("core.description").startswith("Developing retina")
    assert found == RETINA


def test_the_header_of_11759(recordings: Path) -> None:
    found = values(xml_claims(recordings, "11759.reconstructed.xml"))
    assert found.pop("core.description").startswith("Developing retina")
    assert found == RETINA


def test_both_documents_of_11759_agree(recordings: Path) -> None:
    claims = [
        *rest_claims(recordings),
        *xml_claims(recordings, "11759.reconstructed.xml"),
        curated_claim("rights.licence", LICENCE, "t"),
    ]
    resolved = DatasetRecord.resolve("empiar-11759", "r", claims)
    assert resolved.conflicts == ()
    assert resolved.fields.rights.licence == "CC0-1.0"


def test_the_header_of_10934(recordings: Path) -> None:
    """Movies of single particles: no volume, so the number of images is no depth."""
    found = values(xml_claims(recordings, "10934.xml"))
    assert found.pop("core.description").startswith("The given pixel size")
    assert found.pop("rights.citation").endswith(
        "Cryo-EM structure of human Pol κ bound to DNA and mono-ubiquitylated PCNA. Nature communications. "
        "https://doi.org/10.1038/s41467-021-26251-6"
    )
    assert found == {
        "core.title": "Cryo-EM multiframe micrographs of human Pol kappa complexed with DNA and "
        "monoubiquitylated PCNA",
        "core.volume_shape.y": 8184,
        "core.volume_shape.x": 11520,
        "core.voxel_size_nm.y": pytest.approx(0.0543),
        "core.voxel_size_nm.x": pytest.approx(0.0543),
        "core.unit": "Å",
        "core.data_type": "uint8",
        "technical.file_format": "TIFF",
        "acquisition.microscope": "FEI Titan Krios G3",
        "sample.organism": "Homo sapiens",
        "rights.doi": "10.6019/EMPIAR-10934",
    }
