"""Which entries EMPIAR has, and enough of each to choose by. EMPIAR itself has no listing."""

import re
from collections.abc import Mapping, Sequence

from em_pipeline.domain.errors import NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.sources import biostudies, ebisearch
from em_pipeline.sources.base import EntryDetails, ImageSet
from em_pipeline.sources.biostudies import Hit
from em_pipeline.sources.documents import query_json
from em_pipeline.sources.empiar_claims import LICENCE
from em_pipeline.sources.empiar_entry import Entry, from_rest
from em_pipeline.storage.http import PortalClient

COLLECTION = "BioImages-EMPIAR"
DOMAIN = "empiar"
ACCESSION = re.compile(r"^(?:empiar-)?(\d{4,7})$", re.IGNORECASE)
RELEASED = "REL"
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)B", re.IGNORECASE)
# Entry pages round to decimal units.
BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


def hits(client: PortalClient, base: str, control: str) -> list[tuple[str, Hit]]:
    """Accession and hit of every entry, as BioStudies lists them; as EBI Search does where it cannot.

    A listing without the entry `control` counts as broken. Raises `SourceUnavailable` where both are.
    """
    try:
        return _checked("BioStudies", list(biostudies.search(client, base, COLLECTION)), control)
    except (SourceUnavailable, NotFound, RecordInvalid) as first:
        try:
            return _checked("EBI Search", list(ebisearch.search(client, base, DOMAIN)), control)
        except (SourceUnavailable, NotFound, RecordInvalid) as second:
            raise SourceUnavailable(
                "List the entries of EMPIAR",
                f"neither BioStudies ({first}) nor EBI Search ({second}) can",
                "Nothing is concluded from it; try again later",
            ) from second


def _checked(service: str, found: Sequence[Hit], control: str) -> list[tuple[str, Hit]]:
    matched = [(match[1], hit) for hit in found if (match := ACCESSION.match(hit.accession))]
    if control not in {accession for accession, _ in matched}:
        raise SourceUnavailable(
            f"List the entries of EMPIAR by {service}",
            f"EMPIAR-{control}, which exists, is not among the {len(matched)} listed",
            "Nothing is concluded from a broken listing; try again later",
        )
    return matched


def describe(
    client: PortalClient, api: str, accessions: Sequence[str], control: str
) -> Mapping[str, EntryDetails]:
    """Details by accession, of those entries that EMPIAR has, in one request.

    The control is asked for along with them: an answer without it is an outage.
    """
    url = f"{api}/empiar/api/entry/"
    # A dict keeps the order and drops the repetition.
    wanted = ",".join(dict.fromkeys([*accessions, control]))
    answer = query_json(client, url, wanted).value
    if not isinstance(answer, dict) or f"EMPIAR-{control}" not in answer:
        raise SourceUnavailable(
            f"Ask {url} for {wanted:.200}",
            f"the answer lacks EMPIAR-{control}, which exists",
            "Nothing is concluded from it; try again later",
        )
    empty = [name for name, entry in answer.items() if not entry]
    if empty:
        raise SourceUnavailable(
            f"Ask {url} for {wanted:.200}",
            f"nothing is said of {', '.join(empty):.200}, not even whether it is released",
            "Nothing is concluded from it; try again later",
        )
    return {
        accession: _details(from_rest(url, accession, {name: answer[name]}))
        for accession in accessions
        if (name := f"EMPIAR-{accession}") in answer
    }


def _details(entry: Entry) -> EntryDetails:
    method = entry["experiment_type"].text
    return EntryDetails(
        revision=(entry["updated"].text or entry["released"].text or "undated")[:10],
        methods=(method,) if method else (),
        image_sets=tuple(
            ImageSet(number, one["category"].text or "of an unknown kind")
            for number, one in enumerate(entry.image_sets)
        ),
        size=size_in_bytes(entry["size"].text or ""),
        licence=str(LICENCE.value),
        available=entry["status"].text == RELEASED and bool(entry.image_sets),
    )


def size_in_bytes(text: str) -> int | None:
    """Bytes of "1.2 GB", as entries state their size; None for anything else."""
    match = SIZE.fullmatch(text.strip())
    return round(float(match[1]) * BYTES[match[2].upper()]) if match else None
