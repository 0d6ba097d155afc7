"""The races of the retrieval bench: ingestion against sentence-transformers, queries against their raw parts."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import faiss
from rich.console import Console

from engine.config import RetrieverSettings
from engine.errors import RequestError
from engine.retrieval.encoding.protocol import EncoderLike, Vectors
from engine.retrieval.service import Retriever
from engine.values import Query, SearchMode
from loadtest.bench_format import OURS
from loadtest.measures import percentile
from loadtest.retrieval import sentence_transformers_peer as peer
from loadtest.retrieval.corpus import Sample
from loadtest.retrieval.filling import COLLECTION, write_all
from loadtest.retrieval.findings import Findings

RAW, ALONE = "raw legs", "one at a time"
INSTALLED = f"{peer.NAME} + faiss"  # the sum of what anybody can install
K = 10
_PAGES_PER_WRITE = 32  # as `switchyard ingest` sends them

Way = Callable[[list[str]], Any]


def race_ingestion(
    model: Path,
    encoder: EncoderLike,
    settings: RetrieverSettings,
    sample: Sample,
    rounds: int,
    found: Findings,
    console: Console,
) -> None:
    """Our whole way from raw pages against the peer's embedding of the same texts, in turn; case `ingest`."""
    case, metric, unit = "ingest", "passages_per_s", "passages/s"
    count = len(sample.texts)
    console.print(f"{case}: {rounds} rounds of {count} passages for each system, in turn ...")
    missing = peer.absence()
    found.extra["missing_peers"] = {} if missing is None else {peer.NAME: missing}
    encoder.encode(sample.texts[:32])
    if missing is not None:
        console.print(f"{peer.NAME} takes no part: {missing}")
        ours = [count / ingestion_s(encoder, settings, sample) for _ in range(rounds)]
        found.add(case, OURS, metric, unit, ours)
        return
    ours, theirs = [], []
    with peer.sentence_transformers(model, settings.threads) as library:
        library.seconds(sample.texts[:32])
        for _ in range(rounds):
            ours.append(count / ingestion_s(encoder, settings, sample))
            theirs.append(count / library.seconds(sample.texts))
    found.add(case, OURS, metric, unit, ours)
    found.add(case, peer.NAME, metric, unit, theirs)
    found.compare(case, metric, peer.NAME, ours, theirs, higher=True)


def ingestion_s(encoder: EncoderLike, settings: RetrieverSettings, sample: Sample) -> float:
    """Seconds from raw pages to passages that are durable and searchable, in an empty data folder."""
    with tempfile.TemporaryDirectory() as folder:
        retriever = Retriever(Path(folder), encoder, settings)
        try:
            started = time.perf_counter()
            for first in range(0, len(sample.items), _PAGES_PER_WRITE):
                write_all(retriever, sample.items[first : first + _PAGES_PER_WRITE])
            return time.perf_counter() - started
        finally:
            retriever.close()


def race_queries(
    model: Path,
    retriever: Retriever,
    encoder: EncoderLike,
    rows: Vectors,
    questions: Sequence[str],
    calls: Mapping[int, int],
    rounds: int,
    *,
    threads: int,
    found: Findings,
    console: Console,
) -> None:
    """Batches of questions in one call, their raw legs, and the same questions one after another; cases `query n`.

    Where the peer is installed, its encoding takes the place of ours in a second sum.

    Args:
        model: folder of the encoder, for the peer.
        rows: [N, E] what the retriever holds, for the raw search.
        calls: size of a batch to batches in a round.
    """
    with contextlib.ExitStack() as stack:
        library = None
        if peer.absence() is None:
            library = stack.enter_context(peer.sentence_transformers(model, threads))
        for size, num_batches in calls.items():
            case = f"query {size}"
            console.print(f"{case}: {rounds} rounds of {num_batches} batches over {len(rows):,} chunks, in turn ...")
            batches = [[questions[(n * size + i) % len(questions)] for i in range(size)] for n in range(num_batches)]
            ways = _ways(retriever, encoder, rows, batches, threads)
            latencies: dict[str, list[float]] = {name: [] for name in ways}
            theirs: list[float] = []
            for way in ways.values():
                way(batches[0])
            if library is not None:
                library.seconds(batches[0])
            for _ in range(rounds):
                for name, way in ways.items():
                    latencies[name].append(_median_ms(way, batches))
                if library is not None:
                    theirs.append(percentile([1e3 * library.seconds(texts) for texts in batches], 50))
            legs = [embed + search for embed, search in zip(latencies["encode"], latencies["knn"], strict=True)]
            for name in latencies:
                if name.startswith(OURS):
                    found.add(case, name, "latency_p50", "ms", latencies[name])
            found.add(case, RAW, "latency_p50", "ms", legs)
            for leg in ("encode", "knn"):
                found.add(case, RAW, f"{leg}_p50", "ms", latencies[leg])
            found.compare(case, "latency_p50", RAW, latencies[OURS], legs, higher=False)
            if theirs:
                installed = [embed + search for embed, search in zip(theirs, latencies["knn"], strict=True)]
                found.add(case, INSTALLED, "latency_p50", "ms", installed)
                found.add(case, INSTALLED, "encode_p50", "ms", theirs)
                found.compare(case, "latency_p50", INSTALLED, latencies[OURS], installed, higher=False)
            if ALONE in ways:
                rates = {name: [1e3 * size / ms for ms in latencies[name]] for name in (OURS, ALONE)}
                for name, values in rates.items():
                    found.add(case, name, "queries_per_s", "queries/s", values)
                found.compare(case, "queries_per_s", ALONE, rates[OURS], rates[ALONE], higher=True)


def _ways(
    retriever: Retriever, encoder: EncoderLike, rows: Vectors, batches: Sequence[list[str]], threads: int
) -> dict[str, Way]:
    """What is timed, by name: ours in each mode (the default one first), each leg alone, one query after another."""
    vectors = {tuple(texts): encoder.encode(texts, is_query=True) for texts in batches}

    def in_mode(mode: SearchMode) -> Way:
        return lambda texts: _search(retriever, texts, mode)

    def knn(texts: list[str]) -> None:
        faiss.omp_set_num_threads(threads)
        faiss.knn(vectors[tuple(texts)], rows, K, metric=faiss.METRIC_INNER_PRODUCT)

    mode, *others = get_args(SearchMode)

    def one_at_a_time(texts: list[str]) -> None:
        for text in texts:
            _search(retriever, [text], mode)

    ways: dict[str, Way] = {
        OURS: in_mode(mode),
        "encode": lambda texts: encoder.encode(texts, is_query=True),
        "knn": knn,
        **{f"{OURS}, {other}": in_mode(other) for other in others},
    }
    if len(batches[0]) > 1:
        ways[ALONE] = one_at_a_time
    return ways


def _search(retriever: Retriever, texts: Sequence[str], mode: SearchMode) -> None:
    for answer in retriever.evidence([Query(text, COLLECTION, K, mode=mode) for text in texts]):
        if isinstance(answer, RequestError):
            raise answer


def _median_ms(way: Way, batches: Sequence[list[str]]) -> float:
    latencies = []
    for texts in batches:
        started = time.perf_counter()
        way(texts)
        latencies.append(1e3 * (time.perf_counter() - started))
    return percentile(latencies, 50)
