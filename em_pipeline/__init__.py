"""Public electron-microscopy volumes, ingested into verified, catalogued OME-Zarr in 128³ chunks."""

__version__ = "0.1.0"
