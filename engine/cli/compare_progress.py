"""A comparison on the terminal: a bar over all answers with the time left, and the quality of each arm so far."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from engine.evaluation.compare.asking import Listener


class CompareProgress(Listener):
    """A listener, and the context in which its bar is drawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[so_far]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
        )
        self._task: TaskID | None = None
        self._sums: dict[str, tuple[float, int]] = {}
        self._num_kept = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def begun(self, num_answers: int, num_kept: int) -> None:
        """See Listener."""
        if num_kept:
            self._say(f"{num_kept:,} of {num_answers:,} answers were kept before")
        # What was kept took no time, and says nothing of the time left.
        self._task = self._progress.add_task("answers", total=num_answers, completed=num_kept, so_far="")
        self._num_kept = num_kept

    def answered(self, arm: str, quality: float) -> None:
        """See Listener."""
        total, num = self._sums.get(arm, (0.0, 0))
        self._sums[arm] = (total + quality, num + 1)
        if self._task is None:
            return
        so_far = "  ".join(f"{name} {value / count:.2f}" for name, (value, count) in self._sums.items())
        is_kept = self._num_kept > 0
        self._num_kept -= is_kept
        self._progress.update(self._task, advance=0 if is_kept else 1, so_far=so_far)

    def working(self, what: str) -> None:
        """See Listener."""
        self._say(f"{what} ...")

    def _say(self, line: str) -> None:
        self._console.print(Text(line, "dim"), soft_wrap=True)
