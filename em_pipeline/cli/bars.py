"""Progress of a step as a bar on a terminal, as lines elsewhere."""

import threading
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from em_pipeline.domain.wording import counted


class _Amount(ProgressColumn):
    """Bytes with their rate, or a count."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = (DownloadColumn(), TransferSpeedColumn())
        self._count = MofNCompleteColumn()

    def render(self, task: Task) -> Text:
        if task.fields.get("unit") == "bytes":
            return Text(" ").join(column.render(task) for column in self._bytes)
        return Text(f"{self._count.render(task)} {task.fields.get('unit', '')}")


class Bars:
    """Watches an ingest and draws one bar per step on standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            _Amount(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def start(self, step: str, total: int, unit: str) -> None:
        with self._lock:
            task = self._bars.add_task(step, total=total or None, unit=unit)
            self._tasks[step] = task
        if not self._console.is_terminal:
            amount = counted(total, unit.removesuffix("s"), unit)
            self._console.print(f"{step}: {amount}" if total else step, markup=False)

    def advance(self, step: str, amount: int) -> None:
        with self._lock:
            task = self._tasks.get(step)
        if task is not None:
            self._bars.advance(task, amount)  # type: ignore[arg-type]

    def note(self, message: str) -> None:
        self._console.print(f"  {message}", markup=False)
