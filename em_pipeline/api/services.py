"""What the routes share: the catalogue and the open volumes of one app."""

import difflib
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from em_pipeline.api.readers import ReaderCache
from em_pipeline.catalog.entries import DatasetDetail, PublishedVersion
from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.errors import NotFound
from em_pipeline.domain.identity import DATASET_ID
from em_pipeline.domain.record import DatasetRecord

NEAREST = 3


@dataclass(frozen=True)
class Services:
    """Handed to every route of an app."""

    catalog: Catalog
    readers: ReaderCache

    def published(self, dataset_id: str, version: str | None = None) -> PublishedVersion:
        """The published version, which must be `version` where one is given. Raises `NotFound`."""
        # What is no id at all (PostgreSQL refuses some characters) is not published either.
        found = self.catalog.published_version(dataset_id) if DATASET_ID.match(dataset_id) else None
        if found is None:
            raise self._not_published(dataset_id)
        if version is not None and version != found.version:
            raise NotFound(
                f"Read version {version} of {dataset_id}",
                f"the published version is {found.version}",
                "Leave the version out, or ask for that one",
            )
        return found

    def described(self, dataset_id: str) -> tuple[DatasetDetail, PublishedVersion, DatasetRecord]:
        """All about a published dataset. Raises `NotFound` for one that is not published, as for none."""
        self.published(dataset_id)
        detail = self.catalog.dataset(dataset_id)
        if detail.published is None or detail.record is None:
            raise self._not_published(dataset_id)
        return detail, detail.published, detail.record

    def _not_published(self, dataset_id: str) -> NotFound:
        known = [summary.dataset_id for summary in self.catalog.published()]
        near = difflib.get_close_matches(dataset_id.lower(), known, n=NEAREST, cutoff=0.5)
        return NotFound(
            f"Read dataset {dataset_id!r}",
            "no such published dataset",
            f"Did you mean {', '.join(near)}?" if near else "/api/v1/datasets lists them",
        )


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
