"""EMPIAR's listing, by BioStudies and by EBI Search: paging, positive controls, dates, who stands in."""

import json
from datetime import date, timedelta

import pytest

from em_pipeline.demo.portal import EBI_SEARCH, DemoPortal
from em_pipeline.demo.portal_entries import rest_answer
from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.sources import biostudies, ebisearch
from em_pipeline.sources.biostudies import Hit
from em_pipeline.sources.empiar import EmpiarSource
from em_pipeline.sources.empiar_listing import COLLECTION, size_in_bytes
from em_pipeline.storage.http import PortalClient

# A space too many after a JSON document changes nothing.
SEEN_IN_A_DOCUMENT = [trouble for trouble in Trouble if trouble is not Trouble.LONGER]
SEARCH = f"/biostudies/api/v1/{COLLECTION}/search"
BATCH = "/empiar/api/entry/"
NEWEST = date(2026, 1, 1)


def found(portal: DemoPortal, collection: str = COLLECTION) -> list[Hit]:
    with PortalClient(connections=1, retries=0) as client:
        return list(biostudies.search(client, portal.url, collection))


def serve(portal: DemoPortal, count: int, *, total: int | None = None) -> None:
    """One answer to every page: `count` hits, a day apart, `total` announced."""
    hits = [
        {"accession": f"EMPIAR-{10000 + n}", "title": "t", "release_date": str(NEWEST - timedelta(days=n))}
        for n in range(count)
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
    hits = [{"accession": a, "title": "t", "release_date": "2024-01-01"} for a in ("S-BIAD1", "EMPIAR-11759")]
    portal.replace(SEARCH, json.dumps({"totalHits": 2, "hits": hits}))
    assert [ref.accession for ref in empiar.list_datasets()] == ["11759"]


def test_a_hit_without_date_is_listed(empiar: EmpiarSource, portal: DemoPortal) -> None:
    portal.replace(SEARCH, json.dumps({"totalHits": 1, "hits": [{"accession": "EMPIAR-11759"}]}))
    assert found(portal) == [Hit("EMPIAR-11759", "", None)]
    assert [ref.released for ref in empiar.list_datasets(NEWEST)] == [None]


class TestEbiSearch:
    """The second listing."""

    @pytest.mark.parametrize("trouble", SEEN_IN_A_DOCUMENT)
    def test_it_stands_in_for_biostudies(self, trouble: Trouble, portal: DemoPortal) -> None:
        whole = list(EmpiarSource(**portal.options, retries=0).list_datasets())
        patience_s = 2 if trouble is Trouble.STALL else 20  # longer than a busy machine is silent
        empiar = EmpiarSource(**portal.options, timeout_s=patience_s, retries=0, backoff_s=0)
        portal.trouble(trouble, SEARCH)
        stood_in = list(empiar.list_datasets())
        assert portal.requests[EBI_SEARCH] == 1
        assert sorted(stood_in, key=lambda ref: ref.accession) == sorted(whole, key=lambda ref: ref.accession)

    def test_it_stands_in_for_a_listing_without_the_control(
        self, empiar: EmpiarSource, portal: DemoPortal
    ) -> None:
        serve(portal, 3)
        assert "11759" in [ref.accession for ref in empiar.list_datasets()]

    def test_both_down_is_an_outage_that_names_both(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        portal.trouble(Trouble.UNAVAILABLE)
        with pytest.raises(SourceUnavailable, match=r"BioStudies.*503.*EBI Search.*503"):
            list(empiar.list_datasets())

    def test_neither_may_lack_the_control(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        serve(portal, 3)
        entries = [{"id": "EMPIAR-10001", "fields": {}}]
        portal.replace(EBI_SEARCH, json.dumps({"hitCount": 1, "entries": entries}))
        with pytest.raises(SourceUnavailable, match=r"EMPIAR-11759, which exists"):
            list(empiar.list_datasets())

    def test_pages_are_read_to_the_end(self, portal: DemoPortal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ebisearch, "PAGE_SIZE", 2)
        assert len(self.found(portal)) == 3
        assert portal.requests[EBI_SEARCH] == 2

    @pytest.mark.parametrize(
        "text",
        [
            '{"hitCount": 0, "entries": []}',
            '{"hitCount": 9, "entries": [{"id": "EMPIAR-10001"}]}',
            '{"entries": []}',
            "[]",
            '{"hitCount": 1, "entries": [{}]}',
        ],
    )
    def test_nothing_or_too_little_or_another_shape_is_an_outage(self, text: str, portal: DemoPortal) -> None:
        portal.replace(EBI_SEARCH, text)
        with pytest.raises(SourceUnavailable):
            self.found(portal)

    def test_dates_in_either_form(self, portal: DemoPortal) -> None:
        dates = ["20240115", "2024-01-15", "soon"]
        entries = [
            {"id": f"EMPIAR-1000{n}", "fields": {"release_date": [day]}} for n, day in enumerate(dates)
        ]
        portal.replace(EBI_SEARCH, json.dumps({"hitCount": 3, "entries": entries}))
        assert [hit.released for hit in self.found(portal)] == [date(2024, 1, 15), date(2024, 1, 15), None]

    def found(self, portal: DemoPortal) -> list[Hit]:
        with PortalClient(connections=1, retries=0) as client:
            return list(ebisearch.search(client, portal.url, "empiar"))


class TestDescribe:
    """Details of many entries at once."""

    def test_what_one_chooses_by(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        described = empiar.describe(["99001", "11759"])
        assert list(described) == ["99001", "11759"]
        retina = described["11759"]
        assert (retina.methods, retina.size, retina.licence) == (("SBF-SEM",), 1_200_000_000, "CC0-1.0")
        assert (retina.revision, retina.available) == ("2024-01-15", True)
        assert [one.category for one in retina.image_sets] == ["reconstructed volumes"]
        assert portal.requests[BATCH] == 1

    def test_an_entry_without_record_is_left_out(self, empiar: EmpiarSource) -> None:
        assert list(empiar.describe(["10001", "99002"])) == ["99002"]

    @pytest.mark.parametrize("text", ["{}", "[]", '{"EMPIAR-99002": {}}', "null"])
    def test_an_answer_without_the_control_is_an_outage(
        self, text: str, empiar: EmpiarSource, portal: DemoPortal
    ) -> None:
        portal.replace(BATCH, text)
        with pytest.raises(SourceUnavailable):
            empiar.describe(["99002"])

    @pytest.mark.parametrize("trouble", [t for t in SEEN_IN_A_DOCUMENT if t is not Trouble.MISSING])
    def test_trouble_is_an_outage(self, trouble: Trouble, portal: DemoPortal) -> None:
        portal.trouble(trouble, BATCH)
        with pytest.raises(SourceUnavailable):
            EmpiarSource(**portal.options, timeout_s=1, retries=0, backoff_s=0).describe(["99002"])

    def test_an_entry_without_fields_is_an_outage(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        answers = {}
        for entry in portal.entries:
            answers |= rest_answer(entry)
        portal.replace(BATCH, json.dumps(answers | {"EMPIAR-99002": {}}))
        with pytest.raises(SourceUnavailable, match="nothing is said of EMPIAR-99002"):
            empiar.describe(["99001", "99002", "11759"])

    def test_an_entry_under_embargo_is_not_available(self, empiar: EmpiarSource, portal: DemoPortal) -> None:
        answers = {}
        for entry in portal.entries:
            answers |= rest_answer(entry)
        answers["EMPIAR-99002"]["status"] = "HPUB"
        answers["EMPIAR-99001"]["imagesets"] = []
        portal.replace(BATCH, json.dumps(answers))
        described = empiar.describe(["99001", "99002", "11759"])
        assert [details.available for details in described.values()] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.2 GB", 1_200_000_000),
        ("680.5 MB", 680_500_000),
        ("3 TB", 3 * 10**12),
        ("12 B", 12),
        ("big", None),
        ("", None),
    ],
)
def test_sizes_as_entries_state_them(text: str, size: int | None) -> None:
    assert size_in_bytes(text) == size
