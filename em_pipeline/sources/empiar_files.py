"""Which files of an EMPIAR folder make up an image set, and whether the listing shows them all."""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from em_pipeline.domain.errors import InputRefused, RecordInvalid
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import PortalRecord

# One of the portal's servers was seen to leave a file out of its listing; another answer brings it.
LISTINGS = 4
MRC = (".mrc", ".mrcs", ".st", ".rec", ".ali", ".map")
TIFF = (".tif", ".tiff")
# The portal's data formats → suffixes in lower case. MRC's are those of IMOD's programs
# (https://bio3d.colorado.edu/imod/doc/mrc_format.txt) and of CCP4 maps.
SUFFIXES = {"DM3": (".dm3",), "DM4": (".dm4",), "MRC": MRC, "MRCS": MRC, "TIFF": TIFF}
# One file of these may hold every image that the portal counts.
HOLD_STACKS = (*MRC, *TIFF, ".dm4")


def selector(spec: DatasetSpec, record: PortalRecord) -> Callable[[str], bool]:
    """Whether a file name belongs to the volume: by `spec.include`, else by the portal's data format.

    Raises `InputRefused` for a data format whose suffixes are not known.
    """
    if spec.include:
        return lambda name: any(fnmatchcase(name, glob) for glob in spec.include)
    data_format = str(record.facts["data_format"] or "").upper()
    suffixes = SUFFIXES.get(data_format)
    if suffixes is None:
        raise InputRefused(
            f"Choose the files of {spec.dataset_id}",
            f"the portal gives their format as {record.facts['data_format']!r}, whose suffixes are not known",
            'Name them with --include (`include` in the spec), such as --include "*.tif"',
        )
    return lambda name: name.lower().endswith(suffixes)


def expected(spec: DatasetSpec, record: PortalRecord) -> int | None:
    """How many files there must be: a person's word, else the portal's; None where a person chose files."""
    override = spec.overrides.get("technical.file_count")
    if override is not None:
        return int(override.value)
    return None if spec.include else record.facts["images"]


def enough(names: set[str], expected: int | None) -> bool:
    """Whether a listing of `names` needs no second opinion."""
    if expected is None:
        return bool(names) and not _gaps(names)
    return len(names) >= expected


def _numbered(names: Iterable[str]) -> dict[int, str]:
    """The number that varies, by name: the last run of digits before the suffix."""
    found = {}
    for name in names:
        digits = re.findall(r"\d+", Path(name).stem)
        if digits:
            found[int(digits[-1])] = name
    return found


def _gaps(names: Iterable[str]) -> list[int]:
    """Numbers that lie between the names' numbers and belong to none of them."""
    numbered = _numbered(names)
    if not numbered:
        return []
    low, high = min(numbered), max(numbered)
    # A sparse numbering (dates, positions) is no sequence with gaps.
    return sorted(set(range(low, high)) - set(numbered)) if high - low < 2 * len(numbered) else []


def check_complete(folder: str, names: list[str], expected: int | None) -> None:
    """Raise `RecordInvalid` where `names` (in number order) are none, or fewer than `expected`."""
    if not names:
        raise RecordInvalid(
            f"List the files at {folder}",
            "no file there has the image set's format",
            "Name the files with --include (`include` in the spec)",
        )
    if expected is None or len(names) >= expected:
        return
    if len(names) == 1 and names[0].lower().endswith(HOLD_STACKS):
        return  # the portal counts images, and one such file may hold them all; its voxels will tell
    gaps = _gaps(names)
    missing = f"missing between them: {', '.join(map(str, gaps))}" if gaps else "no gap between them"
    raise RecordInvalid(
        f"List the files at {folder}",
        f"{len(names)} of {expected} files are listed after {LISTINGS} attempts "
        f"({names[0]} … {names[-1]}; {missing})",
        "Try again later; where the portal's count is wrong, override technical.file_count with the right "
        "number, or name the files with --include",
    )
