"""What programs do at their end that do not flush what they wrote."""

import os
from pathlib import Path


def sync_tree(root: Path) -> None:
    """fsync every file and folder below `root`."""
    for path in [root, *root.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
