"""How long work says how far it is, without knowing who watches."""

from typing import Protocol


class Progress(Protocol):
    """A watcher of one step. Called from several threads; must not raise."""

    def start(self, step: str, total: int, unit: str) -> None:
        """`step` begins and will count to `total` (bytes, chunks, files: `unit`); 0 where unknown."""
        ...

    def advance(self, step: str, amount: int) -> None: ...
    def note(self, message: str) -> None:
        """A line a person may want to see (a retry, a skipped file, a resumed unit)."""
        ...


class Silent:
    """Watches nothing."""

    def start(self, step: str, total: int, unit: str) -> None: ...
    def advance(self, step: str, amount: int) -> None: ...
    def note(self, message: str) -> None: ...
