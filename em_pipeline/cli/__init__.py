"""`em`: one verb, one meaning. Every command prints for people, or one JSON document with `--json`."""

from em_pipeline.cli.app import main

__all__ = ["main"]
