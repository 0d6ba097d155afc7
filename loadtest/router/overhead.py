"""What deciding costs beyond the search: signals and heads of a learned router, timed in this process.

The router is fitted to made outcomes and reads every signal there is; two adapters carry as many training inputs as
they may, one of them with 77 labels. Passages are cut from the pages of docs/, as many as a server shows by default.
One thread, as Ray allows the gateway: threads that wait for each other take longer than such small products.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from engine.config import GeneratorSettings
from engine.evaluation.outcomes import ArmOutcome, Outcomes, QuestionOutcome
from engine.evaluation.training import train_router
from engine.generation.adapters.manifest import MAX_INPUTS
from engine.routing.artefact import Objective
from engine.routing.live import LiveRouter, Surroundings
from engine.routing.signals.neighbours import TrainingNeighbours
from engine.routing.signals.questions import counted_words
from engine.values import Clues, Evidence, IndexInfo, Passage, RouteRequest, ScoreBackground
from loadtest.environment import REPOSITORY
from loadtest.questions import DEFAULT_FILE, read_questions

BATCHES = (1, 32)
# Beyond the search, 95th percentile; for a batch of 32 per question.
BARS_MS = {1: 2.0, 32: 0.2}
NUM_SIGNALLED_PASSAGES = GeneratorSettings().max_passages
# Cosines of a search, whatever it shows.
_NUM_SIMILARITIES = 10
_DIM, _NUM_LABELS, _NUM_TRAINED = 384, 77, 600
_PASSAGE_CHARS = 900
# More than any memory of texts holds.
_NUM_REQUESTS = 1_024
_COLLECTION = "bench"


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds a question of each call, in batches of `batch`."""

    batch: int
    ms: tuple[float, ...]


def measure_overhead(*, num_calls: int, docs: Path = REPOSITORY / "docs", seed: int = 0) -> list[Overhead]:
    """`num_calls` decisions in each batch size, the sizes in turn."""
    draw = np.random.default_rng(seed)
    router = made_router(draw)
    requests = made_requests(draw, docs)
    found: dict[int, list[float]] = {size: [] for size in BATCHES}
    with threadpool_limits(1):
        for size in BATCHES:
            for start in range(20):
                router.decide(_batch(requests, start, size))
        gc.collect()
        for number in range(num_calls):
            for size in BATCHES:
                batch = _batch(requests, number * size, size)
                started = time.perf_counter()
                router.decide(batch)
                found[size].append((time.perf_counter() - started) * 1e3 / size)
    return [Overhead(size, tuple(ms)) for size, ms in found.items()]


def made_router(draw: np.random.Generator) -> LiveRouter:
    """A learned router that applies. Raises: AssertionError where nothing was learned: nothing idle is timed."""
    neighbours = {
        "intents": TrainingNeighbours(_unit(draw, MAX_INPUTS), (np.arange(MAX_INPUTS) % _NUM_LABELS).tolist()),
        "tone": TrainingNeighbours(_unit(draw, MAX_INPUTS)),
    }
    around = Surroundings(
        "model", IndexInfo("encoder", "chunking"), {"intents": "1", "tone": "2"}, ("intents",), neighbours
    )
    untaught = LiveRouter(min_z=2.5, max_passages=NUM_SIGNALLED_PASSAGES, surroundings=around)
    names = untaught.signals([]).names
    arms = ("base", "base+context", "intents", "tone", "tone+context")
    values = draw.normal(size=(_NUM_TRAINED, len(names)))
    best = np.digitize(values[:, 0], np.quantile(values[:, 0], np.linspace(0, 1, len(arms) + 1)[1:-1]))
    questions = tuple(
        QuestionOutcome(
            id=f"q{row}",
            source="made",
            signals=dict(zip(names, values[row].tolist(), strict=True)),
            arms={
                arm: ArmOutcome(float(draw.random() < (0.9 if place == best[row] else 0.1)), "accuracy", 100.0)
                for place, arm in enumerate(arms)
            },
        )
        for row in range(_NUM_TRAINED)
    )
    outcomes = Outcomes(around.keys(_COLLECTION), questions, "made")
    artefact = train_router(outcomes, Objective(), created="2026-01-01T00:00:00+00:00").artefact
    assert artefact.learned is not None, artefact.headline
    router = LiveRouter(min_z=2.5, max_passages=NUM_SIGNALLED_PASSAGES, artefact=artefact, surroundings=around)
    assert router.warning(_COLLECTION) is None, router.warning(_COLLECTION)
    return router


def made_requests(draw: np.random.Generator, docs: Path) -> list[RouteRequest]:
    """Questions after their searches. No two are alike, so that nothing that is kept of one serves another."""
    known = read_questions(DEFAULT_FILE)
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(docs.glob("*.md")))
    found = []
    for number in range(_NUM_REQUESTS):
        question = f"Ticket {number}: {known[number % len(known)]}"
        starts = draw.integers(0, len(text) - _PASSAGE_CHARS, size=NUM_SIGNALLED_PASSAGES).tolist()
        passages = tuple(
            Passage(
                chunk=f"c{start}",
                document=f"docs/{start % 7}",
                title="Routing",
                heading="",
                text=text[start : start + _PASSAGE_CHARS],
                start=start,
                end=start + _PASSAGE_CHARS,
                score=0.5,
            )
            for start in starts
        )
        similarities = tuple(np.sort(draw.uniform(0.2, 0.7, _NUM_SIMILARITIES))[::-1].tolist())
        words = counted_words(question)
        clues = Clues(_unit(draw, 1)[0], 0.4, 0.5, 5_000, tuple(draw.integers(0, 900, len(words)).tolist()))
        evidence = Evidence(passages, ScoreBackground(0.2, 0.05, 64), 1, {}, similarities, clues)
        found.append(RouteRequest(question, _COLLECTION, evidence=evidence))
    return found


def _unit(draw: np.random.Generator, num: int) -> np.ndarray:
    rows = draw.normal(size=(num, _DIM)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _batch(requests: Sequence[RouteRequest], start: int, size: int) -> list[RouteRequest]:
    return [requests[(start + place) % len(requests)] for place in range(size)]
