"""Dagster resources: settings made into the plain objects of the layers below."""
