"""Errors of the layers below, as Dagster should see them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import dagster as dg

from em_pipeline.domain.errors import EmError, NotFound
from em_pipeline.domain.record import Status
from em_pipeline.ingest.workspace import Workspace


@contextmanager
def reported(workspace: Workspace, dataset_id: str) -> Iterator[None]:
    """Turn an `EmError` into a `Failure` that is retried only where asking again can help.

    The catalogue shows the dataset as failed, with the message, until a retry begins.
    """
    try:
        yield
    except EmError as error:
        # A dataset that no step has begun has no status to set.
        with suppress(NotFound):
            workspace.catalog.set_status(dataset_id, Status.FAILED, message=str(error))
        if error.transient:
            workspace.progress.note(f"{error} (may be tried again)")
        raise dg.Failure(
            description=str(error),
            metadata={
                "tried": error.tried,
                "found": error.found,
                "to_do": error.to_do,
                "kind": error.slug,
                "exit_code": error.exit_code,
            },
            allow_retries=error.transient,
        ) from error
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        with suppress(NotFound):
            workspace.catalog.set_status(dataset_id, Status.CANCELLED, message="cancelled")
        raise
