"""One table from the project's errors to HTTP: problem documents as in RFC 9457.

The status and slug of an `EmError` are class attributes (`em_pipeline.domain.errors`), so the tree itself is
the table; what is not an `EmError` becomes a 500 that says nothing of our insides.
"""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from em_pipeline.domain.errors import EmError, InputRefused

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
LONGEST_ECHO = 80

logger = logging.getLogger(__name__)


class BlockTooLarge(InputRefused):
    """A block of more decoded bytes than one answer may have."""

    status = 413
    slug = "block-too-large"


class Problem(BaseModel):
    """RFC 9457 problem details. `tried`, `found` and `to_do` are the three parts of `detail`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "about:blank#not-found",
                "title": "Not found",
                "status": 404,
                "detail": "Read dataset empiar-1175: no such published dataset. Did you mean empiar-11759?",
                "slug": "not-found",
                "tried": "Read dataset empiar-1175",
                "found": "no such published dataset",
                "to_do": "Did you mean empiar-11759?",
            }
        }
    )

    type: str = Field(description="Names the kind of problem; `slug` is the same, shorter")
    title: str
    status: int
    detail: str
    slug: str = Field(description="Stable name of the kind of problem, for programs")
    tried: str
    found: str
    to_do: str = Field(description="What to do about it; may be empty")


def problem(
    status: int, slug: str, tried: str, found: str, to_do: str = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    """A problem document as an answer."""
    document = Problem(
        type=f"about:blank#{slug}",
        title=slug.replace("-", " ").capitalize(),
        status=status,
        detail=str(EmError(tried, found, to_do)),
        slug=slug,
        tried=tried,
        found=found,
        to_do=to_do,
    )
    kept = {"Cache-Control": "no-store", **(headers or {})}
    return JSONResponse(document.model_dump(), status, headers=kept, media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route whose answers of these statuses are problems."""
    schema = {"schema": Problem.model_json_schema()}
    return {status: {"description": "Problem", "content": {MEDIA_TYPE: schema}} for status in statuses}


def install(app: FastAPI) -> None:
    """Answer every failure of `app` with a problem document."""
    app.add_exception_handler(EmError, _em_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


async def _em_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, EmError)  # noqa: S101 - narrows what Starlette hands over
    if error.status >= 500:
        logger.error("%s %s: %s", request.method, request.url.path, error)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.transient and error.status == 503 else None
    return problem(error.status, error.slug, error.tried, error.found, error.to_do, headers)


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    found = "; ".join(_complaint(entry) for entry in error.errors())
    to_do = "The parameters are described at /docs"
    return problem(InputRefused.status, InputRefused.slug, f"Read {request.url.path}", found, to_do)


def _complaint(entry: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in entry["loc"][1:]) or "request"
    given = "" if entry["type"] == "missing" else f" (given {str(entry['input'])[:LONGEST_ECHO]!r})"
    return f"{name[:LONGEST_ECHO]}: {entry['msg'][:LONGEST_ECHO]}{given}"


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    slug = {404: "no-such-path", 405: "method-not-allowed"}.get(error.status_code, "http-error")
    tried = f"{request.method} {request.url.path[:LONGEST_ECHO]}"
    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, slug, tried, str(error.detail), "See /docs for the paths", headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - the server logs it
    # The server drops the connection after such an error: a client that is not told would use it again.
    return problem(
        500,
        EmError.slug,
        f"Answer {request.url.path}",
        "an error inside the server",
        "Its log says what happened",
        {"Connection": "close"},
    )
