"""An outage at any moment of any source ends in a clear failure or a finished download, never in wrong data.

A moment is one request of a download that goes well. Troubles take turns at them, so that each request for a
record or a listing is spoilt by at least one, and of the files' requests some, spread over all of them.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from em_pipeline.demo.replay import Replay, Trouble
from em_pipeline.domain.errors import (
    EmError,
    InputRefused,
    NotFound,
    RecordInvalid,
    SourceUnavailable,
    UnsupportedFormat,
)
from em_pipeline.sources.base import DatasetRef, Source
from em_pipeline_tests.contracts.cases import CASES
from em_pipeline_tests.faults.subjects import HASTY_S, PATIENT_S, SUBJECTS, Held, Subject, hold, policy

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LISTING = [slug for slug, case in CASES.items() if case.lists and slug in SUBJECTS]
OUTAGES = tuple(trouble for trouble in Trouble if trouble is not Trouble.MISSING)
# What a server says that is whole, and wrong, can look like a changed dataset; it is never taken for data.
LIES = (Trouble.TRUNCATED, Trouble.LONGER)


@dataclass(frozen=True)
class Trial:
    """A subject, its running replay, and what it gives when all goes well: in how many requests, of which the
    first are those `asking` for the record and the listing."""

    subject: Subject
    portal: Replay
    clean: Held
    asking: int
    requests: int

    def moments(self, turn: int) -> list[int]:
        """How many requests go well before the one that is spoilt."""
        asked = {(2 * turn + n) % self.asking for n in range(2)}
        files = self.requests - self.asking
        return sorted({0, *asked, self.asking + 7 * turn % files, self.requests - 1})

    def hold(self, folder: Path, *, retries: int = 0, timeout_s: float = PATIENT_S) -> Held:
        source = self.subject.source(self.portal, retries=retries, timeout_s=timeout_s)
        limits = policy(retries=retries, timeout_s=timeout_s)
        return hold(source, self.subject.spec(self.portal), folder, limits)


@pytest.fixture(scope="module", params=SUBJECTS)
def trial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    subject = SUBJECTS[request.param]
    with subject.portal(tmp_path_factory.getbasetemp() / f"outages-{request.param}") as portal:
        source, spec = subject.source(portal), subject.spec(portal)
        source.list_files(spec, source.fetch_record(spec))
        asking = portal.requests.total()
        clean = hold(source, spec, tmp_path_factory.mktemp("clean"), policy())
        yield Trial(subject, portal, clean, asking, portal.requests.total() - asking)


def attempted(trial: Trial, trouble: Trouble, folder: Path, *, retries: int) -> Held | EmError:
    try:
        return trial.hold(
            folder, retries=retries, timeout_s=HASTY_S if trouble is Trouble.STALL else PATIENT_S
        )
    except EmError as error:
        return error


def check_mended(trial: Trial, folder: Path) -> None:
    """Once the portal is well again, the same folder is completed, to the same bytes."""
    trial.portal.heal()
    again = trial.hold(folder)
    assert again.record == trial.clean.record
    assert (again.sha256, again.absent) == (trial.clean.sha256, trial.clean.absent)
    shutil.rmtree(folder)


@pytest.mark.parametrize("trouble", OUTAGES)
def test_an_outage_that_lasts_is_a_failure_that_says_so(
    trial: Trial, trouble: Trouble, tmp_path: Path
) -> None:
    for moment in trial.moments(OUTAGES.index(trouble)):
        trial.portal.heal()
        trial.portal.trouble(trouble, after=moment)
        found = attempted(trial, trouble, tmp_path / "raw", retries=0)
        where = f"{trouble} from request {moment} of {trial.requests} on"
        if isinstance(found, Held):
            # Only what the source can do without may be missing, and nothing may be made up.
            assert (found.sha256, found.absent) == (trial.clean.sha256, trial.clean.absent), where
            assert all(claim in trial.clean.claims for claim in found.claims), where
        else:
            allowed = (SourceUnavailable, RecordInvalid) if trouble in LIES else SourceUnavailable
            assert isinstance(found, allowed), f"{where}: {found!r}"
        check_mended(trial, tmp_path / "raw")


@pytest.mark.parametrize("trouble", OUTAGES)
def test_an_outage_that_passes_is_survived(trial: Trial, trouble: Trouble, tmp_path: Path) -> None:
    for moment in trial.moments(len(OUTAGES) + OUTAGES.index(trouble)):
        trial.portal.heal()
        trial.portal.trouble(trouble, times=1, after=moment)
        found = attempted(trial, trouble, tmp_path / "raw", retries=3)
        where = f"{trouble} at request {moment} of {trial.requests}"
        if isinstance(found, Held):
            assert (found.sha256, found.absent) == (trial.clean.sha256, trial.clean.absent), where
            assert all(claim in trial.clean.claims for claim in found.claims), where
        else:
            # Whole documents and sizes are believed by those who ask; their checks come later.
            allowed = (SourceUnavailable, RecordInvalid) if trouble in LIES else SourceUnavailable
            assert isinstance(found, allowed), f"{where}: {found!r}"
            assert trouble in (*LIES, Trouble.HTML), f"{where} is not survived: {found!r}"
        check_mended(trial, tmp_path / "raw")


def test_what_is_said_to_be_missing_is_a_failure_or_named_as_absent(trial: Trial, tmp_path: Path) -> None:
    """A 404 is an answer. Of what was listed, it is an error; from a server without listings, it says which
    chunks were never written, and the manifest names them."""
    for moment in [*range(trial.asking), (trial.asking + trial.requests) // 2, trial.requests - 1]:
        trial.portal.heal()
        trial.portal.trouble(Trouble.MISSING, times=1, after=moment)
        found = attempted(trial, Trouble.MISSING, tmp_path / "raw", retries=0)
        where = f"404 at request {moment} of {trial.requests}"
        if isinstance(found, Held):
            lost = trial.clean.sha256.keys() - found.sha256.keys()
            assert lost == found.absent - trial.clean.absent, where
            assert lost <= trial.clean.optional, where
            assert found.sha256.items() <= trial.clean.sha256.items(), where
            # Without its page, a dataset is called by its own name.
            new = {claim.field for claim in found.claims if claim not in trial.clean.claims}
            assert new <= {"core.title"}, where
        else:
            expected = (NotFound, RecordInvalid, InputRefused, UnsupportedFormat, SourceUnavailable)
            assert isinstance(found, expected), f"{where}: {found!r}"
        shutil.rmtree(tmp_path / "raw", ignore_errors=True)


def test_a_refused_connection_is_an_outage_at_every_step(trial: Trial, tmp_path: Path) -> None:
    portal, folder = trial.portal, tmp_path / "raw"
    source, spec = trial.subject.source(portal), trial.subject.spec(portal)
    portal.heal()
    with portal.refusing(), pytest.raises(SourceUnavailable):
        source.fetch_record(spec)
    with portal.refusing(), pytest.raises(SourceUnavailable):
        source.list_files(spec, trial.clean.record)
    check_mended(trial, folder)


def listed(source: Source) -> list[DatasetRef] | EmError:
    """In no service's order: where one fails, another may stand in for it."""
    try:
        return sorted(source.list_datasets(), key=lambda ref: ref.accession)
    except EmError as error:
        return error


@pytest.mark.parametrize("slug", LISTING)
@pytest.mark.parametrize("trouble", [*OUTAGES, Trouble.MISSING])
def test_a_listing_comes_whole_or_not_at_all(
    slug: str, trouble: Trouble, tmp_path_factory: pytest.TempPathFactory
) -> None:
    subject = SUBJECTS[slug]
    with subject.portal(tmp_path_factory.getbasetemp() / f"outages-{slug}") as portal:
        whole = listed(subject.source(portal))
        assert isinstance(whole, list)
        requests = portal.requests.total()
        source = subject.source(portal, timeout_s=HASTY_S if trouble is Trouble.STALL else PATIENT_S)
        for moment in range(requests):
            portal.heal()
            portal.trouble(trouble, times=1, after=moment)
            where = f"{trouble} at request {moment} of {requests}"
            found = listed(source)
            if isinstance(found, EmError):
                assert isinstance(found, SourceUnavailable) or trouble in (*LIES, Trouble.MISSING), where
            else:
                # A size that is a lie is another revision, until it is asked for again.
                assert found == whole or trouble in LIES, where
                assert [ref.accession for ref in found] == [ref.accession for ref in whole], where
