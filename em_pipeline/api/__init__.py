"""The read-only sidecar."""
