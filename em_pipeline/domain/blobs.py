"""The contract between whatever writes volumes and wherever their bytes lie: a disk or an object store."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Run:
    """Pieces of the blob `name`, one behind the other: the first byte, and how many bytes each piece has."""

    name: str
    start: int
    pieces: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return sum(self.pieces)


class BlobSink(Protocol):
    """One blob being written, first byte to last. It is not there before `commit`, and then it is whole.

    Used by one thread at a time. Every method raises `StorageFailed` where the storage refuses.
    """

    def append(self, payload: "bytes | memoryview") -> None:
        """Add bytes at the end. `payload` may be used again as soon as this returns.

        They may be written later: what goes wrong then is raised by the next call, at the latest by `commit`.
        """
        ...

    def commit(self) -> None:
        """Make the blob visible, in place of an older one of its name."""
        ...

    def abandon(self) -> None:
        """Leave nothing behind. Nothing to do after `commit`."""
        ...


class Blobs(Protocol):
    """A folder of named blobs. Names are relative paths with `/` between their parts.

    Safe to use from several threads; pickled, it leads to the same folder from any process that can reach
    the storage. Every method raises `StorageFailed` where the storage refuses or does not answer: that is
    never taken for a blob that is not there.
    """

    @property
    def url(self) -> str:
        """Where the folder is, for people and messages."""
        ...

    @property
    def sink_bytes(self) -> int:
        """Memory that one blob takes while it is written (`create`)."""
        ...

    @property
    def requests_at_once(self) -> int:
        """Requests of `read_runs` that may be under way at once; 0 where a piece is read as it is taken."""
        ...

    def below(self, prefix: str) -> "Blobs":
        """The folder `prefix` of this folder."""
        ...

    def read(self, name: str) -> bytes:
        """The whole blob. Raises `NotFound`."""
        ...

    def read_range(self, name: str, start: int, nbytes: int) -> bytes:
        """Up to `nbytes` from `start`, fewer where the blob ends before. Raises `NotFound`."""
        ...

    def read_runs(self, runs: Iterable[Run], held: int) -> Generator[bytes | memoryview, None, None]:
        """The pieces of all runs, in their order, fewer bytes of those past the end of a blob.

        Runs are taken from `runs` as they are asked for; what was asked for and not yet let go of is no more
        than `held` bytes, or one run. Raises `NotFound`.
        """
        ...

    def size(self, name: str) -> int | None:
        """Bytes of the blob; None where there is none."""
        ...

    def write(self, name: str, payload: bytes) -> None:
        """Put a whole blob, replacing an older one: durable, and visible at once or not at all."""
        ...

    def create(self, name: str) -> BlobSink:
        """Begin a blob that will survive a power cut once committed."""
        ...

    def create_scratch(self, name: str) -> BlobSink:
        """Begin a blob that is read again soon; a power cut may lose or damage it."""
        ...

    def delete(self, name: str) -> None:
        """Remove a blob, durably, if it is there."""
        ...

    def delete_all(self, prefix: str = "") -> None:
        """Remove every blob below the folder `prefix`, and whatever writers of it left unfinished."""
        ...

    def names(self, prefix: str = "") -> Iterator[str]:
        """Names of all blobs below the folder `prefix`, relative to this folder, sorted.

        What is still being written is never among them.
        """
        ...

    def clear_unfinished(self) -> None:
        """Remove what writers that were killed left of blobs that they never committed.

        Only for whoever holds the folder: blobs that others are writing would be lost.
        """
        ...

    def hold(self) -> AbstractContextManager[None]:
        """Keep every other process that asks out of the folder. Raises `Busy` where another is in it."""
        ...

    def kvstore(self) -> dict[str, Any]:
        """The folder as a key-value store of tensorstore (its JSON specification)."""
        ...
