"""One look at a portal: list it, look up what the look comes to, and choose."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.domain.record import Status
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.discovery import Cursor, Discovery, discover, look_up_order
from em_pipeline.ingest.discovery_policy import DiscoveryPolicy
from em_pipeline.ingest.specs import known_specs
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.sources.base import DatasetRef, DescribingSource, EntryDetails, WatchedSource

# Entries asked for in one request.
BATCH = 50
# Dagster gives a sensor 60 s; what was looked up until then is handled, the rest waits for the next look.
PATIENCE_S = 30.0


def look(
    workspace: Workspace,
    source: WatchedSource,
    cursor: Cursor,
    policy: DiscoveryPolicy,
    *,
    registered: Collection[str],
    clock: Callable[[], float] = time.monotonic,
) -> Discovery:
    """What is new or revised at the source's portal, besides the datasets `registered`.

    Nothing is changed. Raises `SourceUnavailable` for an outage, which a listing without the source's
    control is too; then nothing is known, not even of the entries that were listed.
    """
    began = clock()
    listing = whole_listing(source)
    order = look_up_order(listing, cursor)[: policy.lookups]
    details: dict[str, EntryDetails | None] = {}
    for first in range(0, len(order), BATCH):
        if clock() - began > PATIENCE_S and details:
            break
        details.update(_described(source, order[first : first + BATCH]))
    known: dict[str, str | None] = dict.fromkeys(registered)
    known.update(
        (summary.dataset_id, summary.revision)
        for summary in workspace.catalog.published()
        if summary.status is Status.COMPLETE
    )
    return discover(listing, details, known, cursor, policy, source=source.slug)


def whole_listing(source: WatchedSource) -> Sequence[DatasetRef]:
    """Every entry of the portal. Raises `SourceUnavailable` where the control is not among them."""
    listing = list(source.list_datasets())
    if source.control_accession not in {ref.accession for ref in listing}:
        raise SourceUnavailable(
            f"List the entries of {source.slug}",
            f"{source.control_accession}, which exists, is not among the {len(listing)} listed",
            "Nothing is concluded from a broken listing; try again later",
        )
    return listing


def keep_specs(workspace: Workspace, specs: Sequence[DatasetSpec]) -> None:
    """Save the specs of new datasets; what a person or the curated list said of one before stays."""
    said = known_specs(workspace.catalog)
    for spec in specs:
        if spec.dataset_id not in said:
            workspace.catalog.save_spec(spec)


def _described(source: WatchedSource, refs: Sequence[DatasetRef]) -> Mapping[str, EntryDetails | None]:
    if not isinstance(source, DescribingSource):
        return {ref.accession: EntryDetails(ref.revision) for ref in refs}
    found = source.describe([ref.accession for ref in refs])
    return {ref.accession: found.get(ref.accession) for ref in refs}
