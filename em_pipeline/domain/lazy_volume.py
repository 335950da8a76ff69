"""The contract between whatever reads files and whatever rechunks them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What voxels are: grey values, or ids.
Kind = Literal["image", "labels"]
# The key of `metadata` under which a reader quotes what in the source says that the voxels are ids.
SAID_LABELS = "said_labels"
# The key of `metadata` under which a reader says that sections seem to be lost between those that are there.
LOST_SECTIONS = "lost_sections"


@runtime_checkable
class LazyVolume(Protocol):
    """A 3-D array in files, read box by box.

    `shape` is z-y-x voxels. `dtype` has native byte order. `chunk_shape` is the unit the source stores
    (a strip, a tile, a plane), z-y-x; `decode_shape` what it decodes whole to give any voxel of it: the same,
    or a row where rows are stored plainly. `voxel_size_nm` holds what the files say, None per axis where they
    say nothing. `translation_nm` is the position of the first voxel's centre, z-y-x.
    `missing` are boxes, z-y-x, for which the source holds nothing although it could: reading them gives the
    source's fill value, and whoever writes the voxels records that they are absent. They do not overlap.
    `scratch_bytes` is the memory that one read takes at most besides the array it fills; each thread that
    reads takes as much, and may keep it until it ends.
    `claims` carry the evidence for every value the files gave. `metadata` is the raw headers, JSON-ready;
    where these say that the voxels are ids and not grey values, `SAID_LABELS` in it quotes them. `notes` in
    it are sentences on what is unusual, one of them again under `LOST_SECTIONS`.
    """

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> "np.dtype[Any]": ...
    @property
    def chunk_shape(self) -> Shape: ...
    @property
    def decode_shape(self) -> Shape: ...
    @property
    def voxel_size_nm(self) -> PartialVoxelSize: ...
    @property
    def translation_nm(self) -> tuple[float, float, float]: ...
    @property
    def missing(self) -> Sequence[BoundingBox]: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def claims(self) -> Sequence[Claim]: ...
    @property
    def metadata(self) -> dict[str, Any]: ...

    def read(self, box: BoundingBox, out: "NDArray[Any] | None" = None) -> "NDArray[Any]":
        """Voxels of `box`, z-y-x, C order, into `out` where given. Safe to call from several threads.

        Never loads the whole file. Raises `InputRefused` for a box outside the volume and
        `UnsupportedFormat` where the file is truncated or cannot be decoded.
        """
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class Fetching(Protocol):
    """What a `LazyVolume` has besides that fetches files which this machine lacks while it is read.

    `fetch_bytes` is the memory that this takes at most, whatever is read at once.
    """

    @property
    def fetch_bytes(self) -> int: ...

    def lacks(self, box: BoundingBox) -> bool:
        """Whether reading `box` (z-y-x) would fetch something first."""
        ...


class PlainRows(NamedTuple):
    """Where in the file `path` the voxels of a box lie just as an array of the volume's type holds them.

    `starts` is the byte of the first of them in each plane; `row_voxels` is from row to row, in voxels.
    """

    path: Path
    starts: "NDArray[np.int64]"
    row_voxels: int


@runtime_checkable
class Plain(Protocol):
    """What a `LazyVolume` has besides whose rows may lie plainly in a file."""

    def plain_rows(self, box: BoundingBox) -> PlainRows | None:
        """Where the voxels of `box` (z-y-x, inside the volume) lie; None where they have to be decoded."""
        ...
