"""What deciding costs beside the embedding and the search: signals, ambiguity head and decision, in this process.

python -m loadtest.router_overhead
python -m loadtest.router_overhead --inputs 2000 --json overhead.json

Everything is drawn but the questions, in the sizes of a trained router: boosted trees for four arms, two adapters with
--inputs training inputs each, an ambiguity head of its default size, three passages of about 800 characters. Times are
per question; a batch is what reaches the router at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from engine.evaluation.ambiguity import NUM_COMMON, WIDTH, AmbiguitySettings
from engine.routing.ambiguity import AmbiguityHead, EmbeddingPart, SignalPart, Vectors, WordPart
from engine.routing.arms import Arm
from engine.routing.artefact import Artefact, Learned, Objective, SelfTest
from engine.routing.decide import Router, Serving
from engine.routing.heads import IsotonicCurves, Normaliser, Policy, QualityModel, TreeHeads
from engine.routing.keys import Keys
from engine.routing.signals.lexical import lexical_signals
from engine.routing.signals.neighbours import TrainingNeighbours
from engine.routing.signals.questions import counted_words, question_signals
from engine.routing.signals.table import Floats
from engine.values import Clues, Evidence, Passage, RouteRequest, ScoreBackground
from loadtest.bench_format import Report
from loadtest.questions import DEFAULT_FILE, read_questions

BATCHES = (1, 32)
STAGES = ("signals", "ambiguity", "decision", "all")
_SIZE, _NUM_TREES, _DEPTH, _NUM_POINTS = 384, 80, 3, 60
_WORDS_IN_PASSAGE = 130
_PASSES = {1: 1_000, 32: 150}
_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds per question of one stage, in batches of `batch`; `cpu` leaves out what other processes took."""

    stage: str
    batch: int
    p50_ms: float
    p95_ms: float
    p50_cpu_ms: float
    p95_cpu_ms: float


def made_requests(questions: Sequence[str], seed: int = 0) -> list[RouteRequest]:
    """Each question with a search that found three passages made of words of the questions."""
    draw = np.random.default_rng(seed)
    words = sorted({word for question in questions for word in question.split()})
    requests = []
    for number, question in enumerate(questions):
        similarities = tuple(sorted(draw.uniform(0.2, 0.7, 10).tolist(), reverse=True))
        passages = []
        for rank in range(3):
            text = " ".join(draw.choice(words, _WORDS_IN_PASSAGE))
            passages.append(Passage(f"c{number}-{rank}", f"d{rank}", "Title", "Heading", text, 0, len(text), 0.5))
        counted = tuple(draw.integers(0, 100, len(counted_words(question))).tolist())
        clues = Clues(_unit(draw, 1)[0], 0.4, 0.5, 1_000, counted)
        background = ScoreBackground(0.25, 0.05, 64)
        evidence = Evidence(tuple(passages), background, 1, similarities=similarities, clues=clues)
        requests.append(RouteRequest(question, "default", evidence=evidence))
    return requests


def made_router(signals: Sequence[str], seed: int = 0) -> Router:
    """Boosted trees on all signals for four arms, with isotonic curves: the dearest kind."""
    draw = np.random.default_rng(seed)
    arms = tuple(Arm(name, context).name for name in (None, "support") for context in (False, True))
    num, places = len(signals), 2 ** (_DEPTH + 1) - 1
    inner = np.arange(places) < places // 2
    left = np.where(inner, 2 * np.arange(places) + 1, np.arange(places)).astype(np.int32)
    right = np.where(inner, 2 * np.arange(places) + 2, np.arange(places)).astype(np.int32)
    shape = (len(arms), _NUM_TREES, places)
    normaliser = Normaliser(np.zeros(num), np.ones(num), np.arange(num, dtype=np.int32))
    trees = TreeHeads(
        draw.integers(normaliser.num_columns, size=shape).astype(np.int32),
        draw.normal(size=shape),
        np.broadcast_to(left, shape).copy(),
        np.broadcast_to(right, shape).copy(),
        0.05 * draw.normal(size=shape),
        np.zeros(len(arms)),
        _DEPTH,
    )
    curves = IsotonicCurves(*(np.sort(draw.random((len(arms), _NUM_POINTS)), axis=1) for _ in range(2)))
    model, policy = QualityModel(normaliser, trees, curves), Policy(np.zeros(len(arms)), 2.0, 0.0)
    values = draw.normal(size=(20, num))
    qualities = model.qualities(values)
    test = SelfTest(values, qualities, policy.choose(qualities)[0])
    keys = Keys("0" * 64)
    artefact = Artefact(
        created="",
        keys=keys,
        arms=arms,
        ranked=arms,
        rates=(0.5,) * len(arms),
        objective=Objective(),
        headline="",
        reasons=(),
        num_questions=2_000,
        signals=tuple(signals),
        learned=Learned(model, policy, test),
    )
    return Router(artefact, Serving(keys, arms, tuple(signals)))


def made_head(signals: Sequence[str], seed: int = 0) -> AmbiguityHead:
    """A head of the size that it is fitted in, which reads embedding, words and signals."""
    draw = np.random.default_rng(seed)
    num, landmarks = len(signals), AmbiguitySettings().num_landmarks
    points = np.hstack([_unit(draw, landmarks), draw.normal(size=(landmarks, 2 * num)).astype(np.float32)])
    common = sorted({word.lower() for question in read_questions(DEFAULT_FILE) for word in question.split()})
    return AmbiguityHead(
        0.0,
        WordPart(draw.normal(size=WIDTH).astype(np.float32), frozenset(common[:NUM_COMMON])),
        EmbeddingPart("e" * 64, points, draw.normal(size=landmarks).astype(np.float32), 0.6, 0.2),
        SignalPart(tuple(signals), np.zeros(num), np.ones(num), draw.normal(size=num), np.zeros(num)),
        1.0,
        0.0,
    )


def measure(num_inputs: int) -> list[Cost]:
    """The cost of each stage, and of all of them together."""
    questions = read_questions(DEFAULT_FILE)
    draw = np.random.default_rng(1)
    adapters = (
        {name: TrainingNeighbours(_unit(draw, num_inputs)) for name in ("support", "other")} if num_inputs else {}
    )
    requests = made_requests(questions)
    names = question_signals(requests[:1], adapters, 3).names
    router, head = made_router(names), made_head(lexical_signals([]).names)
    costs = []
    for batch in BATCHES:
        parts = [[requests[(first + i) % len(requests)] for i in range(batch)] for first in range(len(requests))]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in STAGES}
        for place in range(_PASSES[batch] + _WARM_UP):
            part = parts[place % len(parts)]
            stamps = _run(part, adapters, router, head)
            if place >= _WARM_UP:
                for name, spent in zip(STAGES, [*np.diff(stamps, axis=0), stamps[-1] - stamps[0]], strict=True):
                    times[name].append(tuple(1e3 * spent / batch))
        for name, each in times.items():
            (p50, cpu50), (p95, cpu95) = np.percentile(each, (50, 95), axis=0).tolist()
            costs.append(Cost(name, batch, p50, p95, cpu50, cpu95))
    return costs


def _run(
    part: Sequence[RouteRequest], adapters: dict[str, TrainingNeighbours], router: Router, head: AmbiguityHead
) -> Floats:
    """[4, 2] seconds by the clock and of this thread, before and after each stage."""
    stamps = [_now()]
    table = question_signals(part, adapters, 3)
    stamps.append(_now())
    embeddings = np.stack([each.evidence.clues.embedding for each in part if each.evidence and each.evidence.clues])
    head.probabilities([each.text for each in part], embeddings, table)
    stamps.append(_now())
    router.decide(table.values)
    stamps.append(_now())
    return np.array(stamps)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


def _unit(draw: np.random.Generator, num: int) -> Vectors:
    rows = draw.normal(size=(num, _SIZE)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.router_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--inputs", type=int, default=2_000, help="training inputs of each adapter (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    # As in the gateway, where Ray allows one: threads that wait for each other take longer than such products.
    with threadpool_limits(1):
        costs = measure(options.inputs)
    if options.json is not None:
        extra = {"inputs": options.inputs, "costs": [asdict(one) for one in costs]}
        Report("router_overhead", (), extra=extra).write_json(options.json)
    table = Table(
        title=f"ms per question, {options.inputs:,} training inputs of each of two adapters", title_justify="left"
    )
    table.add_column("stage")
    for column in ("batch", "p50", "p95", "CPU p50", "CPU p95"):
        table.add_column(column, justify="right")
    for one in costs:
        figures = (one.p50_ms, one.p95_ms, one.p50_cpu_ms, one.p95_cpu_ms)
        table.add_row(one.stage, str(one.batch), *(f"{figure:.3f}" for figure in figures))
    Console(highlight=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
