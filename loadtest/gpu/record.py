"""What a part of the GPU bench has found: written after every step of it, so that a crash or a limit loses nothing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from loadtest.bench_format import Report
from loadtest.generation.plan import Findings


class Budget:
    """Seconds that are left, counted from now."""

    def __init__(self, seconds: float) -> None:
        self._end_s = time.monotonic() + seconds

    def left_s(self) -> float:
        """Never below 0."""
        return max(self._end_s - time.monotonic(), 0.0)


class Record:
    """Findings of one part, and the file they go to."""

    def __init__(self, bench: str, path: Path | None, budget: Budget, console: Console) -> None:
        """`path` None writes nothing."""
        self.found = Findings()
        self.console = console
        self._bench, self._path, self._budget = bench, path, budget
        self.failed: dict[str, str] = {}

    def attempt(self, name: str, work: Callable[[], None], *, estimate_s: float = 0.0) -> bool:
        """Do `work` if `estimate_s` are left, note its time or its error, and save. False where it was not done."""
        left_s = self._budget.left_s()
        if left_s < estimate_s or left_s == 0:
            self._note("skipped", name, f"{estimate_s:.0f} s needed, {left_s:.0f} s left")
            return False
        started = time.monotonic()
        try:
            work()
        except Exception as error:
            self.console.print(traceback.format_exc(limit=-6), markup=False)
            self.failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
            self._note("failed", name, self.failed[name])
            return False
        self._note("seconds", name, f"{time.monotonic() - started:.1f}")
        return True

    def check(self, name: str, *, is_right: bool, words: str) -> None:
        """Note one comparison with a reference."""
        self._note("parity", name, words if is_right else f"WRONG: {words}")
        if not is_right:
            self.failed[name] = words

    def save(self) -> None:
        """Write the file as of now."""
        if self._path is not None:
            Report(self._bench, self.found.rows, self.found.ratios, self.found.extra).write_json(self._path)

    def _note(self, kind: str, name: str, words: str) -> None:
        self.found.extra.setdefault(kind, {})[name] = words
        self.console.print(f"{kind} {name}: {words}", markup=False, soft_wrap=True)
        self.save()
