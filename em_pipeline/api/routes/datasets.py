"""What is published."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from em_pipeline.api.answers import DatasetEntry, DatasetPage, MetadataAnswer
from em_pipeline.api.errors import documented
from em_pipeline.api.services import ServicesDep

router = APIRouter(prefix="/api/v1", tags=["datasets"])


class ListQuery(BaseModel):
    """Parameters of the listing. An unknown one is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=1000, description="Most entries in one answer")
    after: str | None = Field(
        None, description="The `next` of the page before this one", examples=["empiar-11759"]
    )
    source: str | None = Field(None, description="Only datasets of this portal", examples=["empiar"])
    organism: str | None = Field(
        None, description="Only datasets of this organism, compared without case", examples=["Mus musculus"]
    )


class MetadataQuery(BaseModel):
    """Parameters of the metadata. An unknown one is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid")

    dataset_id: str = Field(description="`<source>-<accession>`", examples=["empiar-11759"], max_length=200)


@router.get("/datasets", responses=documented(422, 503))
def list_datasets(query: Annotated[ListQuery, Query()], services: ServicesDep) -> DatasetPage:
    """Published datasets by id. Follow `next` until it is null."""
    summaries = sorted(services.catalog.published(), key=lambda summary: summary.dataset_id)
    wanted = [
        summary
        for summary in summaries
        if (query.after is None or summary.dataset_id > query.after)
        and (query.source is None or summary.source == query.source)
        and (query.organism is None or (summary.organism or "").casefold() == query.organism.casefold())
    ]
    page = wanted[: query.limit]
    following = page[-1].dataset_id if len(wanted) > len(page) else None
    return DatasetPage(datasets=[DatasetEntry.of(summary) for summary in page], next=following)


@router.get("/metadata", responses=documented(404, 422, 503))
def metadata(query: Annotated[MetadataQuery, Query()], services: ServicesDep) -> MetadataAnswer:
    """Everything about the published version: values with evidence, conflicts, levels, statistics, checks."""
    return MetadataAnswer.of(*services.described(query.dataset_id))
