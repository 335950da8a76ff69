"""The history of the catalogue's schema, applied by `em_pipeline.catalog.engine.upgrade`."""
