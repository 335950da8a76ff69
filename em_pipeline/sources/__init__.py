"""Portals: each module speaks to one, in the portal's own terms, and nothing else."""
