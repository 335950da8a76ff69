"""EMPIAR's and its listings' real servers, a few kilobytes of each."""

from itertools import islice

import pytest

from em_pipeline.sources import biostudies, ebisearch
from em_pipeline.sources.empiar import EmpiarSource
from em_pipeline.sources.empiar_listing import ACCESSION, COLLECTION, DOMAIN
from em_pipeline.storage.http import PortalClient

pytestmark = pytest.mark.live

EBI = "https://www.ebi.ac.uk"


def test_entries_are_described_in_batches() -> None:
    described = EmpiarSource().describe(["11759"])
    assert described["11759"].methods == ("SBF-SEM",)
    assert described["11759"].size == 1_200_000_000


def test_biostudies_lists_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(biostudies, "PAGE_SIZE", 5)
    with PortalClient(connections=1) as client:
        hits = list(islice(biostudies.search(client, EBI, COLLECTION), 5))
    days = [hit.released for hit in hits if hit.released]
    assert len(days) == 5
    assert days == sorted(days, reverse=True)
    assert all(ACCESSION.match(hit.accession) for hit in hits)


def test_ebi_search_lists_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ebisearch, "PAGE_SIZE", 5)
    with PortalClient(connections=1) as client:
        hits = list(islice(ebisearch.search(client, EBI, DOMAIN), 5))
    assert all(ACCESSION.match(hit.accession) and hit.released for hit in hits)
