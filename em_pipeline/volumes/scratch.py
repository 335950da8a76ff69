"""The downsampled voxels of a level, kept raw until the next coarser level is made from them.

Each unit leaves one blob: the downsampled part of each of its chunks, one after the other, in the order in
which it writes them. Nothing else is needed to find a part, and units never share a blob.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Run
from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline.volumes.tiling import grid
from em_pipeline.volumes.workspace import Workspace

_MAPS_HELD: Final = 16  # each has an entry of some hundred bytes for every chunk of a unit
_CHECKED_AT_ONCE: Final = 2 << 20  # bytes asked for in one request when a resumed run looks at a blob
_CHECKSUMS_HELD: Final = 256  # each has 4 bytes for every chunk of a unit; finding one reads its record


class Part(NamedTuple):
    """What a chunk left in its unit's blob: `number` in their order, first byte, shape (coarser z-y-x)."""

    number: int
    offset: int
    shape: Shape


class _Wanted(NamedTuple):
    """A part of a unit, how many bytes it has, and where its voxels go."""

    unit: int
    part: Part
    nbytes: int
    target: NDArray[Any]


class ScratchReader:
    """Chunks of a level, assembled from what the units of the finer level `finer` left. Thread-safe.

    Days may lie between the writing of a part and its reading: each is compared with its unit's record.
    """

    def __init__(self, finer: LevelPlan, dtype: np.dtype[Any], workspace: Workspace) -> None:
        self.finer = finer
        self._dtype = dtype
        self._workspace = workspace
        self._parts = lru_cache(maxsize=_MAPS_HELD)(self._find_parts)
        self._checksums = lru_cache(maxsize=_CHECKSUMS_HELD)(self._read_checksums)
        self._reading = threading.Lock()

    def read_chunks(self, wanted: Iterable[tuple[Shape, NDArray[Any]]], held: int) -> None:
        """The voxels of chunks of the coarser level, each given by its index (z, y, x), into their arrays.

        An array has the shape of its level's `tile_shape` (z, y, x); past the level's edge it is left as it
        is. Chunks are taken from `wanted` as they are asked for, and what was asked for is no more than
        `held` bytes, or a chunk's. Raises `ChunkCorrupt` where a part, or the record of the unit that left
        it, is missing or altered.
        """
        coming: deque[_Wanted] = deque()

        def runs() -> Iterator[Run]:
            for index, out in wanted:
                for run in self._runs(index, out):
                    coming.extend(run)
                    first = run[0]
                    name = self._workspace.scratch(self.finer.index, first.unit)
                    yield Run(name, first.part.offset, tuple(part.nbytes for part in run))

        with closing(self._workspace.place.read_runs(runs(), held)) as payloads:
            try:
                for payload in payloads:
                    self._take(coming.popleft(), payload)
                    del payload  # whoever reads ahead counts on it
            except NotFound as error:
                raise self._lost(coming[0].unit, "it is missing") from error

    def _runs(self, index: Shape, out: NDArray[Any]) -> list[list[_Wanted]]:
        """The parts of a chunk, those together that lie one behind the other in the blob of a unit."""
        runs: list[list[_Wanted]] = []
        for part in sorted(self._wanted(index, out), key=lambda part: (part.unit, part.part.offset)):
            last = runs[-1][-1] if runs else None
            if last and (last.unit, last.part.offset + last.nbytes) == (part.unit, part.part.offset):
                runs[-1].append(part)
            else:
                runs.append([part])
        return runs

    def _wanted(self, index: Shape, out: NDArray[Any]) -> Iterator[_Wanted]:
        """The parts that chunk `index` is put together from."""
        finer = self.finer
        ranges = [
            range(i * f, min(i * f + f, n))
            for i, f, n in zip(index, finer.factors, finer.chunk_grid, strict=True)
        ]
        for child in product(*ranges):
            unit = finer.unit_of(Shape(*child))
            part = self._parts(unit)[Shape(*child)]
            place = tuple(
                (c - r.start) * (n // f)
                for c, r, n, f in zip(child, ranges, finer.chunk_shape, finer.factors, strict=True)
            )
            target = out[tuple(slice(a, a + n) for a, n in zip(place, part.shape, strict=True))]
            yield _Wanted(unit, part, part.shape.voxels * self._dtype.itemsize, target)

    def _take(self, wanted: _Wanted, payload: bytes | memoryview) -> None:
        """Compare a part with its unit's record, and put it where it belongs."""
        unit, part, nbytes, target = wanted
        with self._reading:  # once, and not by every thread that comes meanwhile
            checksums = self._checksums(unit)
        if len(payload) != nbytes:
            raise self._lost(unit, f"it ends before byte {part.offset + nbytes}")
        found = np.frombuffer(payload, np.uint8)
        if part.number >= len(checksums) or crc32c(found) != checksums[part.number]:
            raise self._lost(
                unit, f"its {nbytes} bytes from byte {part.offset} are not those that were written"
            )
        target[...] = found.view(self._dtype).reshape(part.shape)

    def _lost(self, unit: int, found: str) -> ChunkCorrupt:
        return _lost(self.finer, unit, self._workspace, found)

    def _read_checksums(self, unit: int) -> NDArray[np.uint32]:
        """The CRC-32C of each part of a unit, in their order."""
        try:
            return self._workspace.read_record(self.finer.index, unit).coarse
        except NotFound as error:
            raise self._lost(unit, "the record of the unit is missing") from error

    def _find_parts(self, unit: int) -> Mapping[Shape, Part]:
        """The part of each chunk of a unit."""
        return parts_of(self.finer, self.finer.unit(unit), self._dtype.itemsize)


def parts_of(level: LevelPlan, unit: Unit, itemsize: int) -> dict[Shape, Part]:
    """Where in the unit's blob the part of each chunk lies, in the order in which they were written."""
    found, offset = {}, 0
    for number, (chunk, valid) in enumerate(unit.chunks(level.chunk_shape)):
        part = found[chunk] = Part(number, offset, grid(valid, level.factors))
        offset += part.shape.voxels * itemsize
    return found


def check_scratch(
    level: LevelPlan, unit: Unit, dtype: np.dtype[Any], workspace: Workspace, coarse: NDArray[np.uint32]
) -> None:
    """Raises `ChunkCorrupt` unless what the unit left is as its record says (`UnitRecord.coarse`)."""
    name, parts = workspace.scratch(level.index, unit.index), parts_of(level, unit, dtype.itemsize)
    runs = _in_runs(name, [part.shape.voxels * dtype.itemsize for part in parts.values()])
    try:
        with closing(workspace.place.read_runs(runs, _CHECKED_AT_ONCE)) as payloads:
            checksums = [crc32c(np.frombuffer(payload, np.uint8)) for payload in payloads]
    except NotFound as error:
        raise _lost(level, unit.index, workspace, "it is missing, though its unit was finished") from error
    if checksums != coarse.tolist():
        raise _lost(level, unit.index, workspace, "it has changed since its unit was finished")


def _in_runs(name: str, lengths: Sequence[int]) -> Iterator[Run]:
    """All pieces of a blob, of these bytes each, in runs of about `_CHECKED_AT_ONCE` bytes."""
    start, pieces = 0, list[int]()
    for number, nbytes in enumerate(lengths, 1):
        pieces.append(nbytes)
        if sum(pieces) >= _CHECKED_AT_ONCE or number == len(lengths):
            yield Run(name, start, tuple(pieces))
            start, pieces = start + sum(pieces), []


def _lost(level: LevelPlan, unit: int, workspace: Workspace, found: str) -> ChunkCorrupt:
    name = workspace.scratch(level.index, unit)
    return ChunkCorrupt(
        f"Read what unit {unit} of level {level.index} left in {workspace.place.url}/{name}",
        found,
        "Run the same again: the unit that wrote it is repeated",
    )
