"""The asset that compares the collection."""

import csv

import dagster as dg
import pytest

from em_pipeline.assets.collection import build_collection_definitions
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.workspace import Workspace
from em_pipeline.storage import keys
from em_pipeline_tests.ingest.chain import run_chain

pytestmark = pytest.mark.integration


def materialized(workspace: Workspace) -> dg.AssetMaterialization:
    (asset,) = build_collection_definitions(["empiar"]).assets or ()
    assert isinstance(asset, dg.AssetsDefinition)
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([asset], resources={"workspace": workspace}, instance=instance)
    (found,) = result.asset_materializations_for_node("collection__comparison_table")
    return found


def test_it_shows_and_stores_the_tables(workspace: Workspace) -> None:
    for accession in ("11759", "99001"):
        run_chain(workspace, DatasetSpec(source="empiar", accession=accession))
    metadata = materialized(workspace).metadata
    assert metadata["datasets"].value == 2
    assert int(str(metadata["conflicts"].value)) > 0
    assert "16×110×99 *" in str(metadata["volumes"].value)
    assert "| 1.9 | 200 | 0.5 |" in str(metadata["acquisition"].value)
    stored = workspace.store.read(keys.comparison("csv")).decode().splitlines()
    assert [row["dataset"] for row in csv.DictReader(stored)] == ["empiar-11759", "empiar-99001"]
    assert workspace.store.read(keys.comparison("html")).startswith(b"<!DOCTYPE html>")


def test_an_empty_collection_is_no_error(workspace: Workspace) -> None:
    assert materialized(workspace).metadata["datasets"].value == 0


def test_it_follows_every_source_s_entries() -> None:
    (asset,) = build_collection_definitions(["empiar", "files"]).assets or ()
    assert isinstance(asset, dg.AssetsDefinition)
    assert asset.asset_deps[dg.AssetKey(["collection", "comparison_table"])] == {
        dg.AssetKey(["empiar", "catalog_entry"]),
        dg.AssetKey(["files", "catalog_entry"]),
    }
