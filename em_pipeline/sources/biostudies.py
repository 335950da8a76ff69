"""The search of BioStudies, which lists the entries of EBI's image archives.

https://www.ebi.ac.uk/biostudies/help (search API). An unknown collection and `query=*` both answer
200 with no hits, so no hits at all is an outage here, never "nothing new".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.sources.documents import fetch_json
from em_pipeline.storage.http import PortalClient

# The search gives at most 1000 hits per page.
PAGE_SIZE = 1000


@dataclass(frozen=True)
class Hit:
    """One found study. `released` is None where the portal gives no readable date."""

    accession: str
    title: str
    released: date | None


def search(client: PortalClient, base: str, collection: str) -> Iterator[Hit]:
    """Every study of `collection`, newest first, each once.

    Raises `SourceUnavailable` where the search answers with nothing, with another shape, or ends early.
    """
    address = f"{base}/biostudies/api/v1/{collection}/search"
    seen: set[str] = set()
    page = 1
    while True:
        url = f"{address}?query=*:*&sortBy=release_date&sortOrder=descending&pageSize={PAGE_SIZE}&page={page}"
        hits, total, exact = _page(client, url)
        new = [hit for hit in hits if hit.accession not in seen]
        yield from new
        seen.update(hit.accession for hit in new)
        if len(seen) >= total:
            return
        if not new:
            if exact:
                raise SourceUnavailable(
                    f"List {collection} at {url}",
                    f"the search announced {total} entries and ended after {len(seen)}",
                    "Nothing is concluded from a broken listing; try again later",
                )
            return
        page += 1


def _page(client: PortalClient, url: str) -> tuple[list[Hit], int, bool]:
    answer = fetch_json(client, url).value
    try:
        total, hits = int(answer["totalHits"]), [_hit(one) for one in answer["hits"]]
    except (KeyError, TypeError, ValueError) as error:
        raise SourceUnavailable(
            f"List {url}",
            f"the answer has another shape than a search result ({type(error).__name__}: {error})",
            "The portal may have changed its interface; open the URL in a browser",
        ) from error
    if total <= 0:
        raise SourceUnavailable(
            f"List {url}",
            "the search found no entry at all, which cannot be: a collection that does not exist answers so",
            "Nothing is concluded from it; check the collection's name and try again later",
        )
    return hits, total, bool(answer.get("isTotalHitsExact", True))


def _hit(one: Any) -> Hit:
    released = str(one.get("release_date") or "")[:10]
    try:
        day = date.fromisoformat(released)
    except ValueError:
        day = None
    return Hit(str(one["accession"]), str(one.get("title") or ""), day)
