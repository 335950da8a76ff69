"""The app factory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from em_pipeline import __version__
from em_pipeline.api import errors
from em_pipeline.api.readers import ReaderCache, open_published
from em_pipeline.api.routes import blocks, datasets, health
from em_pipeline.api.services import Services
from em_pipeline.catalog.repository import Catalog
from em_pipeline.storage.store import Store

DESCRIPTION = """
Published electron-microscopy volumes, block by block. Read-only.

* Axes are **z, y, x**; boxes are half-open; lengths are nanometres.
* `z`, `y`, `x` of a block are **voxels of the level asked for**, not chunk indices. A block that begins at a
  multiple of 128 and is 128³ large is exactly one stored chunk.
* Every failure is a problem document (RFC 9457) with `tried`, `found` and `to_do`.
* A damaged or missing chunk is an error, never zeros.
"""


def create_app(catalog: Catalog, store: Store) -> FastAPI:
    """The sidecar over one catalogue and the store of its volumes, which are opened as they are asked for."""
    readers = ReaderCache(partial(open_published, store))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        readers.close()

    app = FastAPI(
        title="em-pipeline sidecar", version=__version__, description=DESCRIPTION, lifespan=lifespan
    )
    app.state.services = Services(catalog, readers)
    errors.install(app)
    for routes in (health, datasets, blocks):
        app.include_router(routes.router)
    return app
