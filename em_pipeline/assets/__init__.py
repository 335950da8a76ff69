"""Dagster assets: thin shells around `em_pipeline.ingest`."""
