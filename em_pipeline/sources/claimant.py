"""Claims made in a source's name, with their evidence filled in."""

from dataclasses import dataclass
from typing import Any

from em_pipeline.domain.evidence import Claim, Evidence, Origin


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
