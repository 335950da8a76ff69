"""MRC2014 and its dialects (.mrc, .rec, .st, .ali, .map), by the layout of `mrcfile`.

Header: Cheng et al. 2015, J. Struct. Biol. 192:146, https://www.ccpem.ac.uk/mrc_format/mrc2014.php.
IMOD's signed-byte flag: https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile.dtypes
import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.base import ClaimSheet, FileVolume, RawVoxels, Voxels, head_of, jsonable, truncated

EXTRACTOR = "formats.mrc"
HEADER_BYTES = 1024
DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
NOT_GREY = {3: "complex 16-bit integers", 4: "complex floats", 16: "RGB", 101: "4-bit integers"}
# Word 39 of a header written by IMOD, and the bit of word 40 that says mode 0 is signed.
IMOD_STAMP = 1146047817
IMOD_SIGNED = 1
ANGSTROM_NM = 0.1
IMAGE_STACK_SUFFIXES = (".st", ".ali")


def open_mrc(path: Path) -> FileVolume:
    """The volume in an MRC file, z-y-x whatever order its axes are stored in.

    8-bit (signed, or unsigned where IMOD's flag says so), int16, uint16, float32; float16 is read as
    float32. The voxel size is cell length ÷ sampling in nm; None where the header has zero or less, and
    along z for image stacks (space group 0), whose sections are not spaced.
    Raises `UnsupportedFormat` for other modes, volume stacks, broken headers and truncated files.
    """
    return mrc_volume(path, head_of(path, HEADER_BYTES), path.stat().st_size)


def mrc_volume(path: Path, head: bytes, size: int) -> FileVolume:
    """The volume that the header `head` of a file of `size` bytes describes; its voxels are read from `path`.

    Raises like `open_mrc`.
    """
    header, byte_order = read_header(path, head)
    notes: list[str] = []
    stored = _stored_dtype(path, header, byte_order)
    sections = _positive_sizes(path, header)
    order = _axis_order(path, header)
    raw = RawVoxels.contiguous(path, HEADER_BYTES + max(int(header["nsymbt"]), 0), sections, stored)
    raw.check_size(size)
    shape = Shape(*(sections[order.index(axis)] for axis in "zyx"))
    dtype = np.dtype(np.float32) if stored.kind == "f" else stored.newbyteorder("=")
    voxels: Voxels = raw if order == ("z", "y", "x") else Transposed(raw, order)
    plane = Shape(*(1 if axis == order[0] else n for axis, n in zip("zyx", shape, strict=True)))
    sheet = ClaimSheet(path, EXTRACTOR)
    sheet.layout(shape, dtype, plane, "MRC", "none", "header")
    sheet.axes(order, "MAPS, MAPR, MAPC", "".join(order))
    _claim_voxel_size(path, sheet, header, notes)
    if order != ("z", "y", "x"):
        notes.append(f"sections, rows, columns of the file are {', '.join(order)}; read as z, y, x")
    metadata: dict[str, Any] = {"header": _as_json(header), "byte_order": byte_order, "notes": notes}
    return FileVolume(shape, dtype, plane, voxels, tuple(sheet.claims), metadata)


@dataclass(frozen=True)
class Transposed:
    """Voxels whose sections, rows and columns (`order`) are not z, y, x."""

    stored: RawVoxels
    order: tuple[str, ...]

    @property
    def scratch_bytes(self) -> int:
        return self.stored.scratch_bytes

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        start = Shape(*(getattr(box.start, axis) for axis in self.order))
        stop = Shape(*(getattr(box.stop, axis) for axis in self.order))
        view = out.transpose(["zyx".index(axis) for axis in self.order])
        self.stored.fill(BoundingBox(start=start, stop=stop), view)


def read_header(path: Path, head: bytes) -> tuple[Any, str]:
    """The 1024-byte header as a numpy record, and its byte order (`<`, `>`). Raises `UnsupportedFormat`."""
    if len(head) < HEADER_BYTES:
        raise truncated(path, HEADER_BYTES, len(head))
    for byte_order in "<>":
        header = np.frombuffer(head[:HEADER_BYTES], mrcfile.dtypes.HEADER_DTYPE.newbyteorder(byte_order))[0]
        if is_plausible(header):
            return header, byte_order
    raise UnsupportedFormat(
        f"Read {path.name} as MRC",
        "mode, size and axis order make no sense in either byte order",
        "The file is damaged or not MRC",
    )


def is_plausible(header: Any) -> bool:
    """Whether mode, size and axis order can be those of a file. Machine stamps lie more often."""
    sizes = (int(header["nx"]), int(header["ny"]), int(header["nz"]))
    modes = {*DTYPES, *NOT_GREY}
    axes = (int(header["mapc"]), int(header["mapr"]), int(header["maps"]))
    return (
        int(header["mode"]) in modes and all(0 < n < 2**24 for n in sizes) and all(0 <= a <= 3 for a in axes)
    )


def _stored_dtype(path: Path, header: Any, byte_order: str) -> np.dtype[Any]:
    mode = int(header["mode"])
    if mode in NOT_GREY:
        raise UnsupportedFormat(
            f"Read {path.name} as MRC",
            f"its mode {mode} holds {NOT_GREY[mode]}",
            "Modes 0, 1, 2, 6 and 12 are read: convert the file, for example with IMOD's newstack",
        )
    if mode == 0 and _imod_unsigned(header, byte_order):
        return np.dtype("u1")
    return np.dtype(f"{byte_order}{DTYPES[mode]}")


def _imod_unsigned(header: Any, byte_order: str) -> bool:
    stamp, flags = np.frombuffer(header.tobytes()[152:160], f"{byte_order}i4")
    return bool(stamp == IMOD_STAMP and not flags & IMOD_SIGNED)


def _positive_sizes(path: Path, header: Any) -> Shape:
    sections = Shape(int(header["nz"]), int(header["ny"]), int(header["nx"]))
    if int(header["ispg"]) > 400 and int(header["mz"]) != sections.z:
        raise UnsupportedFormat(
            f"Read {path.name} as MRC",
            f"it is a stack of volumes ({sections.z} sections of {int(header['mz'])} each)",
            "Split it into one file per volume",
        )
    return sections


def _axis_order(path: Path, header: Any) -> tuple[str, ...]:
    """Names of the axes that sections, rows and columns run along."""
    axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    if axes == [0, 0, 0]:
        return ("z", "y", "x")
    if sorted(axes) != [1, 2, 3]:
        raise UnsupportedFormat(
            f"Read {path.name} as MRC",
            f"mapc, mapr, maps are {axes[::-1]}, which is no order of three axes",
            "Correct the header (1, 2, 3 means columns x, rows y, sections z)",
        )
    return tuple("xyz"[axis - 1] for axis in axes)


def _claim_voxel_size(path: Path, sheet: ClaimSheet, header: Any, notes: list[str]) -> None:
    if any(0 < float(header["cellb"][angle]) != 90 for angle in ("alpha", "beta", "gamma")):
        notes.append("the cell's angles are not all 90°: spacings are along the cell's own axes")
    for axis in "zyx":
        length, sampling = float(header["cella"][axis]), int(header[f"m{axis}"])
        if axis == "z" and _is_image_stack(path, header):
            notes.append("a stack of images, whose sections have no spacing")
        elif length > 0 and sampling > 0:
            raw = {f"cella.{axis}": length, f"m{axis}": sampling}
            nanometres = round(length / sampling * ANGSTROM_NM, 9)
            sheet.voxel_size(axis, nanometres, f"cella.{axis} / m{axis}", raw, "Å")
        else:
            notes.append(f"no voxel size along {axis}: cella.{axis} = {length:g} Å over m{axis} = {sampling}")


def _is_image_stack(path: Path, header: Any) -> bool:
    """Whether the sections are separate images, such as a tilt series.

    MRC2014 (Cheng et al. 2015, doi:10.1016/j.jsb.2015.04.002) marks those by space group 0 and mz = 1. IMOD
    writes space group 0 and mz = nz for volumes and tilt series alike, which only its suffixes tell apart.
    """
    if int(header["ispg"]) != 0 or int(header["nz"]) == 1:
        return False
    return int(header["mz"]) == 1 or path.suffix.lower() in IMAGE_STACK_SUFFIXES


def _as_json(header: Any) -> dict[str, Any]:
    fields = {name: header[name] for name in header.dtype.names if name not in ("extra1", "extra2", "label")}
    fields["label"] = [text.decode("latin-1").strip() for text in header["label"].tolist() if text.strip()]
    cells = {name: dict(zip(header[name].dtype.names, header[name].tolist(), strict=True))
             for name in ("cella", "cellb", "origin")}  # fmt: skip
    return {name: jsonable(value) for name, value in {**fields, **cells}.items()}
