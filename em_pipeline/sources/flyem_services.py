"""FlyEM's servers beside the bucket: DVID, which versions the volumes, and neuPrint, the connectome.

None of them is needed to hold the volume, and neuPrint's list is known to answer 500. So what they say is
evidence where they answer, and `unavailable` tells where they did not. An ingest then keeps the record of the
same revision that it made when they did (`PortalRecord.unavailable`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from em_pipeline.domain.errors import EmError, InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.domain.evidence import Claim
from em_pipeline.formats.dvid import parse_instance
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.documents import JsonDocument, fetch_json
from em_pipeline.sources.flyem_dvid import sized_claims
from em_pipeline.storage.http import PortalClient

EXTRACTOR = "em_pipeline.sources.flyem"
# Failed requests are repeated so often at most: neuPrint may answer 500 for days.
RETRIES = 2
# What a server may do to a document that nobody needs: fail, refuse, lack it, or answer something else.
NO_ANSWER = (SourceUnavailable, NotFound, InputRefused, RecordInvalid)


@dataclass
class Said:
    """Answers of optional services: documents by file name, claims, facts, and what did not answer."""

    documents: dict[str, str] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def ask(self, client: PortalClient, name: str, url: str) -> JsonDocument | None:
        """The document, None where there is no answer, which is then noted."""
        try:
            return fetch_json(client, url)
        except NO_ANSWER as error:
            self.note(name, error)
            return None

    def note(self, name: str, error: EmError) -> None:
        self.unavailable[name] = str(error)


def ask_services(
    client: PortalClient, dvid: str, grayscale: str, neuprint: str, dataset: str, *, finest: bool
) -> Said:
    """What DVID says of the grey values and their repository, and neuPrint of the dataset.

    `dvid` and `neuprint` are bases of servers, `grayscale` the URL of DVID's instance.

    DVID's sizes are claimed only for the `finest` level, which they are of. They differ from those of the
    bucket's volume, which is another product; the record then shows both.
    """
    said = Said()
    if document := said.ask(client, "dvid-grayscale", f"{grayscale}/info"):
        try:
            instance = parse_instance(document.text, document.url)
        except EmError as error:
            said.note("dvid-grayscale", error)
        else:
            said.documents["dvid-grayscale.json"] = document.text
            said.claims += sized_claims(instance, document.url) if finest else []
    if document := said.ask(client, "dvid-repositories", f"{dvid}/api/repos/info"):
        said.claims += _alias_claims(document, dataset)
    if document := said.ask(client, "neuprint", f"{neuprint}/api/dbmeta/datasets"):
        said.facts["neuprint"] = _releases(document, dataset)
    return said


def _alias_claims(document: JsonDocument, dataset: str) -> Iterator[Claim]:
    """The repository that DVID calls by the dataset's name: one server has many."""
    repositories = document.value if isinstance(document.value, dict) else {}
    for root, repository in repositories.items():
        alias = repository.get("Alias") if isinstance(repository, dict) else None
        if isinstance(alias, str) and alias.casefold() == dataset:
            yield Claimant(document.url, EXTRACTOR).says("core.title", alias, f"{root}.Alias", alias)


def _releases(document: JsonDocument, dataset: str) -> dict[str, Any]:
    """neuPrint's entries of the dataset, by name (`hemibrain:v1.2.1`), without their long lists."""
    entries = document.value if isinstance(document.value, dict) else {}
    return {
        name: {key: value for key, value in entry.items() if isinstance(value, str | bool)}
        for name, entry in sorted(entries.items())
        if name.partition(":")[0] == dataset and isinstance(entry, dict)
    }
