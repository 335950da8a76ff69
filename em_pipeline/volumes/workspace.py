"""The place a volume is written in, on a disk or in an object store.

volume.ome.zarr/                 the volume: shards appear whole, documents last
volume.ome.zarr/labels/L/        its label image L, written the same way
ledger.parquet                   written after everything else: its presence means complete
labels.L.ledger.parquet          the label image's
work/begun.json                  digest of the plan this work belongs to
work/level-N/unit-NNNNNN.npz     record of a finished unit: arrays, then the CRC-32C of begun.json and them
work/scratch-N/unit-NNNNNN.raw   what that unit left for the next coarser level
work.labels.L/                   the same for the label image
"""

import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Blobs, BlobSink
from em_pipeline.domain.errors import Busy, ChunkCorrupt, NotFound
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.statistics import Counts

VOLUME: Final = "volume.ome.zarr"
_CHECKSUM_BYTES: Final = 4
_PARSING: Final = threading.Lock()
_RECORD: Final = re.compile(r"level-(\d+)/unit-(\d+)\.npz")


@dataclass(frozen=True)
class UnitRecord:
    """What a finished unit leaves: rows of the ledger (`ROW`) and the histogram of its voxels.

    `coarse` holds, chunk by chunk, the CRC-32C (uint32) of the voxels it left for the next level, none at
    the last.
    """

    rows: NDArray[Any]
    counts: Counts
    coarse: NDArray[np.uint32]


class Workspace:
    """Names and records of one place: of its volume or, with `label`, of that label image of it."""

    def __init__(self, place: Blobs, label: str | None = None) -> None:
        self.place = place
        self.label = label
        self.volume = place.below(VOLUME if label is None else f"{VOLUME}/labels/{label}")
        self.ledger = "ledger.parquet" if label is None else f"labels.{label}.ledger.parquet"
        self.work = "work" if label is None else f"work.labels.{label}"
        self._begun = b""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the place. Raises `Busy` where another process does."""
        with self.place.hold():
            self.place.clear_unfinished()
            yield

    def begin(self, digest: str, progress: Progress) -> None:
        """Keep the work of the same plan; clear away that of any other. Raises `StorageFailed`."""
        name = f"{self.work}/begun.json"
        self._begun = text = (json.dumps({"plan": digest}) + "\n").encode()
        try:
            if self.place.read(name) == text:
                return
            reason = "was begun with another plan"
        except NotFound:
            reason = "does not say how it was begun"
        mine = [other for other in self.place.names() if self._is_mine(other)]
        if mine:
            progress.note(f"{self.place.url} {reason}: starting afresh")
        # The ledgers first: without them nothing here counts as complete.
        for other in mine:
            if other.endswith(".parquet"):
                self.place.delete(other)
        for tree in sorted({_tree(other, self) for other in mine if not other.endswith(".parquet")}):
            self.place.delete_all(tree)
        self.place.write(name, text)

    def check_begun(self) -> None:
        """Raises `Busy` unless the work in the place is still that which was begun by `begin`."""
        try:
            found = self.place.read(f"{self.work}/begun.json")
        except NotFound:
            found = b""
        if found != self._begun:
            raise Busy(
                f"Write in {self.place.url}",
                "another plan's work was begun there" if found else "no work was begun there, or it is over",
                "Leave it to the process that is at it now",
            )

    def finish(self) -> None:
        """Remove what only the writing needed, and what helpers that were killed left."""
        self.place.delete_all(self.work)
        self.place.clear_unfinished()

    def is_complete(self) -> bool:
        """Whether there is a ledger."""
        return self.place.size(self.ledger) is not None

    def finished(self) -> set[tuple[int, int]]:
        """Level and index of every unit that has a record."""
        names = self.place.names(self.work)
        found = (_RECORD.fullmatch(name.removeprefix(f"{self.work}/")) for name in names)
        return {(int(match[1]), int(match[2])) for match in found if match}

    def write_record(self, level: int, unit: int, record: UnitRecord) -> None:
        """Raises `StorageFailed`."""
        sink = io.BytesIO()
        np.savez_compressed(sink, rows=record.rows, counts=record.counts, coarse=record.coarse)
        arrays = sink.getvalue()
        self.place.write(self._record(level, unit), arrays + self._checksum(arrays))

    def read_record(self, level: int, unit: int) -> UnitRecord:
        """The record of a finished unit. Raises `ChunkCorrupt` where it is damaged or of another plan."""
        name = self._record(level, unit)
        payload = self.place.read(name)
        arrays, stored = payload[:-_CHECKSUM_BYTES], payload[-_CHECKSUM_BYTES:]
        if stored != self._checksum(arrays):
            raise ChunkCorrupt(
                f"Read {self.place.url}/{name}",
                "its checksum differs",
                "Run the same again to repeat the unit",
            )
        # Bytes that are as they were written: there is nothing left that could fail to load, but for
        # numpy's parser of headers, which CPython 3.11 lets only one thread at a time use.
        with _PARSING, np.load(io.BytesIO(arrays), allow_pickle=False) as found:
            return UnitRecord(found["rows"], found["counts"], found["coarse"])

    def forget(self, level: int, unit: int) -> None:
        """Make a unit count as not done, also after a power cut. Raises `StorageFailed`."""
        self.place.delete(self._record(level, unit))

    def forget_ledger(self) -> None:
        """Make the volume count as not complete. Raises `StorageFailed`."""
        self.place.delete(self.ledger)

    def scratch(self, level: int, unit: int) -> str:
        """Name of what a unit of `level` leaves for the next coarser level."""
        return f"{self.work}/scratch-{level}/unit-{unit:06d}.raw"

    def create_scratch(self, level: int, unit: int) -> BlobSink:
        return self.place.create_scratch(self.scratch(level, unit))

    def drop_scratch(self, level: int) -> None:
        """Remove what the units of `level` left."""
        self.place.delete_all(f"{self.work}/scratch-{level}")

    def _checksum(self, arrays: bytes) -> bytes:
        """Of the arrays of a record and of the plan: what another plan's process left late fits neither."""
        return crc32c(self._begun + arrays).to_bytes(_CHECKSUM_BYTES, "little")

    def _record(self, level: int, unit: int) -> str:
        return f"{self.work}/level-{level}/unit-{unit:06d}.npz"

    def _is_mine(self, name: str) -> bool:
        """Whether a blob belongs to this image; to a volume belong its label images too."""
        if self.label is None:
            return name.startswith((f"{VOLUME}/", f"{self.work}/", "work.labels.")) or name.endswith(
                "ledger.parquet"
            )
        return name == self.ledger or name.startswith((f"{self.work}/", f"{VOLUME}/labels/{self.label}/"))


def _tree(name: str, workspace: Workspace) -> str:
    """The folder that is deleted with `name`."""
    image = VOLUME if workspace.label is None else f"{VOLUME}/labels/{workspace.label}"
    return image if name.startswith(f"{image}/") else name.partition("/")[0]
