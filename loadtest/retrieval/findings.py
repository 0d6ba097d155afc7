"""What a bench has found so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.bench_format import Ratio, Row, paired_ratio, spread


@dataclass(slots=True)
class Findings:
    """Rows and ratios of a report, and what it says besides."""

    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, case: str, system: str, metric: str, unit: str, values: Sequence[float]) -> None:
        """One quantity of one system, by round."""
        self.rows.append(Row(case, system, metric, unit, *spread(values)))

    def compare(
        self, case: str, metric: str, over: str, ours: Sequence[float], theirs: Sequence[float], *, higher: bool
    ) -> None:
        """Ours against another system, round by round; `higher` says whether more is better."""
        self.ratios.append(Ratio(case, metric, over, *paired_ratio(ours, theirs, higher_is_better=higher)))
