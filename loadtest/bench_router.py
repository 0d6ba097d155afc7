"""`switchyard bench router`: what a learned route is worth on measured outcomes, and what deciding costs.

Outcomes are replayed from docs/benchmarks/router-outcomes.jsonl.gz: ids, grades, signals and latencies of the load of
`loadtest.router.load`, without texts. The cost of a decision is measured now.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from engine.evaluation.outcome_lines import read_outcomes
from loadtest.bench_format import OURS, Report, Row
from loadtest.environment import REPOSITORY
from loadtest.measures import percentile
from loadtest.router.overhead import BARS_MS, Overhead, measure_overhead
from loadtest.router.replay import NUM_RESAMPLES, Replayed, replay

OUTCOMES = REPOSITORY / "docs" / "benchmarks" / "router-outcomes.jsonl.gz"
_COLLECT = (
    "make it: python -m loadtest.router.load FOLDER; switchyard ingest FOLDER/documents --source load; "
    "switchyard router collect FOLDER/questions.jsonl --no-text --out docs/benchmarks/router-outcomes.jsonl.gz"
)
_CALLS, _QUICK_CALLS = 2_000, 400


def run(*, quick: bool, json_path: Path | None) -> None:
    """Run the bench, print it, and write `json_path` if there is one."""
    report = measure(quick=quick)
    report.print_table(Console())
    if json_path is not None:
        report.write_json(json_path)


def measure(*, quick: bool, outcomes: Path = OUTCOMES, num_calls: int | None = None) -> Report:
    """Both parts. Where `outcomes` is not there, `missing` says so and only the overhead is measured."""
    extra: dict[str, Any] = {"missing": {}}
    found = Replayed()
    if outcomes.is_file():
        found = replay(read_outcomes([outcomes]), num_resamples=NUM_RESAMPLES // 4 if quick else NUM_RESAMPLES)
    else:
        extra["missing"] = {
            "routed quality and p50 latency": f"no {outcomes.name} in {outcomes.parent.name}/; {_COLLECT}"
        }
    measured = measure_overhead(num_calls=num_calls or (_QUICK_CALLS if quick else _CALLS))
    extra |= {**found.extra, "overhead within its bar": {f"batch {each.batch}": _kept(each) for each in measured}}
    extra["workload"] = (
        "replayed: cross-fitted over 5 folds, p20 and p80 of resampled groups, a latency as it was measured of the arm "
        "(without the search before a direct answer); overhead: signals and heads beyond the search, per question"
    )
    return Report("router", [*found.rows, *(row for each in measured for row in _rows(each))], found.ratios, extra)


def _rows(found: Overhead) -> list[Row]:
    spread = (percentile(found.ms, 20), percentile(found.ms, 80))
    case = f"overhead, batch {found.batch}"
    return [
        Row(case, OURS, "p50_ms", "ms/question", percentile(found.ms, 50), *spread),
        # A tail of the same calls has no spread of its own.
        Row(case, OURS, "p95_ms", "ms/question", *[percentile(found.ms, 95)] * 3),
    ]


def _kept(found: Overhead) -> str:
    p95, bar = percentile(found.ms, 95), BARS_MS[found.batch]
    return f"{'yes' if p95 <= bar else 'no'}: p95 {p95:.3f} ms, bar {bar:g} ms"
