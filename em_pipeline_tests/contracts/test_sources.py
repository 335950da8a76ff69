"""Every registered source, and the one that the documentation builds, keep the contract of a source."""

import pickle
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from em_pipeline.demo.replay import Replay, Trouble
from em_pipeline.domain.errors import InputRefused, NotFound, SourceUnavailable
from em_pipeline.domain.evidence import Origin
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.identity import check_dataset_id, check_revision
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.record import FIELD_NAMES, DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest import watch
from em_pipeline.sources.base import DescribingSource, HeldFile, PortalRecord, Source, WatchedSource
from em_pipeline.sources.registry import load_sources
from em_pipeline.storage.download import DownloadPolicy, download
from em_pipeline_tests.contracts.case import SourceCase
from em_pipeline_tests.contracts.cases import CASES

EVERY_TROUBLE = [(slug, trouble) for slug, case in CASES.items() for trouble in case.troubles]
LISTING = [slug for slug, case in CASES.items() if case.lists]


class Subject(NamedTuple):
    """A source under test and what is asked of it."""

    source: Source
    spec: DatasetSpec
    case: SourceCase
    portal: Replay


@pytest.fixture
def subject(slug: str, portal: Replay) -> Subject:
    case = CASES[slug]
    return Subject(case.make(portal), case.spec(portal), case, portal)


every_source = pytest.mark.parametrize("slug", CASES)


def test_every_registered_source_has_a_case() -> None:
    missing = set(load_sources()) - set(CASES)
    assert not missing, f"add em_pipeline_tests/contracts/case_<slug>.py for {sorted(missing)}"


@every_source
def test_it_is_a_source_with_a_plain_slug(slug: str, subject: Subject) -> None:
    source = subject.source
    assert isinstance(source, Source)
    assert source.slug == slug
    assert re.fullmatch(r"[a-z][a-z0-9]*", source.slug)
    assert source.institution == source.institution.lower().strip() != ""
    assert source.licence_policy.endswith(".")
    assert 1 <= source.max_connections <= 25
    assert source.requests_per_second is None or source.requests_per_second > 0


@every_source
def test_its_dataset_ids_begin_with_its_slug(subject: Subject) -> None:
    assert check_dataset_id(subject.spec.dataset_id).startswith(f"{subject.source.slug}-")


@every_source
def test_its_record_is_stable_and_resolves(subject: Subject) -> None:
    record = subject.source.fetch_record(subject.spec)
    assert record == subject.source.fetch_record(subject.spec)
    check_revision(record.revision)
    resolved = DatasetRecord.resolve(subject.spec.dataset_id, record.revision, record.claims)
    assert resolved.fields.core.title
    assert PortalRecord.model_validate_json(record.model_dump_json()) == record


@every_source
def test_its_claims_name_real_fields_and_real_places(subject: Subject) -> None:
    record = subject.source.fetch_record(subject.spec)
    for claim in record.claims:
        assert claim.field in FIELD_NAMES
        assert claim.evidence.where.startswith(("http://", "https://", "file://"))
        assert claim.evidence.field
        assert claim.evidence.raw is not None
        assert claim.evidence.extractor


def _was_asked(where: str, portal: Replay) -> bool:
    """Whether the portal was asked for what is at `where`, or, of a folder, for something in it."""
    if where.startswith("file://"):
        return Path(unquote(urlsplit(where).path)).exists()
    path = urlsplit(where).path
    asked = (one == path or one.startswith(f"{path.rstrip('/')}/") for one in portal.requests)
    return where.startswith(f"{portal.url}/") and any(asked)


@every_source
def test_its_claims_rest_on_what_was_asked_or_on_a_quoted_page(subject: Subject) -> None:
    for claim in subject.source.fetch_record(subject.spec).claims:
        evidence = claim.evidence
        if evidence.origin is Origin.CURATED:
            assert re.fullmatch(r"read on \d{4}-\d{2}-\d{2}", evidence.reason), claim
            assert isinstance(evidence.raw, str), claim
        else:
            assert _was_asked(evidence.where, subject.portal), claim


@every_source
def test_its_documents_have_plain_names(subject: Subject) -> None:
    for name in subject.source.fetch_record(subject.spec).documents:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)


@every_source
def test_its_files_are_sized_distinct_and_safe(subject: Subject) -> None:
    record = subject.source.fetch_record(subject.spec)
    files = subject.source.list_files(subject.spec, record)
    assert files
    assert len({file.path for file in files}) == len(files)
    for file in files:
        assert not PurePosixPath(file.path).is_absolute()
        assert ".." not in PurePosixPath(file.path).parts
        assert " " not in file.url
        assert file.size is not None or file.may_be_absent


@every_source
def test_its_files_follow_from_the_kept_record_alone(subject: Subject) -> None:
    record = subject.source.fetch_record(subject.spec)
    again = PortalRecord.model_validate_json(record.model_dump_json())
    other = subject.case.make(subject.portal)
    assert other.list_files(subject.spec, again) == subject.source.list_files(subject.spec, record)


def _held(subject: Subject, folder: Path) -> list[HeldFile]:
    """The files, downloaded."""
    source, spec = subject.source, subject.spec
    record = source.fetch_record(spec)
    policy = DownloadPolicy(connections=source.max_connections, retries=0)
    manifest = download(
        source.list_files(spec, record),
        folder,
        dataset_id=spec.dataset_id,
        revision=record.revision,
        policy=policy,
        progress=Silent(),
    )
    return [HeldFile(file, folder / file.path) for file in manifest.files]


@every_source
def test_its_volume_opens(subject: Subject, tmp_path: Path) -> None:
    files = _held(subject, tmp_path)
    with subject.source.open_volume(subject.spec, files) as volume:
        assert volume.shape == subject.case.shape
        box = subject.spec.bounding_box or BoundingBox.of_shape(volume.shape)
        corner = BoundingBox.at(box.start, Shape(*(min(n, 16) for n in box.shape)))
        voxels = volume.read(corner)
        assert voxels.any()
        # Another process that reaches the files can read them, too.
        sent = pickle.loads(pickle.dumps(volume))
        assert (sent.read(corner) == voxels).all()
        assert tuple(sent.missing) == tuple(volume.missing)
    images = subject.source.open_label_images(subject.spec, files)
    assert tuple(images) == subject.case.label_images
    for image in images.values():
        assert image.dtype.kind in "iu"
        image.close()


@every_source
def test_a_dataset_that_is_not_there_is_not_found(subject: Subject) -> None:
    with pytest.raises(NotFound):
        subject.source.fetch_record(subject.case.missing(subject.portal))


@every_source
@pytest.mark.parametrize("level", ["nonsense", 99])
def test_a_level_that_is_not_there_is_refused_before_anything_is_downloaded(
    level: int | str, subject: Subject
) -> None:
    spec = subject.spec.model_copy(update={"level": level, "bounding_box": None, "label_images": ()})
    with pytest.raises((InputRefused, NotFound)):
        subject.source.list_files(spec, subject.source.fetch_record(spec))


@pytest.mark.parametrize(("slug", "trouble"), EVERY_TROUBLE)
def test_trouble_is_an_outage(trouble: Trouble, subject: Subject) -> None:
    subject.portal.trouble(trouble)
    with pytest.raises(SourceUnavailable):
        subject.source.fetch_record(subject.spec)


@every_source
def test_a_refused_connection_is_an_outage(subject: Subject) -> None:
    subject.portal.stop()
    with pytest.raises(SourceUnavailable):
        subject.source.fetch_record(subject.spec)


@every_source
@pytest.mark.parametrize("trouble", [Trouble.RESET, Trouble.SERVER_ERROR])
def test_trouble_while_listing_files_is_an_outage(trouble: Trouble, subject: Subject) -> None:
    record = subject.source.fetch_record(subject.spec)
    subject.portal.trouble(trouble)
    with pytest.raises(SourceUnavailable):
        subject.source.list_files(subject.spec, record)


@pytest.mark.parametrize("slug", LISTING)
def test_its_listing_names_each_dataset_once(subject: Subject) -> None:
    listed = list(subject.source.list_datasets())
    assert listed == list(subject.source.list_datasets())
    assert len({ref.accession for ref in listed}) == len(listed) > 0
    assert subject.spec.accession in {ref.accession for ref in listed}
    for ref in listed:
        check_revision(ref.revision)
        DatasetSpec(source=subject.source.slug, accession=ref.accession)


@pytest.mark.parametrize("slug", [slug for slug in load_sources() if CASES[slug].lists])
def test_its_listing_can_be_watched(subject: Subject) -> None:
    assert isinstance(subject.source, WatchedSource), "give it a control_accession, for its sensor"
    listed = watch.whole_listing(subject.source)
    if isinstance(subject.source, DescribingSource):
        described = subject.source.describe([ref.accession for ref in listed])
        assert described.keys() == {ref.accession for ref in listed}
        for details in described.values():
            check_revision(details.revision)


@pytest.mark.parametrize("slug", LISTING)
def test_its_listing_knows_a_record_that_was_made_of_it(subject: Subject) -> None:
    """So that a sensor does not ask for what was ingested by hand."""
    (ref,) = (one for one in subject.source.list_datasets() if one.accession == subject.spec.accession)
    revision = ref.revision
    if isinstance(subject.source, DescribingSource):
        revision = subject.source.describe([ref.accession])[ref.accession].revision
    assert f"{subject.source.fetch_record(subject.spec).revision}-".startswith(f"{revision}-")


@pytest.mark.parametrize("slug", LISTING)
@pytest.mark.parametrize("trouble", [Trouble.RESET, Trouble.SERVER_ERROR, Trouble.HTML, Trouble.TRUNCATED])
def test_trouble_is_never_an_empty_listing(trouble: Trouble, subject: Subject) -> None:
    subject.portal.trouble(trouble)
    with pytest.raises(SourceUnavailable):
        list(subject.source.list_datasets())


@pytest.mark.parametrize("slug", [slug for slug, case in CASES.items() if not case.lists])
def test_a_source_without_listing_lists_nothing(subject: Subject) -> None:
    assert list(subject.source.list_datasets()) == []
