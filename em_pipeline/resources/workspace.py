"""The one resource of the assets: a workspace, opened from the settings of the process that runs them."""

import os
from collections.abc import Iterator

import dagster as dg

from em_pipeline.domain.progress import Silent
from em_pipeline.ingest.workspace import Workspace, open_workspace
from em_pipeline.settings import load_settings


@dg.resource(
    config_schema={
        "settings": dg.Field(
            dict,
            default_value={},
            description="Keys of `em config` with text values, which win over em.yaml and the environment.",
        )
    },
    description="Store, catalogue and sources, as the settings say.",
)
def workspace_resource(context: dg.InitResourceContext) -> Iterator[Workspace]:
    """Open for one run and close after it."""
    overrides = {
        f"EM_{key.upper()}": str(value) for key, value in context.resource_config["settings"].items()
    }
    settings = load_settings(environ={**os.environ, **overrides}).settings
    with open_workspace(settings, Silent()) as workspace:
        yield workspace
