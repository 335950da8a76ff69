"""EMPIAR's listing, as BioStudies searches it: paging, positive controls, dates."""

import json
from datetime import date, timedelta

import pytest

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.sources import biostudies
from em_pipeline.sources.biostudies import Hit
from em_pipeline.sources.empiar import COLLECTION, EmpiarSource
from em_pipeline.storage.http import PortalClient

SEARCH = f"/biostudies/api/v1/{COLLECTION}/search"
NEWEST = date(2026, 1, 1)


def found(portal: DemoPortal, collection: str = COLLECTION, since: date | None = None) -> list[Hit]:
    with PortalClient(connections=1, retries=0) as client:
        return list(biostudies.search(client, portal.url, collection, since))


def serve(portal: DemoPortal, count: int, *, total: int | None = None, sort: int = 1) -> None:
    """One answer to every page: `count` hits, a day apart, `total` announced."""
    days = [NEWEST - timedelta(days=n) for n in range(count)][::sort]
    hits = [
        {"accession": f"EMPIAR-{10000 + n}", "title": "t", "release_date": str(day)}
        for n, day in enumerate(days)
    ]
    portal.replace(SEARCH, json.dumps({"totalHits": total or count, "isTotalHitsExact": True, "hits": hits}))


def test_newest_first_with_revisions(empiar: EmpiarSource) -> None:
    refs = list(empiar.list_datasets())
    assert [ref.accession for ref in refs] == ["99002", "99001", "11759"]
    assert refs[-1].released == date(2024, 1, 15)
    assert refs[-1].revision.startswith("2024-01-15-")


def test_since_is_inclusive(empiar: EmpiarSource) -> None:
    assert [ref.accession for ref in empiar.list_datasets(date(2025, 3, 3))] == ["99002", "99001"]
    assert list(empiar.list_datasets(date(2026, 3, 3))) == []


def test_pages_are_read_to_the_end(portal: DemoPortal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(biostudies, "PAGE_SIZE", 2)
    assert len(found(portal)) == 3
    assert portal.requests[SEARCH] == 2


def test_pages_beyond_since_are_not_asked_for(portal: DemoPortal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(biostudies, "PAGE_SIZE", 1)
    assert len(found(portal, since=date(2025, 4, 1))) == 1
    assert portal.requests[SEARCH] == 2


def test_a_listing_out_of_order_is_not_cut_short(portal: DemoPortal) -> None:
    serve(portal, 5, sort=-1)
    assert len(found(portal, since=NEWEST - timedelta(days=1))) == 2


def test_a_wrong_collection_is_an_outage(portal: DemoPortal) -> None:
    with pytest.raises(SourceUnavailable, match="no entry at all"):
        found(portal, collection="BioImages-EMPAIR")


def test_a_listing_that_ends_early_is_an_outage(portal: DemoPortal) -> None:
    serve(portal, 5, total=9)
    with pytest.raises(SourceUnavailable, match="announced 9 entries and ended after 5"):
        found(portal)


@pytest.mark.parametrize(
    "text", ['{"hits": []}', "[]", '{"totalHits": 1, "hits": [{}]}', '{"totalHits": null}']
)
def test_another_shape_is_an_outage(text: str, portal: DemoPortal) -> None:
    portal.replace(SEARCH, text)
    with pytest.raises(SourceUnavailable):
        found(portal)


def test_hits_of_other_archives_are_left_out(empiar: EmpiarSource, portal: DemoPortal) -> None:
    hits = [{"accession": a, "title": "t", "release_date": "2024-01-01"} for a in ("S-BIAD1", "EMPIAR-10001")]
    portal.replace(SEARCH, json.dumps({"totalHits": 2, "hits": hits}))
    assert [ref.accession for ref in empiar.list_datasets()] == ["10001"]


def test_a_hit_without_date_is_listed(portal: DemoPortal) -> None:
    portal.replace(SEARCH, json.dumps({"totalHits": 1, "hits": [{"accession": "EMPIAR-10001"}]}))
    assert found(portal, since=NEWEST) == [Hit("EMPIAR-10001", "", None)]
