"""Ids, specs and file names: what may become a folder, a URL or a partition."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from em_pipeline.domain.errors import EmError, InputRefused
from em_pipeline.domain.files import Manifest, RawFile, RemoteFile
from em_pipeline.domain.identity import DATASET_ID, check_dataset_id, dataset_id, short_hash
from em_pipeline.domain.report import CheckResult, Severity, ValidationReport
from em_pipeline.domain.spec import DatasetSpec


@pytest.mark.parametrize(
    ("source", "accession", "expected"),
    [
        ("empiar", "EMPIAR-11759", "empiar-11759"),
        ("empiar", "11759", "empiar-11759"),
        ("idr", "9846137", "idr-9846137"),
        ("openorganelle", "jrc_mus-nacc-2", "openorganelle-jrc_mus-nacc-2"),
        ("files", "My Stack (3).tif", "files-my-stack-3-.tif"),
    ],
)
def test_dataset_ids(source: str, accession: str, expected: str) -> None:
    assert dataset_id(source, accession) == expected


@given(st.text(max_size=60))
def test_an_id_is_safe_or_refused(accession: str) -> None:
    try:
        made = dataset_id("files", accession)
    except InputRefused:
        return
    assert DATASET_ID.match(made)
    assert "/" not in made
    assert ".." not in made


@pytest.mark.parametrize("bad", ["", "empiar", "../x", "empiar-../x", "Empiar-1", "empiar-", "empiar-a..b"])
def test_what_is_no_id_is_refused(bad: str) -> None:
    with pytest.raises(InputRefused):
        check_dataset_id(bad)


def test_hash_parts_do_not_run_together() -> None:
    assert short_hash("ab", "c") != short_hash("a", "bc")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a\\b", "a\0b"])
def test_a_file_name_cannot_leave_its_folder(path: str) -> None:
    with pytest.raises(ValidationError):
        RemoteFile(url="https://host/x", path=path)


def test_the_manifest_digest_is_of_contents_not_of_order() -> None:
    files = [RawFile(url="https://h/a", path=name, size=1, sha256=name * 64) for name in "ab"]
    one = Manifest(dataset_id="a-1", revision="r", files=tuple(files))
    two = Manifest(dataset_id="a-1", revision="r", files=tuple(reversed(files)))
    assert one.digest == two.digest
    changed = files[0].model_copy(update={"sha256": "c" * 64})
    assert one.digest != Manifest(dataset_id="a-1", revision="r", files=(changed, files[1])).digest


def test_a_spec_names_itself_and_knows_its_fields() -> None:
    spec = DatasetSpec(source="empiar", accession="11759")
    assert spec.dataset_id == "empiar-11759"
    assert DatasetSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError, match="not a field of a record"):
        DatasetSpec(
            source="empiar", accession="1", overrides={"core.tilte": {"value": 1, "reason": "because"}}
        )
    with pytest.raises(ValidationError, match="does not begin with its source"):
        DatasetSpec(source="empiar", accession="1", dataset_id="idr-1")


def test_a_report_without_checks_has_not_passed() -> None:
    report = ValidationReport(dataset_id="a-1", version="v", ledger_sha256="0", checks=())
    assert not report.passed


def test_only_blocking_checks_decide() -> None:
    good = CheckResult(name="stored", passed=True, message="")
    warning = CheckResult(name="contrast", passed=False, severity=Severity.WARNING, message="")
    report = ValidationReport(dataset_id="a-1", version="v", ledger_sha256="0", checks=(good, warning))
    assert report.passed
    assert not report.failures


def test_every_error_has_its_own_slug_and_exit_code() -> None:
    kinds = [kind for kind in EmError.__subclasses__() if kind.__module__ == EmError.__module__]
    assert len({kind.slug for kind in kinds}) == len(kinds)
    assert all(400 <= kind.status < 600 for kind in kinds)
    assert str(kinds[0]("Tried", "found", "Do")) == "Tried: found. Do"


def test_a_name_that_is_not_utf8_has_a_hash() -> None:
    assert short_hash("bad\udcff.tif") != short_hash("bad\udcfe.tif")
    assert short_hash("é") == hashlib.sha256("é\0".encode()).hexdigest()[:12]
