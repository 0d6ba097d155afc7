"""`switchyard bench retrieval`: ingestion against sentence-transformers, queries against their raw parts, and indexes.

The systems take turns, round by round. `ingest` is the whole way of a page (parse, chunk, embed, store, index) against
the embedding alone of the same texts. `query n` is a batch of n questions against the encoder and the vector search,
each measured alone and summed, and against the same questions one after another. `index ...` compares kinds of index.
`freshness` is what searches of a server wait while its documents change, against the same load without writes.

switchyard bench retrieval --quick                         every case, few passages and rows
python -m loadtest.bench_retrieval --cases ingest query    some cases, in all their sizes and rounds
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from engine.config import RetrieverSettings, usable_cores
from engine.models import resolve_model
from engine.retrieval.encoding.encoder import Encoder
from engine.retrieval.parsing.chunking import Chunker
from engine.retrieval.service import Retriever
from loadtest.bench_format import Report, print_content
from loadtest.retrieval.corpus import Pages, bench_questions, read_pages, take_sample
from loadtest.retrieval.filling import fill
from loadtest.retrieval.findings import Findings
from loadtest.retrieval.freshness import FreshnessPlan, measure_freshness
from loadtest.retrieval.indexes import IndexPlan, Timed, choice_by_size, freezing_size, measure_indexes, print_indexes
from loadtest.retrieval.races import K, race_ingestion, race_queries
from loadtest.retrieval.synthetic import size_name

CASES = ("ingest", "query", "index", "freshness")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, of which of CASES."""

    ingest_texts: int
    ingest_rounds: int
    num_chunks: int
    query_rounds: int
    calls: dict[int, int]  # size of a batch to batches in a round
    indexes: IndexPlan
    freshness: FreshnessPlan | None = None
    cases: tuple[str, ...] = CASES


FULL = Plan(
    *(1000, 3, 100_000, 5, {1: 64, 32: 8}),
    indexes=IndexPlan((10_000, 100_000, 200_000, 1_000_000), (1, 32), 256, 10.0, largest_graph=1_000_000),
    freshness=FreshnessPlan(num_pages=None, rounds=2, quiet_s=20, puts=100),
)
QUICK = Plan(
    *(256, 2, 10_000, 3, {1: 32, 32: 4}),
    indexes=IndexPlan((10_000, 100_000), (1, 32), 64, 0.5, largest_graph=10_000),
    freshness=FreshnessPlan(num_pages=40, rounds=1, quiet_s=4, puts=20),
)


def run(*, quick: bool, json_path: Path | None, cases: Sequence[str] = CASES) -> None:
    """Run the bench, print it, and write `json_path` if there is one. `cases`: which of CASES."""
    console = Console(stderr=True, highlight=False)
    settings = RetrieverSettings(threads=usable_cores())
    model = resolve_model(settings.model, kind="encoder", show_progress=True)
    plan = replace(QUICK if quick else FULL, cases=tuple(cases))
    report, timed = measure(model.path, settings, plan, read_pages(), console)
    if plan.freshness is not None and "freshness" in plan.cases:
        found = Findings([*report.rows], [*report.ratios], {**report.extra})
        measure_freshness(plan.freshness, bench_questions(), (), found, console)
        report = replace(report, rows=found.rows, ratios=found.ratios, extra=found.extra)
    print_report(report, timed, Console())
    if json_path is not None:
        report.write_json(json_path)


def main(argv: Sequence[str] | None = None) -> None:
    """The bench with a choice of cases."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench_retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help="default: all")
    parser.add_argument("--quick", action="store_true", help="few passages, rows and rounds")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    run(quick=options.quick, json_path=options.json, cases=options.cases)


def measure(
    model: Path, settings: RetrieverSettings, plan: Plan, pages: Pages, console: Console
) -> tuple[Report, list[Timed]]:
    """Everything, for the encoder in folder `model`: the report, and the indexes whose rows end it."""
    found = Findings()
    encoder = Encoder(model, threads=settings.threads, batch_tokens=settings.forward_tokens("cpu"))
    chunker = Chunker(
        encoder.tokenizer,
        chunk_tokens=settings.chunk_tokens,
        overlap_tokens=settings.chunk_overlap_tokens,
        max_tokens=encoder.max_tokens,
    )
    sample = take_sample(pages, chunker, plan.ingest_texts)
    found.extra["corpus"] = (
        f"{pages.origin}: {len(sample.items)} pages ({sample.num_generated} generated), {len(sample.texts)} passages"
    )
    if "ingest" in plan.cases:
        race_ingestion(model, encoder, settings, sample, plan.ingest_rounds, found, console)
    if "query" in plan.cases:
        with tempfile.TemporaryDirectory() as folder:
            rows = fill(
                *(Path(folder), sample.items, encoder.encode(sample.texts), plan.num_chunks),
                encoder=encoder,
                settings=settings,
                console=console,
            )
            found.extra["query_chunks"] = len(rows)
            retriever = Retriever(Path(folder), encoder, settings)
            try:
                race_queries(
                    *(model, retriever, encoder, rows, bench_questions(), plan.calls, plan.query_rounds),
                    threads=settings.threads,
                    found=found,
                    console=console,
                )
            finally:
                retriever.close()
        del rows
    timed = measure_indexes(plan.indexes, settings.threads, console) if "index" in plan.cases else []
    if timed:
        found.extra["fastest_index"] = choice_by_size(timed)
        found.extra["exact_up_to_rows"] = freezing_size(timed)
        found.extra["no_hnsw_at"] = [
            size_name(size) for size in plan.indexes.sizes if size > plan.indexes.largest_graph
        ]
    found.extra["workload"] = (
        f"{settings.threads} threads, k={K}, mode hybrid, chunks of {settings.chunk_tokens} tokens; "
        f"{plan.ingest_rounds} rounds of ingestion and {plan.query_rounds} of queries, in turn; indexes over unit "
        "vectors around sqrt(rows) random centres, recall against exact search in float32"
    )
    found.rows += [row for one in timed for row in one.rows()]
    return Report("retrieval", found.rows, found.ratios, found.extra), timed


def print_report(report: Report, timed: Sequence[Timed], console: Console) -> None:
    """Print the report, its rows on indexes as one table for each size."""
    content = report.content()
    print_content(
        {**content, "rows": [row for row in content["rows"] if not row["case"].startswith("index ")]}, console
    )
    print_indexes(timed, console)


if __name__ == "__main__":
    main()
