"""Claims made in a source's name, with their evidence filled in."""

from dataclasses import dataclass
from typing import Any

from em_pipeline.domain.evidence import Claim, Evidence, Origin
from em_pipeline.domain.spec import Curated


@dataclass(frozen=True)
class Claimant:
    """Makes claims that all rest on one document: a URL or file, read by one extractor."""

    where: str
    extractor: str
    origin: Origin = Origin.PORTAL

    def says(self, field: str, value: Any, at: str, raw: Any, reason: str = "") -> Claim:
        """`value` for the record's `field`, read as `raw` at the path `at` inside the document."""
        evidence = Evidence(
            origin=self.origin, where=self.where, field=at, extractor=self.extractor, raw=raw, reason=reason
        )
        return Claim(field=field, value=value, evidence=evidence)


def curated_claim(field: str, curated: Curated, extractor: str) -> Claim:
    """A person's reading, for the record's `field`, of a page about all of a portal's data.

    The page is not fetched, so whatever a portal or file says of one dataset outranks it.
    """
    claimant = Claimant(curated.page, extractor, Origin.CURATED)
    read = f"read on {curated.read_on}"
    return claimant.says(field, curated.value, curated.quote or field, curated.quote or curated.value, read)
