"""Which file names hold image data, and of which format."""

import re

# Format → suffixes of its files, in lower case. MRC's many suffixes are those of IMOD
# (https://bio3d.colorado.edu/imod/doc/mrc_format.txt) and CCP4 maps.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "DM3": (".dm3",),
    "DM4": (".dm4",),
    "MRC": (".mrc", ".mrcs", ".st", ".rec", ".ali", ".map"),
    "TIFF": (".tif", ".tiff", ".btf"),
    "HDF5": (".h5", ".hdf5", ".hdf"),
}
# Formats of which one file may hold a whole volume.
HOLD_STACKS = frozenset({"DM4", "MRC", "TIFF", "HDF5"})


def format_of(name: str) -> str | None:
    """The format that a file's name stands for, or None."""
    lower = name.lower()
    return next((fmt for fmt, suffixes in SUFFIXES.items() if lower.endswith(suffixes)), None)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which slice_2 comes before slice_10."""
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)
