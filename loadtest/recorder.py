"""What one load test measured, kept exactly: locust rounds times to whole milliseconds and more."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtest.measures import REPORTED_PERCENTILES, Served, Slo, goodput_per_s, meets, percentiles


@dataclass
class Recorder:
    """Samples in milliseconds by (measure, name), the complete streams, and counts of everything else by name."""

    samples_ms: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    served: list[Served] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unfinished: Counter[str] = field(default_factory=Counter)

    def add(self, measure: str, name: str, elapsed_ms: float, failure: str | None) -> None:
        """One event. Only what succeeded has a time worth a percentile."""
        if failure is not None:
            self.failed[f"{measure} {name}: {failure}"] += 1
        elif measure == "REJECTED":
            self.rejected[name] += 1
        else:
            self.samples_ms[measure, name].append(elapsed_ms)

    def print_summary(self, console: Console, slo: Slo, duration_s: float) -> None:
        """Exact percentiles per measure and name, then goodput, rejections, failures and what the end cut off."""
        table = Table(title="Exact percentiles (ms)", title_justify="left")
        table.add_column("measure")
        table.add_column("name")
        for title in ("count", *(f"p{percent}" for percent in REPORTED_PERCENTILES)):
            table.add_column(title, justify="right")
        for (measure, name), values in sorted(self.samples_ms.items()):
            row = (f"{value:.1f}" for value in percentiles(values).values())
            table.add_row(measure, escape(name), str(len(values)), *row)
        if table.rows:
            console.print(table)
        if self.served:
            met = sum(meets(answer, slo) for answer in self.served)
            self._print(
                console,
                f"goodput: {goodput_per_s(self.served, slo, duration_s):.2f} answers/s with TTFT <= "
                f"{slo.ttft_s * 1000:g} ms and TPOT <= {slo.tpot_s * 1000:g} ms "
                f"({met} of {len(self.served)} complete streams in {duration_s:.1f} s)",
            )
        counters = {"rejected": self.rejected, "failed": self.failed, "cut off by the end of the run": self.unfinished}
        for title, counts in counters.items():
            listed = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
            self._print(console, f"{title}: {listed or 'none'}")

    @staticmethod
    def _print(console: Console, line: str) -> None:
        # A server's message may hold brackets, which rich would read as markup.
        console.print(line, markup=False, highlight=False, soft_wrap=True)
