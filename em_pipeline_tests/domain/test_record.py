"""Claims become a record: who wins, what is a conflict, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from em_pipeline.domain.errors import RecordInvalid
from em_pipeline.domain.evidence import RANK, Claim, Evidence, Origin
from em_pipeline.domain.record import FIELD_NAMES, DatasetRecord, agree


def claim(field: str, value: object, origin: Origin) -> Claim:
    evidence = Evidence(origin=origin, where=f"{origin}.txt", field=field, extractor="test", raw=value)
    return Claim(field=field, value=value, evidence=evidence)


def test_the_file_beats_the_portal_and_the_conflict_is_kept() -> None:
    record = DatasetRecord.resolve(
        "empiar-1",
        "r1",
        [
            claim("core.volume_shape.y", 5632, Origin.PORTAL),
            claim("core.volume_shape.y", 5500, Origin.FILE),
        ],
    )
    assert record.fields.core.volume_shape.y == 5500
    (conflict,) = record.conflicts
    assert (conflict.kept.value, conflict.rejected.value) == (5500, 5632)
    assert "portal.txt" in str(conflict)


def test_what_is_said_twice_is_one_conflict() -> None:
    twice = [claim("core.data_type", "uint8", Origin.PORTAL)] * 2
    record = DatasetRecord.resolve("empiar-1", "r1", [*twice, claim("core.data_type", "int16", Origin.FILE)])
    assert len(record.conflicts) == 1


def test_an_override_beats_everything() -> None:
    claims = [claim("rights.licence", str(origin), origin) for origin in reversed(Origin)]
    record = DatasetRecord.resolve("empiar-1", "r1", claims)
    assert record.fields.rights.licence == Origin.OVERRIDE
    assert len(record.conflicts) == len(Origin) - 1


def test_every_value_has_a_claim() -> None:
    claims = [claim("core.title", "t", Origin.PORTAL), claim("core.voxel_size_nm.z", 50.0, Origin.FILE)]
    record = DatasetRecord.resolve("empiar-1", "r1", claims)
    for field in record.values():
        assert record.kept(field) is not None
    assert record.values() == {"core.title": "t", "core.voxel_size_nm.z": 50.0}
    assert 0 < record.completeness < 1


def test_rounding_is_no_conflict() -> None:
    assert agree(8.0, 7.998)
    assert not agree(8.0, 7.0)
    assert not agree(5500, 5501)
    assert agree("Danio  rerio", "danio rerio")


def test_a_modality_has_one_name_and_keeps_what_was_found() -> None:
    spelled = "focused ion beam scanning electron microscopy (FIB-SEM)"
    claims = [claim("core.modality", spelled, Origin.FILE), claim("core.modality", "fibsem", Origin.PORTAL)]
    unquoted = Claim(
        field="core.modality",
        value="FIB SEM",
        evidence=Evidence(origin=Origin.CURATED, where="page", field="p", extractor="test"),
    )
    record = DatasetRecord.resolve("a-1", "r", [*claims, unquoted])
    assert record.fields.core.modality == "FIB-SEM"
    assert [made.value for made in record.claims] == ["FIB-SEM"] * 3
    assert [made.evidence.raw for made in record.claims] == [spelled, "fibsem", "FIB SEM"]
    assert record.conflicts == ()


def test_an_absent_value_claims_nothing() -> None:
    record = DatasetRecord.resolve(
        "a-1", "r", [claim("core.title", None, Origin.FILE), claim("core.title", "t", Origin.PORTAL)]
    )
    assert record.fields.core.title == "t"
    assert not record.conflicts


def test_an_unknown_field_is_refused_with_its_extractor() -> None:
    with pytest.raises(RecordInvalid, match="test claims the field"):
        DatasetRecord.resolve("a-1", "r", [claim("core.tilte", "x", Origin.FILE)])


def test_a_value_of_the_wrong_type_names_its_source() -> None:
    with pytest.raises(RecordInvalid, match=r"core.volume_shape.y.*portal.txt"):
        DatasetRecord.resolve("a-1", "r", [claim("core.volume_shape.y", "many", Origin.PORTAL)])


def test_a_record_survives_its_json() -> None:
    record = DatasetRecord.resolve("a-1", "r", [claim("core.imaging_start_date", "2018-06-11", Origin.FILE)])
    assert DatasetRecord.model_validate_json(record.model_dump_json()) == record


def test_ranks_follow_the_declared_order() -> None:
    assert sorted(Origin, key=RANK.__getitem__) == [
        Origin.OVERRIDE,
        Origin.FILE,
        Origin.COMPUTED,
        Origin.PORTAL,
        Origin.CURATED,
    ]


def test_field_names_are_dotted_paths() -> None:
    assert {"core.voxel_size_nm.z", "rights.licence", "acquisition.dwell_time_us"} <= FIELD_NAMES


@pytest.mark.parametrize("wrong", [{"origin": "hearsay"}, {"where": Path("a.tif")}, {"reason": None}])
def test_evidence_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    given = {"origin": "file", "where": "a.tif", "field": "tag", "extractor": "test"}
    assert Evidence(**given).origin is Origin.FILE
    with pytest.raises(ValueError, match=r"hearsay|no text"):
        Evidence(**{**given, **wrong})


def test_a_claim_retold_keeps_what_it_says() -> None:
    made = claim("core.title", "t", Origin.FILE)
    told = made.told_by(Origin.PORTAL, "https://portal.example/info")
    assert (told.field, told.value, told.evidence.raw) == ("core.title", "t", "t")
    assert (told.evidence.origin, told.evidence.where) == (Origin.PORTAL, "https://portal.example/info")
