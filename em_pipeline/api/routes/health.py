"""Whether this server can serve."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from em_pipeline import __version__
from em_pipeline.api.errors import documented
from em_pipeline.api.services import ServicesDep
from em_pipeline.catalog.engine import check_schema

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The sidecar runs, its catalogue answers and has the schema this version works with."""

    status: Literal["ok"] = "ok"
    version: str = __version__


@router.get("/health", responses=documented(503))
def health(services: ServicesDep) -> Health:
    """200 where the catalogue answers and its schema fits; otherwise a 503 problem that says why."""
    check_schema(services.catalog.engine)
    return Health()
