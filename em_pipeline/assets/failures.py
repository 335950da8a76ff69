"""Errors of the layers below, as Dagster should see them."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import dagster as dg

from em_pipeline.domain.errors import Busy, EmError
from em_pipeline.domain.record import Status
from em_pipeline.ingest.workspace import Workspace

CANCELLED = "cancelled"


@contextmanager
def reported(workspace: Workspace, dataset_id: str) -> Iterator[None]:
    """Turn whatever ends a step into a `Failure`, retried only where asking again can help.

    The catalogue shows the dataset as failed or cancelled, with the message, until a retry begins; not for
    `Busy`, where another process is at the same dataset and speaks for it.
    """
    try:
        yield
    except EmError as error:
        if not isinstance(error, Busy):
            _show(workspace, dataset_id, Status.FAILED, str(error))
        if error.transient:
            workspace.progress.note(f"{error} (a step is tried three times in all)")
        raise _failure(error.slug, error.tried, error.found, error.to_do, retry=error.transient) from error
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
        _show(workspace, dataset_id, Status.CANCELLED, CANCELLED)
        # As a bare interrupt the step would be retried like any other error.
        raise _failure(CANCELLED, f"Ingest {dataset_id}", "it was interrupted", "", retry=False) from error
    except Exception as error:
        # What nobody foresaw will not pass by itself; its last line is all that a person sees elsewhere.
        found = traceback.format_exception_only(error)[-1].strip()
        _show(workspace, dataset_id, Status.FAILED, found)
        to_do = "The Dagster run holds the traceback; please report it"
        raise _failure(EmError.slug, f"Ingest {dataset_id}", found, to_do, retry=False) from error


def _failure(kind: str, tried: str, found: str, to_do: str, *, retry: bool) -> dg.Failure:
    return dg.Failure(
        description=f"{tried}: {found}. {to_do}".strip(),
        metadata={"kind": kind, "tried": tried, "found": found, "to_do": to_do},
        allow_retries=retry,
    )


def _show(workspace: Workspace, dataset_id: str, status: Status, message: str) -> None:
    # Nothing to show for a dataset that no step has begun, nor where the database itself is what failed.
    with suppress(EmError):
        workspace.catalog.set_status(dataset_id, status, message=message)
