"""Progress bars of long work, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that the yielded function moves on by a number of steps; elsewhere than on a terminal, a line."""
    if not console.is_terminal:
        console.print(f"{what} ...")
        yield lambda steps: None
        return
    with Progress(console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda steps: progress.advance(task, steps)
