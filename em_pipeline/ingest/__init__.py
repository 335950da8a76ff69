"""The five steps of an ingest, each idempotent and resumable, free of any orchestrator."""
