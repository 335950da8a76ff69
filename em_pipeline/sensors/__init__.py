"""Dagster sensors and schedules: thin shells around pure functions."""
