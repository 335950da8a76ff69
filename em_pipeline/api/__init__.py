"""The sidecar: a read-only HTTP view of the published volumes, for clients that do not share our disk."""
