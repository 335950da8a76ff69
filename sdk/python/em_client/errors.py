"""What can go wrong, as types. Every message says what was tried, what was found and what to do."""


class EMError(Exception):
    """Base of everything this client raises on purpose.

    `tried`, `found` and `to_do` are the parts of the message. `status` is the HTTP status and `slug` the
    server's name for the problem, where there was an answer.
    """

    def __init__(
        self, tried: str, found: str, to_do: str = "", *, status: int | None = None, slug: str = ""
    ) -> None:
        super().__init__(tried, found, to_do)
        self.tried = tried
        self.found = found
        self.to_do = to_do
        self.status = status
        self.slug = slug

    def __str__(self) -> str:
        message = f"{self.tried}: {self.found}"
        return f"{message}. {self.to_do}" if self.to_do else message


class NotFound(EMError):
    """No such published dataset, version or level, or a block that begins outside the volume."""


class RequestRefused(EMError):
    """The request makes no sense to the server, or asks for too much at once."""


class ChunkCorrupt(EMError):
    """The server found stored voxels missing or damaged. Asking again does not help."""


class ServerFailed(EMError):
    """The server met an error of its own. Its log says more."""


class ServerUnavailable(EMError):
    """No answer, or one that says "later", even after all retries. Says nothing about the data.

    `retry_after_s` is how long the server asked to wait, where it did.
    """

    retry_after_s: float | None = None


class AnswerInvalid(EMError):
    """An answer no sidecar sends, or that contradicts the metadata, its headers or its checksum."""


class AnswerDamaged(AnswerInvalid):
    """An answer that was cut short or changed on its way; another attempt may succeed."""
