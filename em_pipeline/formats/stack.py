"""Many 2-D files in natural order as one volume."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LOST_SECTIONS
from em_pipeline.domain.wording import counted
from em_pipeline.formats.base import ClaimSheet, FileVolume, Voxels, is_plain

EXTRACTOR = "formats.stack"
# The metadata lists this many files that disagree with the first, and counts the rest.
LISTED = 10


def natural_key(path: Path) -> tuple[Any, ...]:
    """Sorts `slice_2` before `slice_10`."""
    parts = re.split(r"(\d+)", path.as_posix())
    return tuple(int(part) if index % 2 else part.casefold() for index, part in enumerate(parts))


def open_stack(
    paths: Sequence[Path],
    open_first: Callable[[Path], FileVolume],
    open_next: Callable[[Path], FileVolume],
    name: str,
) -> FileVolume:
    """The files `paths`, one plane each, in natural order of their names; `name` is that of the whole.

    Of the first file all is kept that `open_first` tells; what `open_next` opens needs only shape, dtype,
    voxels, and the claims of format and voxel size.
    Every header is read now, so that a file of another shape, dtype or format is refused before any
    voxel is. Voxel size, date and microscope are the first file's; files whose voxel size differs, and
    numbers missing in the file names (`LOST_SECTIONS`), are listed in `metadata["notes"]`: nothing is put in
    the place of sections that seem to be lost.
    Raises `UnsupportedFormat` naming the first odd file, `InputRefused` without files.
    """
    ordered = sorted(paths, key=natural_key)
    if not ordered:
        raise InputRefused(
            f"Open {name or 'a stack'}", "there are no files in it", "Give at least one image file"
        )
    first = open_first(ordered[0])
    _check_plane(ordered[0], first, len(ordered))
    voxel_size = first.voxel_size_nm
    planes, differing = [first.voxels], []
    for path in ordered[1:]:
        plane = open_next(path)
        _check_like(first, ordered[0], plane, path)
        planes.append(plane.voxels)
        if plane.voxel_size_nm != voxel_size:
            differing.append((path, plane))
    shape = Shape(len(ordered), first.shape.y, first.shape.x)
    lost = lost_sections(ordered)
    metadata = {
        "files": len(ordered),
        "first_file": ordered[0].name,
        "first_header": first.metadata,
        "notes": [*_differences(first, differing), *([lost] if lost else [])],
    } | ({LOST_SECTIONS: lost} if lost else {})
    claims = _claims(ordered, first, shape, name)
    voxels = StackVoxels(tuple(planes))
    return FileVolume(shape, first.dtype, first.chunk_shape, voxels, claims, metadata, first.translation_nm)


@dataclass(frozen=True)
class StackVoxels:
    """One file per plane; only those that a box meets are opened."""

    planes: tuple[Voxels, ...]

    @property
    def plain(self) -> bool:
        """Whether rows of every plane are read by themselves."""
        return all(is_plain(plane) for plane in self.planes)

    @property
    def scratch_bytes(self) -> int:
        return max(plane.scratch_bytes for plane in self.planes)

    def used(self, box: BoundingBox) -> Sequence[Voxels]:
        """See `used_of`."""
        return self.planes[box.start.z : box.stop.z]

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        flat = BoundingBox(start=Shape(0, box.start.y, box.start.x), stop=Shape(1, box.stop.y, box.stop.x))
        for row, z in enumerate(range(box.start.z, box.stop.z)):
            self.planes[z].fill(flat, out[row : row + 1])


def _check_plane(path: Path, volume: FileVolume, count: int) -> None:
    if volume.shape.z != 1:
        raise UnsupportedFormat(
            f"Open {counted(count, 'file')} as the planes of one volume",
            f"{path.name} holds {volume.shape.z} planes of its own",
            "Give one 3-D file, or many files of one plane each",
        )


def _check_like(first: FileVolume, first_path: Path, plane: FileVolume, path: Path) -> None:
    _check_plane(path, plane, 2)
    if (plane.shape, plane.dtype, plane.format) == (first.shape, first.dtype, first.format):
        return
    expected = (tuple(first.shape[1:]), np.dtype(first.dtype).name, first.format)
    found = (tuple(plane.shape[1:]), np.dtype(plane.dtype).name, plane.format)
    if expected != found:
        raise UnsupportedFormat(
            f"Open {path.name} as a plane of one volume",
            f"it is {found[0]} {found[1]} {found[2]}, "
            f"{first_path.name} is {expected[0]} {expected[1]} {expected[2]} (y, x)",
            "Leave out the files that are not planes of this volume",
        )


def _claims(paths: Sequence[Path], first: FileVolume, shape: Shape, name: str) -> tuple[Any, ...]:
    sheet = ClaimSheet(Path(name or paths[0].parent.name), EXTRACTOR)
    sheet.add("core.volume_shape.z", shape.z, "number of files", [paths[0].name, paths[-1].name])
    for claim in first.claims:
        if claim.field == "core.axes":
            sheet.axes(f"z{claim.value.removeprefix('z')}", "one file per plane", claim.evidence.raw)
    depth = ("core.volume_shape.z", "core.axes", "core.channels")
    kept = [claim for claim in first.claims if claim.field not in depth]
    return (*sheet.claims, *kept)


def _differences(first: FileVolume, differing: Sequence[tuple[Path, FileVolume]]) -> list[str]:
    notes = [
        f"{path.name}: voxel size {tuple(plane.voxel_size_nm)} nm, "
        f"first file {tuple(first.voxel_size_nm)} nm (z, y, x)"
        for path, plane in differing[:LISTED]
    ]
    more = len(differing) - len(notes)
    return (
        [*notes, f"{counted(more, 'more file differs', 'more files differ')} in voxel size"]
        if more
        else notes
    )


def lost_sections(paths: Sequence[Path]) -> str | None:
    """A sentence on the numbers that file names lack which otherwise count up by one; None without any."""
    matches = [re.fullmatch(r"(.*?)(\d+)(\D*)", path.stem) for path in paths]
    if len({match and (match[1], match[3]) for match in matches}) != 1 or matches[0] is None:
        return None
    numbers = sorted(int(match[2]) for match in matches if match)
    steps = [b - a for a, b in pairwise(numbers)]
    # Names that count by tens, or by nanometres, have no gaps for it.
    if not steps or median_low(steps) != 1:
        return None
    missing = numbers[-1] - numbers[0] + 1 - len(set(numbers))
    if not missing:
        return None
    # Numbers may be of any size: none is listed that is not shown.
    gaps = chain.from_iterable(range(a + 1, b) for a, b in pairwise(numbers))
    listed = [*map(str, islice(gaps, LISTED)), *(["…"] if missing > LISTED else [])]
    return f"{counted(missing, 'number is', 'numbers are')} missing in the file names: {', '.join(listed)}"
