"""What is kept of a portal's answers, and what an outage may not take away."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from em_pipeline.demo.flyem_portal import FlyemPortal
from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.evidence import Origin
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.asked import Asked, spec_of
from em_pipeline.ingest.fetch import fetch
from em_pipeline.ingest.scrape import latest_portal_record, scrape
from em_pipeline.ingest.specs import known_specs
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.flyem import FlyemSource
from em_pipeline_tests.contracts.case_flyem import small_flyem

pytestmark = pytest.mark.integration
GRAYSCALE = "/api/node/"
SPEC = DatasetSpec(
    source="flyem",
    accession="hemibrain",
    dataset_id="flyem-hemibrain-test",
    bounding_box=BoundingBox.at((12000, 11000, 10000), (70, 60, 80)),
)


@pytest.fixture
def flyem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlyemPortal]:
    with small_flyem(tmp_path_factory.getbasetemp() / "flyem") as running:
        yield running


@pytest.fixture
def asking(workspace: Workspace, flyem: FlyemPortal) -> Workspace:
    return replace(
        workspace, sources={"flyem": FlyemSource(**flyem.options, timeout_s=5, retries=0, backoff_s=0)}
    )


def test_an_outage_takes_nothing_from_the_record_of_the_same_revision(
    asking: Workspace, flyem: FlyemPortal
) -> None:
    whole = scrape(asking, SPEC)
    assert any(conflict.field == "core.volume_shape.z" for conflict in whole.record.conflicts)
    flyem.trouble(Trouble.SERVER_ERROR, GRAYSCALE)
    again = scrape(asking, SPEC)
    assert again == whole
    assert latest_portal_record(asking, SPEC) == whole.portal


def test_what_was_down_is_added_once_it_answers(asking: Workspace, flyem: FlyemPortal) -> None:
    flyem.trouble(Trouble.SERVER_ERROR, GRAYSCALE, times=1)
    narrow = scrape(asking, SPEC)
    assert list(narrow.portal.unavailable) == ["dvid-grayscale"]
    assert narrow.record.conflicts == ()
    whole = scrape(asking, SPEC)
    assert whole.portal.revision == narrow.portal.revision
    assert latest_portal_record(asking, SPEC) == whole.portal != narrow.portal
    assert whole.record.conflicts


def test_what_changed_is_recorded_although_something_is_down(asking: Workspace, flyem: FlyemPortal) -> None:
    whole = scrape(asking, SPEC)
    flyem.trouble(Trouble.SERVER_ERROR, GRAYSCALE)
    moved = SPEC.model_copy(update={"bounding_box": BoundingBox.at((12000, 11000, 10001), (70, 60, 80))})
    assert scrape(asking, moved).portal.revision != whole.portal.revision
    assert latest_portal_record(asking, moved).unavailable


@pytest.mark.parametrize("asked", [Asked(box=SPEC.bounding_box, name="cube"), Asked(level=8)])
def test_a_part_rests_on_the_pages_that_are_curated_for_the_whole(asking: Workspace, asked: Asked) -> None:
    part = spec_of("flyem-hemibrain", asked, known_specs(asking.catalog), asking.sources)
    assert part.dataset_id != "flyem-hemibrain"
    record = scrape(asking, part).record
    assert record.fields.core.title == "hemibrain"
    for field in ("rights.doi", "rights.citation", "core.modality", "sample.organism", "sample.tissue"):
        claim = record.kept(field)
        assert claim is not None
        assert claim.evidence.origin is Origin.CURATED
        assert claim.evidence.where.startswith("https://")
        assert claim.evidence.reason.startswith("read on 2")
    assert record.fields.rights.licence is None


def test_the_whole_of_what_only_parts_are_taken_of_is_refused(asking: Workspace) -> None:
    whole = known_specs(asking.catalog)["flyem-hemibrain"]
    assert scrape(asking, whole).record.fields.core.volume_shape.z == 41394
    with pytest.raises(InputRefused, match="--roi z0:z1,y0:y1,x0:x1"):
        fetch(asking, whole)
