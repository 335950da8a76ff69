"""The one resource of the assets: a workspace, opened from the settings of the process that runs them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from em_pipeline.domain.progress import Silent
from em_pipeline.ingest.workspace import Workspace, open_workspace
from em_pipeline.settings import load_settings


class WorkspaceResource(dg.ConfigurableResourceFactory[Workspace]):  # type: ignore[misc]
    """Store, catalogue and sources as `em.yaml` and the environment say, or as `settings` here override.

    `settings` maps the keys of `em config` to text, as environment variables would.
    """

    settings: dict[str, str] = Field(default_factory=dict)

    @contextmanager
    def yield_for_execution(
        self,
        context: dg.InitResourceContext,  # noqa: ARG002
    ) -> Iterator[Workspace]:
        """Open for one run and close after it."""
        overrides = {f"EM_{key.upper()}": value for key, value in self.settings.items()}
        with open_workspace(
            load_settings(environ={**os.environ, **overrides}).settings, Silent()
        ) as workspace:
            yield workspace
