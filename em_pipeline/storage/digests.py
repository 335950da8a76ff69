"""SHA-256 of files, and the checksums that portals publish."""

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from em_pipeline.domain.errors import RecordInvalid

ALGORITHMS = frozenset({"md5", "sha1", "sha224", "sha256", "sha384", "sha512"})
READ_BYTES = 1024 * 1024
# What `catch_up` hashes at once, and in one call: about as long as a connection may go unread.
STEP_BYTES = 1024 * 1024
CAUGHT_UP_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Checksum:
    """A promised checksum: `algorithm` as hashlib names it, `value` in lower-case hexadecimal."""

    algorithm: str
    value: str


def promised_checksum(checksum: str | None, url: str) -> Checksum | None:
    """A listing's `<algorithm>:<hex>`. Raises `RecordInvalid` for one that cannot be verified."""
    if checksum is None:
        return None
    algorithm, _, value = checksum.lower().partition(":")
    algorithm = algorithm.replace("-", "")
    known = algorithm in ALGORITHMS
    length = hashlib.new(algorithm, usedforsecurity=False).digest_size * 2 if known else 0
    if not known or len(value) != length or not set(value) <= set("0123456789abcdef"):
        raise RecordInvalid(
            f"Read the checksum of {url}",
            f"{checksum!r} is not <algorithm>:<hexadecimal>",
            f"Algorithms: {', '.join(sorted(ALGORITHMS))}",
        )
    return Checksum(algorithm, value)


class RunningDigest:
    """SHA-256, and one other digest where asked, of a file that several threads write.

    Bytes that arrive in file order are hashed as they pass, and what is whole by `catch_up`, while the
    rest still comes; `finish` reads only the rest from the disk.
    """

    def __init__(self, algorithm: str | None) -> None:
        self._algorithms = ("sha256", algorithm) if algorithm else ("sha256",)
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._position = 0
        # md5 and sha1 only detect damage here.
        self._hashes = [hashlib.new(name, usedforsecurity=False) for name in self._algorithms]

    def update(self, offset: int, data: bytes) -> None:
        """`data` was written at `offset`."""
        with self._lock:
            if offset < self._position:  # bytes already hashed are being replaced
                self._begin()
            if offset == self._position:
                self._feed(data)

    def catch_up(self, descriptor: int, whole: int) -> None:
        """Hash more of the first `whole` bytes of the open file, which do not change any more."""
        for _ in range(CAUGHT_UP_BYTES // STEP_BYTES):
            # Who does not get the lock need not wait: another is hashing.
            if not self._lock.acquire(blocking=False):
                return
            try:
                wanted = min(STEP_BYTES, whole - self._position)
                data = os.pread(descriptor, wanted, self._position) if wanted > 0 else b""
                self._feed(data)
            finally:
                self._lock.release()
            if not data:
                return

    def _feed(self, data: bytes) -> None:
        for each in self._hashes:
            each.update(data)
        self._position += len(data)

    def finish(self, path: Path, read: Callable[[int], None]) -> tuple[str, str]:
        """Hexadecimal SHA-256 and other digest of the file at `path`; `read` is told of bytes read."""
        # Who saw another part come may still be catching up: its bytes must not be hashed twice.
        with self._lock, path.open("rb", buffering=0) as file:
            file.seek(self._position)
            while data := file.read(READ_BYTES):
                self._feed(data)
                read(len(data))
            return self._hashes[0].hexdigest(), self._hashes[-1].hexdigest()
