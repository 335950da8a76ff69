"""Assets of the collection as a whole."""

from collections.abc import Iterable

import dagster as dg

from em_pipeline.domain.identity import short_hash
from em_pipeline.ingest import table_output
from em_pipeline.ingest.tables import SHOWN_ACQUISITION, SHOWN_VOLUMES, comparison
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage import keys
from em_pipeline.storage.store import Store

GROUP = "collection"


def build_collection_definitions(slugs: Iterable[str]) -> dg.Definitions:
    """The asset `collection/comparison_table`, which follows the catalogue entries of these sources."""

    @dg.asset(
        name="comparison_table",
        key_prefix=GROUP,
        group_name=GROUP,
        deps=[dg.AssetKey([slug, "catalog_entry"]) for slug in slugs],
        kinds={"table"},
        description="All published volumes side by side: how stored, how imaged, what is in dispute.",
    )
    def comparison_table(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
        found = comparison(workspace.catalog.published_records())
        table = table_output.csv(found)
        workspace.store.write(keys.comparison("csv"), table.encode())
        workspace.store.write(keys.comparison("html"), table_output.html(found).encode())
        return dg.MaterializeResult(
            metadata={
                "datasets": len(found.volumes),
                "conflicts": len(found.conflicts),
                "volumes": dg.MetadataValue.md(table_output.markdown(found, found.volumes, SHOWN_VOLUMES)),
                "acquisition": dg.MetadataValue.md(
                    table_output.markdown(found, found.acquisition, SHOWN_ACQUISITION)
                ),
                "page": dg.MetadataValue.path(_page(workspace.store)),
            },
            data_version=dg.DataVersion(short_hash(table)),
        )

    return dg.Definitions(assets=[comparison_table])


def _page(store: Store) -> str:
    """Where the page lies, as a person opens it."""
    folder, _, name = keys.comparison("html").rpartition("/")
    return f"{store.blobs(folder).url}/{name}"
