"""The folder a volume is written in.

    volume.ome.zarr/                 the volume: shards appear whole, documents last
    volume.ome.zarr/labels/L/        its label image L, written the same way
    ledger.parquet                   written after everything else: its presence means complete
    labels.L.ledger.parquet          the label image's
    work/begun.json                  digest of the plan this work belongs to
    work/level-N.raw                 voxels of level N waiting to be written
    work/level-N/unit-NNNNNN.npz     record of a finished unit: arrays, then their CRC-32C
    work.labels.L/                   the same for the label image

Only one process works in a folder at a time (flock on the folder itself, which a killed process releases).
"""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import Busy, ChunkCorrupt
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.durable import storage_errors, sync_folders, write_whole
from em_pipeline.volumes.statistics import Counts

_CHECKSUM_BYTES: Final = 4


@dataclass(frozen=True)
class UnitRecord:
    """What a finished unit leaves: rows of the ledger (`ROW`) and the histogram of its voxels.

    `coarse` holds, slab by slab, the CRC-32C (uint32) of the voxels it left for the next level, none at the
    last.
    """

    rows: NDArray[Any]
    counts: Counts
    coarse: NDArray[np.uint32]


class Workspace:
    """Paths and records of one folder: of its volume or, with `label`, of that label image of it."""

    def __init__(self, folder: Path, label: str | None = None) -> None:
        volume = folder / "volume.ome.zarr"
        self.folder = folder
        self.volume = volume if label is None else volume / "labels" / label
        self.ledger = folder / ("ledger.parquet" if label is None else f"labels.{label}.ledger.parquet")
        self.work = folder / ("work" if label is None else f"work.labels.{label}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made if need be. Raises `Busy` where another process does."""
        with storage_errors(f"Open {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(
                    f"Write a volume in {self.folder}", "another process is writing it", "Wait for it to end"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def blobs(self) -> Any:
        from em_pipeline.storage.local_blobs import LocalBlobs

        return LocalBlobs(self.folder).below(self.volume.relative_to(self.folder).as_posix())

    def begin(self, digest: str, progress: Progress) -> None:
        """Keep the work of the same plan; clear away that of any other. Raises `StorageFailed`."""
        begun = self.work / "begun.json"
        found = begun.read_bytes() if begun.exists() else None
        text = (json.dumps({"plan": digest}) + "\n").encode()
        if found == text:
            return
        if self.work.exists() or self.volume.exists() or self.ledger.exists():
            reason = "does not say how it was begun" if found is None else "was begun with another plan"
            progress.note(f"{self.folder} {reason}: starting afresh")
        with storage_errors(f"Clear {self.folder}"):
            # The ledgers first: without them nothing here counts as complete.
            for place in [self, *self._labels()]:
                place.forget_ledger()
            for tree in (self.work, *(place.work for place in self._labels()), self.volume):
                if tree.exists():
                    shutil.rmtree(tree)
        write_whole(begun, text)

    def _labels(self) -> list["Workspace"]:
        """Label images whose voxels lie in this volume, begun or complete."""
        if self.volume.parent != self.folder:
            return []
        names = {path.name.removeprefix("work.labels.") for path in self.folder.glob("work.labels.*")}
        names |= {path.name for path in self.volume.glob("labels/*") if path.is_dir()}
        return [Workspace(self.folder, name) for name in sorted(names)]

    def finish(self) -> None:
        """Remove what only the writing needed."""
        if self.work.exists():
            with storage_errors(f"Clear {self.work}"):
                shutil.rmtree(self.work)

    def scratch(self, level: int) -> Path:
        return self.work / f"level-{level}.raw"

    def partial(self, shard: str) -> Path:
        """Where a shard grows until it is whole."""
        return self.work / f"{shard.replace('/', '.')}.partial"

    def write_record(self, level: int, unit: int, record: UnitRecord) -> None:
        """Raises `StorageFailed`."""
        sink = io.BytesIO()
        np.savez_compressed(sink, rows=record.rows, counts=record.counts, coarse=record.coarse)
        arrays = sink.getvalue()
        write_whole(self._record(level, unit), arrays + _checksum(arrays))

    def is_done(self, level: int, unit: int) -> bool:
        return self._record(level, unit).exists()

    def read_record(self, level: int, unit: int) -> UnitRecord:
        """The record of a finished unit. Raises `ChunkCorrupt` where it is damaged."""
        path = self._record(level, unit)
        with storage_errors(f"Read {path}"):
            payload = path.read_bytes()
        arrays, stored = payload[:-_CHECKSUM_BYTES], payload[-_CHECKSUM_BYTES:]
        if stored != _checksum(arrays):
            raise ChunkCorrupt(
                f"Read {path}", "its checksum differs", "Run the same again to repeat the unit"
            )
        # Bytes that are as they were written: there is nothing left that could fail to load.
        with np.load(io.BytesIO(arrays), allow_pickle=False) as found:
            return UnitRecord(found["rows"], found["counts"], found["coarse"])

    def forget(self, level: int, unit: int) -> None:
        """Make a unit count as not done, also after a power cut. Raises `StorageFailed`."""
        path = self._record(level, unit)
        with storage_errors(f"Remove {path}"):
            path.unlink(missing_ok=True)
            sync_folders([path.parent])

    def forget_ledger(self) -> None:
        """Make the volume count as not complete. Raises `StorageFailed`."""
        with storage_errors(f"Remove {self.ledger}"):
            self.ledger.unlink(missing_ok=True)
            sync_folders([self.folder])

    def _record(self, level: int, unit: int) -> Path:
        return self.work / f"level-{level}" / f"unit-{unit:06d}.npz"


def _checksum(payload: bytes) -> bytes:
    return crc32c(payload).to_bytes(_CHECKSUM_BYTES, "little")
