"""What things are: identities, geometry, specs, records with evidence, reports, errors.

Standard library and pydantic only, and no pydantic in what volumes are read and written with (`geometry`,
`evidence`, `raw_layout`, `lazy_volume`, `blobs`, `errors`). Every other package may import this one.
"""
