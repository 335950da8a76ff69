"""Which reader a file needs, by its first bytes; and one volume from one file or many.

A format is one line of `FORMATS`: adding one is adding that line and its reader.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from em_pipeline.domain.errors import NotFound, UnsupportedFormat
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.formats.base import FileVolume, head_of
from em_pipeline.formats.stack import open_stack

HEAD_BYTES = 1024


@dataclass(frozen=True)
class Format:
    """A file format: how to know it, and its reader as `module:function`, or what to do without one."""

    slug: str
    title: str
    suffixes: tuple[str, ...]
    matches: Callable[[bytes], bool]
    reader: str | None = None
    to_do: str = ""


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


def _is_dm(head: bytes) -> bool:
    """Version 3 or 4, the length of the file, and a byte order of 0 or 1."""
    if len(head) < 16:
        return False
    version = struct.unpack(">I", head[:4])[0]
    order_at = {3: 8, 4: 12}.get(version)
    return order_at is not None and struct.unpack(">I", head[order_at : order_at + 4])[0] in (0, 1)


def _is_mrc(head: bytes) -> bool:
    return head[208:211] == b"MAP"


def _is_text(*openings: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(openings)


_PAGE = "The server answered with a page instead of the file: download it again from its real address"
_LFS = "Fetch the file itself with `git lfs pull`"
_PART = "Give the image file itself, or the folder it is in"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CONVERT = "Convert it to TIFF, MRC or DM first"
FORMATS = (
    Format("tiff", "TIFF", (".tif", ".tiff", ".btf"), _starts(*_TIFF), "tiff:open_tiff"),
    Format("dm", "DM3/DM4", (".dm3", ".dm4"), _is_dm, "dm:open_dm"),
    Format("png", "PNG", (".png",), _starts(b"\x89PNG\r\n\x1a\n"), "png:open_png"),
    Format("jpeg", "JPEG", (".jpg", ".jpeg"), _starts(b"\xff\xd8\xff"), "png:open_jpeg"),
    Format("emd", "EMD (HDF5)", (".emd",), _starts(b"\x89HDF\r\n\x1a\n"), to_do=_CONVERT),
    Format("hdf5", "HDF5", (".h5", ".hdf5", ".hdf", ".ims"), _starts(b"\x89HDF\r\n\x1a\n"), to_do=_CONVERT),
    Format("ser", "FEI SER", (".ser",), _starts(b"II\x97\x01"), to_do=_CONVERT),
    Format("gzip", "gzip", (".gz",), _starts(b"\x1f\x8b"), to_do="Unpack it first"),
    Format("zip", "ZIP", (".zip", ".npz"), _starts(b"PK\x03\x04", b"PK\x05\x06"), to_do="Unpack it first"),
    Format("npy", "NumPy", (".npy",), _starts(b"\x93NUMPY"), to_do=_CONVERT),
    Format("html", "HTML", (".html", ".htm"), _is_text(b"<!doctype html", b"<html"), to_do=_PAGE),
    Format("xml", "XML", (".xml",), _is_text(b"<?xml"), to_do=_PAGE),
    Format("json", "JSON", (".json",), _is_text(b"{", b"["), to_do=_PART),
    Format("lfs", "Git LFS pointer", (), _starts(b"version https://git-lfs"), to_do=_LFS),
    Format("mrc", "MRC", (".mrc", ".rec", ".st", ".ali", ".map", ".mrcs"), _is_mrc, "mrc:open_mrc"),
)  # fmt: skip
# Folders that are one array or image, by a file that only they have.
FOLDERS = {
    "zarr": ("zarr.json", ".zgroup", ".zarray", ".zattrs"),
    "n5": ("attributes.json",),
    "precomputed": ("info",),
}
READ_TODAY = ", ".join(f.title for f in FORMATS if f.reader)


def sniff(path: Path) -> str:
    """Slug of the format of a file or folder, by its content: `tiff`, `dm`, `mrc`, `hdf5`, `html`, `zarr`…

    The suffix decides only where content cannot: between formats with one magic number (EMD and HDF5),
    and for MRC files older than their magic number.
    Raises `NotFound`, or `UnsupportedFormat` for empty and unknown content.
    """
    if path.is_dir():
        return _sniff_folder(path)
    return _format_of(path).slug


def open_volume(paths: Sequence[Path], *, name: str = "") -> LazyVolume:
    """One volume from one file (3-D or a single plane), from many 2-D files, or from a folder of those.

    Many files become planes in natural order (`slice_2` before `slice_10`); files that a folder holds
    besides images are passed over. `name` says in messages and evidence what the files are together.
    Raises `UnsupportedFormat` for formats not read, naming those that are, for planes that differ and
    for several 3-D files; `NotFound`; `InputRefused` where there is no file.
    """
    paths = [Path(path) for path in paths]
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        slug = sniff(folder)
        if slug != "folder":
            raise _not_read(folder, slug, _CONVERT)
        name = name or folder.name
        paths = [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in _readable_suffixes()]
    elif len(paths) == 1:
        return _open_file(paths[0])
    return open_stack(paths, _open_file, name)


def _open_file(path: Path) -> FileVolume:
    found = _format_of(path)
    if found.reader is None:
        raise _not_read(path, found.title, found.to_do)
    module, function = found.reader.split(":")
    volume: FileVolume = getattr(import_module(f"em_pipeline.formats.{module}"), function)(path)
    return volume


def _format_of(path: Path) -> Format:
    if not path.exists():
        raise NotFound(f"Open {path.name}", "there is no such file", f"Looked for {path}")
    return recognised(path, head_of(path, HEAD_BYTES))


def recognised(path: Path, head: bytes) -> Format:
    """The format of a file called `path` whose first `HEAD_BYTES` are `head`. Raises like `sniff`."""
    suffix = path.suffix.lower()
    found = [f for f in FORMATS if f.matches(head)]
    if not found and suffix in _mrc().suffixes and _is_old_mrc(path, head):
        return _mrc()
    if not found:
        what = "is empty" if not head else f"begins with {head[:8]!r}, which is no format we know"
        raise UnsupportedFormat(f"Open {path.name}", f"it {what}", f"Formats read: {READ_TODAY}")
    return next((f for f in found if suffix in f.suffixes), found[-1])


def _is_old_mrc(path: Path, head: bytes) -> bool:
    from em_pipeline.formats.mrc import read_header

    try:
        read_header(path, head)
    except UnsupportedFormat:
        return False
    return True


def _sniff_folder(path: Path) -> str:
    for slug, markers in FOLDERS.items():
        if any((path / marker).is_file() for marker in markers):
            return slug
    return "n5" if path.suffix == ".n5" else "folder"


def _mrc() -> Format:
    return next(f for f in FORMATS if f.slug == "mrc")


def _readable_suffixes() -> frozenset[str]:
    return frozenset(suffix for f in FORMATS if f.reader for suffix in f.suffixes)


def _not_read(path: Path, found: str, to_do: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"Open {path.name} as a volume",
        f"it is {found}, which is not read (formats read: {READ_TODAY})",
        to_do,
    )
