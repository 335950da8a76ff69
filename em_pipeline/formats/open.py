"""Which reader a file needs, by its first bytes; and one volume from one file or many.

A format is one line of `FORMATS` or `FOLDERS`: adding one is adding that line and its reader.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.raw_layout import RawLayout
from em_pipeline.formats.base import FileVolume, head_of
from em_pipeline.formats.stack import open_stack

HEAD_BYTES = 1024
RAW_SUFFIXES = (".raw", ".dat", ".bin")


@dataclass(frozen=True)
class Format:
    """A file format: how to know it, and its reader as `module:function`, or what to do without one.

    A file of a format with `images` may hold several: its reader takes the name of one, or None, as well.
    `plane` reads a file behind the first of a stack, where that is less: see `open_stack`.
    """

    slug: str
    title: str
    suffixes: tuple[str, ...]
    matches: Callable[[bytes], bool]
    reader: str | None = None
    to_do: str = ""
    images: bool = False
    plane: str | None = None


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
_UNPACK = "Unpack it first; or ingest it as it is: em ingest --raw-shape Z,Y,X --raw-dtype DTYPE"
FORMATS = (
    Format("tiff", "TIFF", (".tif", ".tiff", ".btf"), _starts(*_TIFF), "tiff:open_tiff",
           plane="tiff:open_tiff_plane"),
    Format("dm", "DM3/DM4", (".dm3", ".dm4"), _is_dm, "dm:open_dm", plane="dm:open_dm_plane"),
    Format("png", "PNG", (".png",), _starts(b"\x89PNG\r\n\x1a\n"), "png:open_png"),
    Format("jpeg", "JPEG", (".jpg", ".jpeg"), _starts(b"\xff\xd8\xff"), "png:open_jpeg"),
    Format("hdf5", "HDF5", (".h5", ".hdf5", ".hdf", ".ims", ".emd"), _starts(b"\x89HDF\r\n\x1a\n"),
           "hdf5:open_hdf5", images=True),
    Format("ser", "FEI SER", (".ser",), _starts(b"II\x97\x01"), to_do=_CONVERT),
    Format("gzip", "gzip", (".gz",), _starts(b"\x1f\x8b"), to_do=_UNPACK),
    Format("zip", "ZIP", (".zip", ".npz"), _starts(b"PK\x03\x04", b"PK\x05\x06"), to_do="Unpack it first"),
    Format("npy", "NumPy", (".npy",), _starts(b"\x93NUMPY"), to_do=_CONVERT),
    Format("html", "HTML", (".html", ".htm"), _is_text(b"<!doctype html", b"<html"), to_do=_PAGE),
    Format("xml", "XML", (".xml",), _is_text(b"<?xml"), to_do=_PAGE),
    Format("json", "JSON", (".json",), _is_text(b"{", b"["), to_do=_PART),
    Format("lfs", "Git LFS pointer", (), _starts(b"version https://git-lfs"), to_do=_LFS),
    Format("mrc", "MRC", (".mrc", ".rec", ".st", ".ali", ".map", ".mrcs"), _is_mrc, "mrc:open_mrc"),
)  # fmt: skip
# Folders that are one array or image, or a container of them, by a file that only they have.
FOLDERS = {
    "zarr": ("zarr.json", ".zgroup", ".zarray", ".zattrs"),
    "n5": ("attributes.json",),
    "precomputed": ("info",),
}
FOLDER_TITLES = {"zarr": "OME-Zarr", "n5": "N5", "precomputed": "precomputed"}
READ_TODAY = ", ".join((*(f.title for f in FORMATS if f.reader), *FOLDER_TITLES.values(), "raw"))


def sniff(path: Path) -> str:
    """Slug of the format of a file or folder, by its content: `tiff`, `dm`, `mrc`, `hdf5`, `html`, `zarr`…

    The suffix decides only where content cannot: between formats with one magic number, for MRC files older
    than theirs, and for containers whose outermost folder holds nothing but folders.
    Raises `NotFound`, or `UnsupportedFormat` for empty and unknown content.
    """
    if path.is_dir():
        return _sniff_folder(path)
    return _format_of(path).slug


def open_volume(
    paths: Sequence[Path],
    *,
    name: str = "",
    image: str | None = None,
    level: int | str | None = None,
    raw: RawLayout | None = None,
) -> LazyVolume:
    """One volume from one file (3-D or a single plane), from many 2-D files, or from a folder of those.

    Many files become planes in natural order (`slice_2` before `slice_10`); files that a folder holds
    besides images are passed over. `name` says in messages and evidence what the files are together.
    A folder may be an array container, and `image` the path of an image or array in it or in an HDF5 file,
    needed where there are several; `level` is that of a multiscale image. `raw` describes a file without a
    header.
    Raises `UnsupportedFormat` for formats not read, naming those that are, for planes that differ and
    for several 3-D files; `NotFound`; `InputRefused` where there is no file, for an `image` or `level` of
    what has only one, and where a choice is needed, naming what there is.
    """
    paths = [Path(path) for path in paths]
    alone = paths[0] if len(paths) == 1 else None
    if alone is not None and not alone.is_dir():
        return _open_raw(alone, raw) if raw or _is_raw(alone) else _open_file(alone, image, level)
    slug = sniff(alone) if alone is not None else "folder"
    if alone is not None and slug in FOLDERS:
        return _open_folder(slug, alone, image, level)
    if image is not None or level is not None or raw is not None:
        raise _not_several(
            name or str(alone or "files"), "it is a stack of files, each of one image and level"
        )
    if alone is not None:
        name = name or alone.name
        paths = [p for p in alone.iterdir() if p.is_file() and p.suffix.lower() in _readable_suffixes()]
    return open_stack(paths, _open_file, _open_plane, name)


def _open_file(path: Path, image: str | None = None, level: int | str | None = None) -> FileVolume:
    found = _format_of(path)
    if found.reader is None:
        raise _not_read(path, found.title, found.to_do)
    if level is not None or (image is not None and not found.images):
        raise _not_several(path.name, f"a {found.title} file is read as one image of one level")
    read = _reader(found.reader)
    return read(path, image) if found.images else read(path)


def _open_plane(path: Path) -> FileVolume:
    found = _format_of(path)
    return _open_file(path) if found.plane is None else _reader(found.plane)(path)


@cache
def _reader(name: str) -> Callable[..., FileVolume]:
    """The function that `module:function` names."""
    module, function = name.split(":")
    read: Callable[..., FileVolume] = getattr(import_module(f"em_pipeline.formats.{module}"), function)
    return read


def _open_folder(slug: str, folder: Path, image: str | None, level: int | str | None) -> FileVolume:
    if slug == "precomputed":
        from em_pipeline.formats.precomputed import open_precomputed

        if image is not None:
            raise _not_several(folder.name, "a precomputed volume is one image")
        return open_precomputed(folder, level=level)
    from em_pipeline.formats.mirror import open_container

    return open_container(folder, image, level)


def _open_raw(path: Path, layout: RawLayout | None) -> FileVolume:
    from em_pipeline.formats.raw import open_raw

    return open_raw(path, layout)


def _is_raw(path: Path) -> bool:
    """Whether only a person can say what the file is: its suffix promises no header, its content has none."""
    if not path.is_file() or path.suffix.lower() not in RAW_SUFFIXES:
        return False
    head = head_of(path, HEAD_BYTES)
    return bool(head) and not any(f.matches(head) for f in FORMATS)


def _not_several(name: str, found: str) -> InputRefused:
    return InputRefused(
        f"Choose an image or level of {name}", found, "Leave --image-set, --level and --raw-shape out"
    )


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
    return {".n5": "n5", ".zarr": "zarr"}.get(path.suffix, "folder")


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
