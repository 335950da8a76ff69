"""The error tree. Every message says what was tried, what was found and what to do.

`transient` tells a retry layer whether asking again can help. `exit_code` is what `em` exits with,
`status` and `slug` what the sidecar answers (RFC 9457 problem details).
"""

from typing import ClassVar


class EmError(Exception):
    """Base of everything this project raises on purpose.

    `tried`, `found` and `to_do` are the three parts of the message; `to_do` may be empty.
    """

    transient: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"

    def __init__(self, tried: str, found: str, to_do: str = "") -> None:
        super().__init__(tried, found, to_do)
        self.tried = tried
        self.found = found
        self.to_do = to_do

    def __str__(self) -> str:
        message = f"{self.tried}: {self.found}"
        return f"{message}. {self.to_do}" if self.to_do else message


class SourceUnavailable(EmError):
    """A portal or network failed; nothing is known about the data. Never means "no data"."""

    transient = True
    exit_code = 4
    status = 503
    slug = "source-unavailable"


class RecordInvalid(EmError):
    """A portal answered, but its record cannot be understood or lacks what we need."""

    exit_code = 3
    status = 502
    slug = "record-invalid"


class UnsupportedFormat(EmError):
    """A file is not in a format we read, or uses a feature of one that we do not."""

    exit_code = 3
    status = 415
    slug = "unsupported-format"


class InputRefused(EmError):
    """What the person gave is incomplete or contradictory (no voxel size, unknown setting, bad box)."""

    exit_code = 2
    status = 422
    slug = "input-refused"


class ChecksumMismatch(EmError):
    """A downloaded file is not what was promised."""

    transient = True
    exit_code = 5
    status = 502
    slug = "checksum-mismatch"


class ChunkCorrupt(EmError):
    """A stored chunk, shard or index differs from the ledger, is truncated or is missing."""

    exit_code = 5
    status = 500
    slug = "chunk-corrupt"


class NotPublishable(EmError):
    """A version whose validation report did not pass was asked to become visible."""

    exit_code = 6
    status = 409
    slug = "not-publishable"


class NotFound(EmError):
    """A dataset, version, level, file or block that does not exist."""

    exit_code = 7
    status = 404
    slug = "not-found"


class Gone(NotFound):
    """A file that its portal says was there and is no more (HTTP 410): never one that was not written."""


class SchemaMismatch(EmError):
    """The catalogue's database is at another schema revision than this code."""

    exit_code = 8
    status = 503
    slug = "schema-mismatch"


class ServiceUnavailable(EmError):
    """A service of our own (database, sidecar) does not answer or cannot be started."""

    transient = True
    exit_code = 9
    status = 503
    slug = "service-unavailable"


class Busy(EmError):
    """Another process is at the same work; waiting for it is right, repeating it is not."""

    transient = True
    exit_code = 10
    status = 409
    slug = "busy"


class StorageFailed(EmError):
    """Our own disk or object store refused, or does not answer. Nothing half-written is visible."""

    exit_code = 11
    status = 507
    slug = "storage-failed"


class StoreUnavailable(StorageFailed):
    """The object store did not answer, however often it was asked. Says nothing of what it holds."""

    transient = True
    status = 503
    slug = "store-unavailable"


class BudgetSpent(EmError):
    """To know more would take more bytes or requests than were allowed; what was found until then holds."""

    exit_code = 12
    slug = "budget-spent"
