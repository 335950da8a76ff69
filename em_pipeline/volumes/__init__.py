"""The OME-Zarr we write: layout, plan, shards, pyramid, ledger, verification, reading."""
