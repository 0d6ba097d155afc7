"""A router of two signals and two arms that is right by construction: passages where `s0` is high."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from made_outcomes import KEYS

from engine.routing.artefact import Artefact, FrontierPoint, Learned, Objective, SelfTest, question_number
from engine.routing.decide import Serving
from engine.routing.heads import LinearHeads, Normaliser, PlattCurves, Policy, QualityModel, TreeHeads

ARMS = ("base", "base+context")
SERVING = Serving(KEYS, ARMS, ("other", "s1", "s0"))


def linear() -> LinearHeads:
    """`base` is good where s0 is low, `base+context` where it is high; what is unknown of s1 changes nothing."""
    return LinearHeads(np.array([[-2.0, 0.0, 0.0], [2.0, 0.5, 0.0]]), np.zeros(2))


def trees() -> TreeHeads:
    """The same as one stump for each arm."""
    node = np.array([[[0, 1, 2]], [[0, 1, 2]]], dtype=np.int32)
    left, right = node.copy(), node.copy()
    left[:, 0, 0], right[:, 0, 0] = 1, 2
    value = np.array([[[0.0, 1.0, -1.0]], [[0.0, -1.0, 1.0]]])
    return TreeHeads(np.zeros((2, 1, 3), dtype=np.int32), np.zeros((2, 1, 3)), left, right, value, np.zeros(2), 2)


def learned(
    heads: LinearHeads | TreeHeads | None = None, costs: tuple[float, float] = (0.0, 0.0), mean: float = 0.0
) -> Learned:
    """With four questions to test it by. Above `mean` of the first signal, passages are better."""
    model = QualityModel(
        Normaliser(np.array([mean, 1.0]), np.array([1.0, 2.0]), np.array([1], dtype=np.int32)),
        heads or linear(),
        PlattCurves(np.ones(2), np.zeros(2)),
    )
    policy = Policy(np.array(costs), 2.0, 0.0)
    values = np.array([[-2.0, 1.0], [-0.5, np.nan], [0.5, 3.0], [2.0, -1.0]])
    qualities = model.qualities(values)
    return Learned(model, policy, SelfTest(values, qualities, policy.choose(qualities)[0]))


def artefact(is_learned: bool = True, **changed: object) -> Artefact:
    """The router; without `is_learned` it is the best single arm."""
    whole = Artefact(
        created="2026-01-02T03:04:05+00:00",
        keys=KEYS,
        arms=ARMS,
        ranked=("base+context", "base"),
        rates=(0.6, 0.7),
        objective=Objective(),
        headline="Learned: it is." if is_learned else "Not learned: 10 questions are too few; 300 are needed.",
        reasons=("because",),
        num_questions=400,
        signals=("s0", "s1") if is_learned else (),
        learned=learned() if is_learned else None,
        frontier=(FrontierPoint("always base", None, 0.0, 0.5, None, None, 10.0, 9.0, 20.0, None),),
        figures={"num_questions": 400},
        trained_on=np.sort(np.array([question_number(f"q{row}") for row in range(400)], dtype=np.uint64)),
    )
    return replace(whole, **changed)  # type: ignore[arg-type]
