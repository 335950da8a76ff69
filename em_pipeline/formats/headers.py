"""What a file's headers say of the image in it, whose voxels need not be here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.evidence import Claim
from em_pipeline.formats.base import FileVolume, is_plain
from em_pipeline.formats.open import HEAD_BYTES, READ_TODAY, recognised


@dataclass(frozen=True)
class ImageHeaders:
    """One image as its headers describe it.

    `shape` and `chunk_shape` (stored in one piece) are z-y-x; a length is None where it was not found out.
    `row_by_row` says that rows lie plainly, so that no more than one is ever decoded. `axes` are named as
    stored. `byte_order` is `<`, `>` or None. `translation_nm` is the position of the first voxel's centre,
    z-y-x. `claims` hold the evidence, voxel sizes in nm; `notes` are sentences on what is unusual or was not
    looked at; `metadata` is the raw headers, JSON-ready.
    """

    file_format: str
    shape: tuple[int | None, int | None, int | None]
    dtype: str
    chunk_shape: tuple[int, int, int] | None
    compression: str
    byte_order: str | None
    claims: tuple[Claim, ...]
    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()
    name: str = ""
    axes: tuple[str, ...] = ("z", "y", "x")
    translation_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    row_by_row: bool = False

    @property
    def decode_shape(self) -> tuple[int, int, int] | None:
        """What is decoded whole, z-y-x; None where it was not found out."""
        if self.row_by_row and self.chunk_shape is not None:
            return 1, 1, self.chunk_shape[2]
        return self.chunk_shape

    def with_metadata(self, **more: Any) -> Self:
        return replace(self, metadata={**self.metadata, **more})


def read_headers(file: BinaryIO, name: str, size: int) -> tuple[ImageHeaders, ...]:
    """The images of a file of `size` bytes called `name`: one, but for containers such as HDF5.

    Raises `UnsupportedFormat` for what is no image, damaged, or in a format not read.
    """
    path = Path(name)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    found = recognised(path, head)
    if found.slug == "tiff":
        from em_pipeline.formats.tiff_headers import tiff_headers

        return (tiff_headers(path, file, size),)
    if found.slug == "dm":
        from em_pipeline.formats.dm import dm_volume

        return (of_volume(dm_volume(path, file, size)),)
    if found.slug == "mrc":
        from em_pipeline.formats.mrc import mrc_volume

        return (of_volume(mrc_volume(path, head, size)),)
    if found.slug in ("png", "jpeg"):
        return (_picture(found.slug, path, file, head),)
    if found.slug == "hdf5":
        from em_pipeline.formats.hdf5_headers import hdf5_headers

        return hdf5_headers(file, path)
    raise UnsupportedFormat(
        f"Inspect {name}", f"it is {found.title}", found.to_do or f"Formats read: {READ_TODAY}"
    )


def of_volume(volume: FileVolume) -> ImageHeaders:
    """The headers of a volume whose file was understood."""
    metadata = dict(volume.metadata)
    notes: Sequence[str] = metadata.pop("notes", ())
    said = {claim.field: claim.value for claim in reversed(volume.claims)}
    return ImageHeaders(
        file_format=volume.format,
        shape=volume.shape,
        dtype=volume.dtype.name,
        chunk_shape=volume.chunk_shape,
        compression=str(said.get("technical.compression", "")),
        byte_order=metadata.get("byte_order"),
        claims=volume.claims,
        metadata=metadata,
        notes=tuple(notes),
        translation_nm=volume.translation_nm,
        row_by_row=is_plain(volume.voxels),
    )


def _picture(slug: str, path: Path, file: BinaryIO, head: bytes) -> ImageHeaders:
    from em_pipeline.formats.png import JPEG_HEAD_BYTES, jpeg_volume, png_volume

    if slug == "png":
        return of_volume(png_volume(path, head))
    try:
        return of_volume(jpeg_volume(path, head))
    except UnsupportedFormat:
        # A long preview or colour profile may come before the frame's header.
        file.seek(0)
        return of_volume(jpeg_volume(path, file.read(JPEG_HEAD_BYTES)))
