"""Where the data of a dataset lie, for whoever wants to look at them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from em_pipeline.domain.errors import NotFound, SchemaMismatch, ServiceUnavailable
from em_pipeline.domain.evidence import RANK, Claim
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.domain.wording import counted
from em_pipeline.ingest.claims import spec_claims
from em_pipeline.settings import Settings
from em_pipeline.sources.base import Source
from em_pipeline.storage.object_urls import endpoints_of
from em_pipeline.storage.ranged import is_url


class Whereabouts(NamedTuple):
    """A path or address, a sentence on how it was found, and what spec and portal say of its dataset.

    The sentence is empty, and there are no claims, for an address that was given.
    """

    address: str
    note: str = ""
    claims: tuple[Claim, ...] = ()


def address_of(target: str, settings: Settings) -> Whereabouts:
    """What to inspect.

    That of a dataset id is asked for at its portal. Raises `NotFound` for what
    is no path, address or dataset, and like the source.
    """
    if is_url(target) or Path(target).expanduser().exists():
        return Whereabouts(target)
    # Looking at a file must not wait for the catalogue's and the portals' libraries.
    from em_pipeline.sources.registry import load_sources

    sources = load_sources(settings.sources, endpoints=endpoints_of(settings))
    spec = _spec(target, settings, sources)
    if spec.location:
        note = f"{spec.dataset_id} is at {spec.location}"
        return Whereabouts(spec.location, note, tuple(spec_claims(spec)))
    return portal_address(sources[spec.source], spec)


def _spec(target: str, settings: Settings, sources: dict[str, Source]) -> DatasetSpec:
    from em_pipeline.ingest.specs import known_specs, spec_from_id, unknown
    from em_pipeline.ingest.workspace import open_catalog
    from em_pipeline.sources.curated import curated_specs

    known = {spec.dataset_id: spec for spec in curated_specs()}
    # A catalogue need not run to look at a portal's dataset, but it alone knows the ids of parts.
    from_id = spec_from_id(target, [slug for slug in sources if slug != "files"])
    spec = known.get(target.lower())
    if spec is None:
        try:
            with open_catalog(settings) as catalog:
                known = known_specs(catalog)
        except (SchemaMismatch, ServiceUnavailable):
            if from_id is None:
                raise
        spec = known.get(target.lower()) or from_id
    if spec is None or spec.source not in sources:
        raise unknown(target, known, sources)
    return spec


def portal_address(source: Source, spec: DatasetSpec) -> Whereabouts:
    """Where the portal says that the data are: one address, or that of the first file.

    An address that ends in `/` is of a folder of files, which web servers list each in its own way.

    Raises `NotFound` where the portal lists no file, and like the source.
    """
    record = source.fetch_record(spec)
    claims = (*spec_claims(spec), *record.claims)
    address = next((c.value for c in record.claims if c.field == "provenance.download_url"), None)
    if isinstance(address, str) and is_url(address) and not address.endswith("/"):
        return Whereabouts(address, f"{spec.dataset_id} is at {address}", claims)
    files = source.list_files(spec, record)
    if not files:
        raise NotFound(f"Inspect {spec.dataset_id}", f"{spec.source} lists no file of it", "")
    note = f"the first of the {counted(len(files), 'file')} of {spec.dataset_id} was looked at"
    return Whereabouts(files[0].url, note, claims)


def stated_size(claims: Sequence[Claim]) -> dict[str, Claim]:
    """By axis, the claim on the voxel size that a record would keep; without axes that none speaks of."""
    said = [claim for claim in claims if claim.value is not None]
    by_axis = {axis: [c for c in said if c.field == f"core.voxel_size_nm.{axis}"] for axis in "zyx"}
    return {
        axis: min(found, key=lambda claim: RANK[claim.evidence.origin])
        for axis, found in by_axis.items()
        if found
    }
