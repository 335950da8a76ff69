"""Failures of a transfer that are no verdict yet."""


class Fault(Exception):
    """A failure that asking again may cure.

    `wait_s` is how long the portal asks us to wait, if it does. `lasting` is what to raise where asking again
    does not cure it, None for `SourceUnavailable`.
    """

    def __init__(self, message: str, wait_s: float | None = None, lasting: Exception | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.lasting = lasting


class Unconnected(Fault):
    """No connection came about: the host refused it, was not found or did not answer."""


class Trickle(Fault):
    """Bytes came, and so few that it counts as a stall: more patience would not help."""


class Behind(Fault):
    """The host leaves this request far behind others: worth asking again at once, on a new connection."""
