"""Zarr and N5 arrays on this machine as volumes: whole containers, or mirrors of a part of one."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import EmError, InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats import n5
from em_pipeline.formats.arrays import ArrayLayout, Fetch, as_stored, choose_level, joined, stored_index
from em_pipeline.formats.base import FileVolume, head_of
from em_pipeline.formats.decoders import REFUSALS, Decoder, decoder, said
from em_pipeline.formats.gaps import LazyBoxes
from em_pipeline.formats.held import HeldObjects, object_names
from em_pipeline.formats.multiscale import read_multiscale

# More would hide the sentence that says what to do with them.
MOST_LISTED = 20
AGAIN = "It is damaged: download or copy it again"


def folder_fetch(root: Path) -> Fetch:
    """A `Fetch` that reads below the folder `root`. Raises `InputRefused` for files that cannot be read."""

    def fetch(key: str) -> bytes | None:
        try:
            return (root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise InputRefused(f"Read {key!r} of {root.name}", str(error), "Make it readable") from error

    return fetch


def open_array(
    root: Path, path: str = "", *, level: int | str | None = None, at: Mapping[str, int] | None = None
) -> FileVolume:
    """The image at `path` of the container or mirror `root`, at one of its levels (None: the finest).

    Raises `NotFound` for an image or level that is not there, `UnsupportedFormat` for what is not read. See
    `read_multiscale` for `at`.
    """
    return open_layout(root, choose_level(read_multiscale(folder_fetch(root), path, at=at), level))


def open_layout(root: Path, layout: ArrayLayout) -> FileVolume:
    """The volume of a level that `read_multiscale` described, its objects below `root`.

    `missing` are the boxes whose objects are not below `root`. A read of a truncated or damaged object
    raises `UnsupportedFormat`, which names it. Raises `UnsupportedFormat` for N5 blocks that hold lists
    instead of voxels, and for codecs that are not read.
    """
    layout = _as_nested(root, layout)
    if layout.array.driver == "n5":
        _check_a_block(root, layout)
    held = HeldObjects(root, layout)
    return FileVolume(
        shape=layout.shape,
        dtype=layout.dtype,
        chunk_shape=layout.chunk_shape,
        voxels=StoredVoxels(root, layout, held, decoder(root, layout)),
        claims=layout.claims,
        metadata=layout.metadata,
        translation_nm=layout.translation_nm,
        missing=LazyBoxes(held.find),
    )


def open_container(root: Path, path: str | None = None, level: int | str | None = None) -> FileVolume:
    """`open_array`, with the only image of the container where no `path` is given.

    Raises `InputRefused`, listing the images, where there are several, and `NotFound` where there is none.
    """
    if path is not None:
        return open_array(root, path, level=level)
    refusals: list[UnsupportedFormat] = []
    images = list(_images_below(root, "", refusals))
    tried = f"Open {root.name} as a volume"
    if len(images) > 1:
        shown = ", ".join(images[:MOST_LISTED]) + (", …" if len(images) > MOST_LISTED else "")
        raise InputRefused(
            tried,
            f"{len(images)} images are in it, and one makes a volume",
            f"Choose with --image-set: {shown}",
        )
    if not images and refusals:
        raise refusals[0]
    if not images:
        raise NotFound(tried, "there is no image or array in it", "Name the container's own folder")
    return open_array(root, images[0], level=level)


def images_in(root: Path) -> tuple[str, ...]:
    """Paths of the images and single arrays in the container `root` that are read; "" is `root` itself.

    Label images belong to their image and are not listed.
    """
    return tuple(_images_below(root, "", []))


def _images_below(root: Path, path: str, refusals: list[UnsupportedFormat]) -> Iterator[str]:
    try:
        read_multiscale(folder_fetch(root), path)
        yield path
    except NotFound:
        for name in sorted(entry.name for entry in os.scandir(root / path) if entry.is_dir()):
            yield from _images_below(root, joined(path, name), refusals)
    except UnsupportedFormat as refusal:
        # One damaged or foreign image must not hide the others; it says why when it is named.
        refusals.append(refusal)


@dataclass(frozen=True)
class StoredVoxels:
    """The voxels of one level, in the objects below `root`."""

    root: Path
    layout: ArrayLayout
    held: HeldObjects
    decoder: Decoder

    @property
    def scratch_bytes(self) -> int:
        return self.decoder.scratch_bytes

    def used(self, box: BoundingBox) -> list[Path]:
        """Of the documents, and of the objects that `box` meets: see `used_of`."""
        keys = (*self.layout.documents, *(key for key, _ in self.layout.objects(box)))
        return [self.root / key for key in keys]

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        for key, covered in self.layout.objects(box):
            # A decoder would read it as fill.
            if self.held.vanished(key, covered):
                raise NotFound(
                    f"Read the chunk {key!r}", "it was there and is gone", "Download or copy it again"
                )
        try:
            self._read(box, out)
        except REFUSALS as error:
            raise self._explained(box, error) from error

    def _read(self, box: BoundingBox, out: NDArray[Any]) -> None:
        index = stored_index(box, self.layout.axes, self.layout.at)
        self.decoder.read(index, as_stored(out, self.layout.axes))

    def _explained(self, box: BoundingBox, error: Exception) -> EmError:
        """Which object of `box` cannot be read: each is tried alone."""
        for key, covered in self.layout.objects(box):
            try:
                self._read(covered, np.empty(covered.shape, self.layout.dtype))
            except REFUSALS as alone:
                return UnsupportedFormat(f"Decode the chunk {key!r}", said(alone), AGAIN)
        where = f"{tuple(box.start)}..{tuple(box.stop)}"
        return UnsupportedFormat(f"Read the box {where} of {self.layout.path!r}", said(error), AGAIN)


def _as_nested(root: Path, layout: ArrayLayout) -> ArrayLayout:
    """Writers before zarr-python 2.8 nested the chunks of zarr v2 without saying so; the folder shows it."""
    folder = root / layout.path
    if layout.array.separator_said or not folder.is_dir():
        return layout
    with os.scandir(folder) as entries:
        nested = any(entry.name.isdigit() and entry.is_dir() for entry in entries)
    return replace(layout, array=replace(layout.array, separator="/")) if nested else layout


def _check_a_block(root: Path, layout: ArrayLayout) -> None:
    """Refuse an N5 array of lists before anything is planned for it, by one of its blocks."""
    name = next(object_names(root / layout.path, layout.array), None)
    if name is not None:
        key = joined(layout.path, name)
        n5.check_block(key, head_of(root / key, n5.HEAD_BYTES), [0] * len(layout.axes))
