"""One name for each way to image, whatever a portal calls it."""

import pytest

from em_pipeline.domain.modality import NAMES, known_modality, modality


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("FIB-SEM", "FIB-SEM"),
        ("fibsem", "FIB-SEM"),
        ("Focused Ion Beam Scanning Electron Microscopy", "FIB-SEM"),
        ("focussed ion-beam scanning electron microscopy (FIB-SEM)", "FIB-SEM"),
        ("Focused ion beam milling SEM", "FIB-SEM"),
        ("enhanced FIB-SEM", "FIB-SEM"),
        ("Serial block-face scanning electron microscopy", "SBF-SEM"),
        ("serial block face electron microscopy (SBEM)", "SBF-SEM"),
        ("SBFSEM", "SBF-SEM"),
        ("automated tape-collecting ultramicrotome SEM", "ATUM-SEM"),
        ("Serial-section transmission electron microscopy", "ssTEM"),
        ("serial section SEM", "ssSEM"),
        ("serial section electron tomography", "ssET"),
        ("Array Tomography", "array tomography"),
        ("scanning electron microscopy (SEM)", "SEM"),
        ("scanning transmission electron microscopy", "STEM"),
        ("transmission electron microscopy", "TEM"),
    ],
)
def test_spellings(text: str, name: str) -> None:
    assert known_modality(text) == modality(text) == name


@pytest.mark.parametrize(
    "text", ["", "X-ray holographic nano-tomography", "FIB-SEM (TEM)", "SEM and TEM", "electron microscopy"]
)
def test_what_is_not_known_stays_as_found(text: str) -> None:
    assert known_modality(text) is None
    assert modality(text) == text


def test_names_are_their_own_names() -> None:
    assert {modality(name) for name in NAMES.values()} == set(NAMES.values())
