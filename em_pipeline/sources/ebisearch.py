"""EBI Search, which indexes EMPIAR too: asked where BioStudies cannot say what there is.

https://www.ebi.ac.uk/ebisearch/documentation/rest-api ; `domain_source:<domain>` finds every entry of a
domain. As with BioStudies, no entry at all is an outage, never "nothing new".
"""

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.sources.biostudies import Hit
from em_pipeline.sources.documents import fetch_json
from em_pipeline.storage.http import PortalClient

# The service gives at most 100 entries per page.
PAGE_SIZE = 100


def search(client: PortalClient, base: str, domain: str) -> Iterator[Hit]:
    """Every entry of `domain`, each once, in the service's order.

    Raises `SourceUnavailable` where it answers with nothing, with another shape, or ends early.
    """
    seen: set[str] = set()
    start = 0
    while True:
        url = (
            f"{base}/ebisearch/ws/rest/{domain}?query=domain_source:{domain}"
            f"&fields=title,release_date&format=json&size={PAGE_SIZE}&start={start}"
        )
        hits, total = _page(client, url)
        yield from (hit for hit in hits if hit.accession not in seen)
        seen.update(hit.accession for hit in hits)
        start += PAGE_SIZE
        if len(seen) >= total > 0:
            return
        if not hits or start >= total + PAGE_SIZE:
            raise SourceUnavailable(
                f"List {domain} at {url}",
                f"the search announced {total} entries and ended after {len(seen)}",
                "Nothing is concluded from a broken listing; try again later",
            )


def _page(client: PortalClient, url: str) -> tuple[list[Hit], int]:
    answer = fetch_json(client, url).value
    try:
        return [_hit(entry) for entry in answer["entries"]], int(answer["hitCount"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SourceUnavailable(
            f"List {url}",
            f"the answer has another shape than a search result ({type(error).__name__}: {error})",
            "The service may have changed its interface; open the URL in a browser",
        ) from error


def _hit(entry: Any) -> Hit:
    fields = entry.get("fields") or {}
    titles = fields.get("title") or [""]
    return Hit(str(entry["id"]), str(titles[0]), _day(fields.get("release_date") or []))


def _day(given: list[str]) -> date | None:
    """Dates come as 20240115; BioStudies' form is understood too."""
    try:
        return datetime.strptime(str(given[0]).replace("-", "")[:8], "%Y%m%d").date()  # noqa: DTZ007
    except (IndexError, ValueError):
        return None
