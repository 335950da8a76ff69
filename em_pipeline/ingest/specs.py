"""Which dataset a name means."""

import difflib
import re
from collections.abc import Iterable, Mapping

from em_pipeline.catalog.entries import DatasetDetail
from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.domain.identity import check_dataset_id
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.curated import curated_specs

PORTAL_ID = re.compile(r"^[A-Za-z][A-Za-z0-9]*-[A-Za-z0-9._-]+$")


def known_specs(catalog: Catalog) -> dict[str, DatasetSpec]:
    """Dataset id → spec: the curated ones, replaced and extended by those added at run time."""
    specs = {spec.dataset_id: spec for spec in curated_specs()}
    specs.update({spec.dataset_id: spec for spec in catalog.specs()})
    return specs


def find_spec(catalog: Catalog, dataset_id: str) -> DatasetSpec:
    """The spec of a dataset. Raises `NotFound` with the nearest known ids."""
    check_dataset_id(dataset_id)
    found = catalog.spec(dataset_id)
    if found is not None:
        return found
    specs = known_specs(catalog)
    if dataset_id in specs:
        return specs[dataset_id]
    nearest = difflib.get_close_matches(dataset_id, specs, n=3)
    raise NotFound(
        f"Find the dataset {dataset_id}",
        "no spec has that id",
        f"Nearest: {', '.join(nearest)}" if nearest else f"Register it with `em register {dataset_id}`",
    )


def dataset_detail(catalog: Catalog, dataset_id: str) -> DatasetDetail:
    """What the catalogue has of a dataset. Raises `NotFound`, for a known one that was never ingested too."""
    check_dataset_id(dataset_id)
    try:
        return catalog.dataset(dataset_id)
    except NotFound:
        if dataset_id not in known_specs(catalog):
            raise
    raise NotFound(
        f"Find the dataset {dataset_id}",
        "it is known but was never ingested",
        f"Run `em ingest {dataset_id}`",
    )


def spec_from_id(name: str, slugs: Iterable[str]) -> DatasetSpec | None:
    """A spec for `<source>-<accession>` (`EMPIAR-11759`, any case) of a portal source, else None.

    Raises `InputRefused` for the source `files`, whose datasets are named by a path or URL.
    """
    if not PORTAL_ID.match(name):
        return None
    slug, accession = name.split("-", 1)
    if slug.lower() not in set(slugs):
        return None
    if slug.lower() == "files":
        raise InputRefused(
            f"Register {name}", "a dataset of the source files needs its path or URL", "Run `em ingest PATH`"
        )
    return DatasetSpec(source=slug.lower(), accession=accession)


def unknown(target: str, known: Mapping[str, DatasetSpec], slugs: Iterable[str]) -> NotFound:
    """The error for a target that means nothing, with the nearest known ids."""
    nearest = difflib.get_close_matches(target.lower(), known, n=3)
    return NotFound(
        f"Find {target}",
        f"it is no path, no URL, no known dataset and no <source>-<accession> of {', '.join(sorted(slugs))}",
        f"Nearest known: {', '.join(nearest)}" if nearest else "`em ls --all` lists what is known",
    )
