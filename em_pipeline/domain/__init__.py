"""What things are: identities, geometry, specs, records with evidence, reports, errors.

Standard library and pydantic only; every other package may import this one.
"""
