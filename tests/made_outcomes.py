"""Outcomes whose truth is known: which signal decides, and how well each arm answers then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from engine.evaluation.outcomes import ArmOutcome, Outcomes, QuestionOutcome
from engine.routing.keys import Keys

KEYS = Keys("model-1", "index-1", "encoder-1", {"support": "adapter-1"})
LATENCY_MS = {"base": 100.0, "base+context": 300.0, "support": 110.0, "support+context": 320.0}


def made(
    num: int,
    rate: Callable[[str, np.ndarray], np.ndarray],
    *,
    arms: Sequence[str] = ("base", "base+context"),
    seed: int = 0,
    sources: Sequence[str] = ("docs",),
    num_signals: int = 3,
    unknown: float = 0.0,
    with_texts: bool = False,
    embeddings: Literal["none", "signals", "noise"] = "none",
    name: str = "q",
    keys: Keys = KEYS,
    group_size: int = 1,
) -> Outcomes:
    """`num` questions with standard normal signals `s0`, `s1`, ...; `rate(arm, values)` is how often an arm is right.

    `unknown` of the values of the last signal are None. Texts say nothing; embeddings hold the signals, or nothing too.
    """
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(num, num_signals))
    right = {arm: draw.random(num) < rate(arm, values) for arm in arms}
    latency = {arm: LATENCY_MS[arm] * draw.uniform(0.8, 1.2, num) for arm in arms}
    hidden = draw.random(num) < unknown
    vectors = {"signals": values, "noise": draw.normal(size=(num, 8))}.get(embeddings)
    questions = []
    for row in range(num):
        signals: dict[str, float | None] = {f"s{place}": float(values[row, place]) for place in range(num_signals)}
        if hidden[row]:
            signals[f"s{num_signals - 1}"] = None
        questions.append(
            QuestionOutcome(
                id=f"{name}{row}",
                source=sources[row % len(sources)],
                signals=signals,
                arms={
                    arm: ArmOutcome(
                        quality=float(right[arm][row]),
                        metric="exact_match",
                        latency_ms=float(latency[arm][row]),
                        tokens_in=50,
                        tokens_out=10,
                    )
                    for arm in arms
                },
                group=f"{name}g{row // group_size}" if group_size > 1 else None,
                question=f"what is {draw.integers(1_000_000)} of {row}?" if with_texts else None,
                embedding=None if vectors is None else tuple(map(float, vectors[row])),
            )
        )
    return Outcomes(keys, tuple(questions), "made.jsonl")


def decided_by_first(arm: str, values: np.ndarray) -> np.ndarray:
    """With passages where s0 is high, without where it is low."""
    is_high = values[:, 0] > 0
    return np.where(is_high == arm.endswith("+context"), 0.85, 0.25)


def decided_by_nothing(arm: str, values: np.ndarray) -> np.ndarray:
    """The arms are right independently of every signal."""
    return np.full(len(values), 0.6 if arm.endswith("+context") else 0.5)


def decided_gradually(arm: str, values: np.ndarray) -> np.ndarray:
    """As the heads see it: log-odds that are linear in s0."""
    return 1 / (1 + np.exp(-2.5 * values[:, 0] * (1 if arm.endswith("+context") else -1)))
