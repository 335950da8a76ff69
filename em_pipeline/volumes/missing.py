"""Which voxels of a level the source does not hold.

Sources lack whole chunks of theirs, so their absence is a grid of a few boxes: along each axis, *cuts* where
something may change, and between the cuts, cells that are missing or not. The same voxels make the same cuts
and cells, however and in whatever order they were listed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape

Cuts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Missing:
    """Missing voxels of one level. `cuts` go from 0 to its extent along z, y, x; `cells` lie between them."""

    cuts: Cuts
    cells: NDArray[np.bool_]

    @classmethod
    def of(cls, boxes: Iterable[BoundingBox], within: BoundingBox) -> Self | None:
        """`boxes` as far as they lie in `within`, counted from its first voxel; None where nothing does."""
        spans = [
            [(max(a, c) - c, min(b, d) - c) for a, b, c, d in _axes(box, within)]
            for box in boxes
            if all(a < d and c < b for a, b, c, d in _axes(box, within))
        ]
        if not spans:
            return None
        cuts = [
            np.unique([0, extent, *(end for span in spans for end in span[axis])])
            for axis, extent in enumerate(within.shape)
        ]
        cells = np.zeros([len(cut) - 1 for cut in cuts], bool)
        for span in spans:
            places = (np.searchsorted(cut, ends) for cut, ends in zip(cuts, span, strict=True))
            cells[tuple(slice(*ends) for ends in places)] = True
        return cls._canonical(cuts, cells)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """What `to_json` gave. Raises `ValueError` or `KeyError` for anything else."""
        cuts = [np.array(cut, np.int64) for cut in facts["cuts"]]
        shape = [len(cut) - 1 for cut in cuts]
        cells = np.zeros(int(np.prod(shape)), bool)
        for start, stop in facts["runs"]:
            cells[start:stop] = True
        return cls._canonical(cuts, cells.reshape(shape))

    def to_json(self) -> dict[str, Any]:
        """Cuts, and the runs of missing cells in C order."""
        edges = np.flatnonzero(np.diff(self.cells.ravel().astype(np.int8), prepend=0, append=0))
        return {"cuts": [cut.tolist() for cut in self.cuts], "runs": edges.reshape(-1, 2).tolist()}

    @property
    def shape(self) -> Shape:
        """Extent of the level, voxels."""
        return Shape(*(int(cut[-1]) for cut in self.cuts))

    @property
    def voxels(self) -> int:
        """How many are missing."""
        lengths = [np.diff(cut) for cut in self.cuts]
        return int(np.einsum("zyx,z,y,x->", self.cells.astype(np.int64), *lengths))

    def within(self, box: BoundingBox) -> NDArray[np.bool_] | None:
        """A mask of the missing voxels of `box` (z, y, x); None where it has none."""
        places = [
            np.searchsorted(cut, np.arange(a, b), "right") - 1
            for cut, a, b in zip(self.cuts, box.start, box.stop, strict=True)
        ]
        if not self.cells[tuple(slice(at[0], at[-1] + 1) for at in places)].any():
            return None
        return self.cells[np.ix_(*places)]

    def pyramid(self, shapes: Sequence[Shape]) -> tuple["Missing", ...]:
        """Missing voxels of each level of a pyramid whose levels have `shapes`, this being the finest."""
        levels = [self]
        for finer, coarser in pairwise(shapes):
            levels.append(levels[-1]._coarser(finer, coarser))
        return tuple(levels)

    def _coarser(self, finer: Shape, coarser: Shape) -> "Missing":
        """A coarse voxel is missing where every finer voxel that it is made from is."""
        cuts, cells = list(self.cuts), self.cells
        for axis, (fine, coarse) in enumerate(zip(finer, coarser, strict=True)):
            if coarse == fine:
                continue
            cut = self.cuts[axis]
            cuts[axis] = np.unique(np.concatenate([cut // 2, -(-cut // 2)]))
            first = np.searchsorted(cut, cuts[axis][:-1] * 2, "right") - 1
            # The last coarse voxel of an odd extent has one finer voxel only.
            second = np.searchsorted(cut, np.minimum(cuts[axis][:-1] * 2 + 1, fine - 1), "right") - 1
            cells = cells.take(first, axis) & cells.take(second, axis)
        return self._canonical(cuts, cells)

    @classmethod
    def _canonical(cls, cuts: Sequence[NDArray[np.int64]], cells: NDArray[np.bool_]) -> Self:
        """Without cuts at which nothing changes."""
        kept = list(cuts)
        for axis in range(3):
            view = np.moveaxis(cells, axis, 0).reshape(cells.shape[axis], -1)
            changes = np.flatnonzero(np.concatenate([[True], (view[1:] != view[:-1]).any(axis=1)]))
            kept[axis] = np.append(kept[axis][changes], kept[axis][-1]).astype(np.int64)
            cells = cells.take(changes, axis)
        return cls((kept[0], kept[1], kept[2]), cells)


def _axes(box: BoundingBox, within: BoundingBox) -> Iterable[tuple[int, int, int, int]]:
    return zip(box.start, box.stop, within.start, within.stop, strict=True)
