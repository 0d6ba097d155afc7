"""The result file of a benchmark: `switchyard bench X --json FILE` writes it, and the printed table is a view of it.

{"bench", "machine", "versions", "commit", "rows": [...], "ratios": [...]}   and what a benchmark adds of its own
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.errors import ConfigError
from loadtest.environment import commit, machine_info, versions
from loadtest.measures import percentile

OURS = "switchyard"


class Spread(NamedTuple):
    """Median of repeated measurements, with the 20th and 80th percentile."""

    value: float
    p20: float
    p80: float


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity of one system (`switchyard` is ours) in one case."""

    case: str
    system: str
    metric: str
    unit: str
    value: float
    p20: float
    p80: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours against `ours_over` in one case; above 1 Switchyard is better, whatever the metric."""

    case: str
    metric: str
    ours_over: str
    value: float
    p20: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    """Median, p20 and p80 of repeated measurements. Raises: ValueError when there is none, or one is not finite."""
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"measurements must be finite, got {list(values)}")
    return Spread(percentile(values, 50), percentile(values, 20), percentile(values, 80))


def paired_ratio(ours: Sequence[float], peer: Sequence[float], *, higher_is_better: bool) -> Spread:
    """Ratio per pair of runs in turn (A B A B ...), then median, p20 and p80 of the pair ratios.

    `ours[i]` and `peer[i]` ran next to each other, so what slows the machine for a while slows both.
    `higher_is_better` is True for a throughput and False for a latency.
    Raises: ValueError when the counts differ, there is no pair, or a value is not positive and finite.
    """
    if len(ours) != len(peer) or not ours:
        raise ValueError(f"pairs need as many runs of each system, got {len(ours)} of ours and {len(peer)} of the peer")
    if not all(math.isfinite(value) and value > 0 for value in (*ours, *peer)):
        raise ValueError(f"ratios need positive finite values, got {list(ours)} and {list(peer)}")
    pairs = zip(ours, peer, strict=True)
    return spread([mine / theirs if higher_is_better else theirs / mine for mine, theirs in pairs])


@dataclass(frozen=True)
class Report:
    """Everything one benchmark found. `extra` adds keys of its own at the top level (model, seed, missing peers)."""

    bench: str
    rows: Sequence[Row]
    ratios: Sequence[Ratio] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=machine_info)
    versions: Mapping[str, str] = field(default_factory=versions)
    commit: str = field(default_factory=commit)

    def __post_init__(self) -> None:
        taken = sorted(set(self.extra) & (set(self.__dataclass_fields__) - {"extra"}))
        if taken:
            raise ValueError(f"extra may not replace {', '.join(taken)} of the result file")

    def content(self) -> dict[str, Any]:
        """The result file as one object."""
        return {
            "bench": self.bench,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "commit": self.commit,
            **self.extra,
            "rows": [asdict(row) for row in self.rows],
            "ratios": [asdict(ratio) for ratio in self.ratios],
        }

    def write_json(self, path: Path) -> None:
        """Write the result file; a reader sees the old file or the whole new one.

        Raises: ConfigError when it cannot be written; ValueError when a value is not finite, which JSON cannot say.
        """
        text = json.dumps(self.content(), indent=2, allow_nan=False) + "\n"
        try:
            _replace(path, text)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be written ({error.strerror}). Name a file in a folder that exists and is writable."
            ) from None

    def print_table(self, console: Console) -> None:
        """Print the content of the result file."""
        print_content(self.content(), console)


def print_content(content: Mapping[str, Any], console: Console) -> None:
    """Print a result file's content: what it was measured on, one table of rows, one of ratios."""
    tables = ("rows", "ratios")
    for key, value in content.items():
        if key not in tables:
            console.print(f"{key}: {_words(value)}", highlight=False, markup=False, soft_wrap=True)
    for name in tables:
        records: list[dict[str, Any]] = content[name]
        if records:
            console.print(_table(name, records))


def _table(title: str, records: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column, value in records[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for record in records:
        table.add_row(*(escape(value) if isinstance(value, str) else _number(value) for value in record.values()))
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(_words(inner) for inner in value) or "none"
    return str(value)


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner can read; a result is meant for others as well.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
