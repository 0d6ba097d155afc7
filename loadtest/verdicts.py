"""What a load test judges: figures with a name, a value and whether they hold; how they are printed and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.durable_files import write_file
from loadtest.environment import commit, machine_info, versions


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure. `holds` None: it was not measured; `words` says why."""

    name: str
    holds: bool | None
    value: float | None
    unit: str
    words: str

    @property
    def line(self) -> str:
        """As it is printed."""
        holds = "not judged" if self.holds is None else "holds" if self.holds else "does not hold"
        return f"{self.name}: {holds}; {self.words}"


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> int:
    """One line for each. Returns an exit code: 1 where one that was measured does not hold."""
    for each in verdicts:
        console.print(each.line, markup=False, highlight=False, soft_wrap=True)
    return 0 if all(each.holds is not False for each in verdicts) else 1


def write_verdicts(path: Path, verdicts: Sequence[Verdict], **more: Any) -> None:
    """A JSON object of where it was measured, of `more` and, as `figures`, of the verdicts. Raises: OSError."""
    where = {"machine": machine_info(), "versions": versions(), "commit": commit()}
    content = {**where, **more, "figures": [asdict(each) for each in verdicts]}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_file(path, f"{text}\n".encode(errors="backslashreplace"))
