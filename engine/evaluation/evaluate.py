"""`evaluate_router`: a router that exists, on outcomes of questions that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.errors import TrainingDataError
from engine.evaluation.choosing import one_hot
from engine.evaluation.figures import Evaluation, Verdict
from engine.evaluation.fitting import Routed, route
from engine.evaluation.measuring import arm_figures, measure
from engine.evaluation.outcomes import Outcomes
from engine.evaluation.rivals import NEIGHBOURS, SINGLE, WORDS
from engine.evaluation.table import OutcomeTable, make_table
from engine.evaluation.verdict import judge_again
from engine.metrics.bootstrap import MIN_ROWS
from engine.routing.artefact import Artefact, Learned, question_number
from engine.routing.decide import failed_test


@dataclass(frozen=True, slots=True)
class Unseen:
    """Questions of `origin` that did not train a router, its arms in its order.

    `num_left_out` others lack an answer of an arm, `num_seen` trained it.
    """

    table: OutcomeTable
    origin: str
    num_left_out: int
    num_seen: int


def evaluate_router(artefact: Artefact, outcomes: Outcomes, *, created: str) -> Evaluation:
    """What the router is worth on questions of `outcomes` that it has not seen.

    Raises: TrainingDataError where the outcomes are of other keys, lack an arm or a signal, or too few are unseen.
    """
    return evaluate_unseen(artefact, unseen_questions(artefact, outcomes), created=created)


def evaluate_unseen(artefact: Artefact, unseen: Unseen, *, created: str) -> Evaluation:
    """See `evaluate_router`."""
    table = unseen.table
    figures = None
    verdict = Verdict(False, artefact.headline, artefact.reasons)
    if artefact.learned is not None:
        why = failed_test(artefact.learned)
        if why is not None:
            raise TrainingDataError(f"{artefact.name}: {why}. Train it anew: switchyard router train.")
        routed = route_table(artefact, artefact.learned, table, unseen.origin)
        single = np.full(len(table), table.arms.index(artefact.best_arm), dtype=np.int64)
        figures = measure(table, routed, {SINGLE: one_hot(single, len(table.arms))})
        shares = one_hot(routed.chosen, len(table.arms))
        verdict = judge_again(artefact.objective, figures, table, shares, artefact.best_arm)
    chosen = None if artefact.learned is None else routed.chosen
    why = "is fitted to the training's questions, which are not here"
    return Evaluation(
        title="Router evaluation",
        origin=unseen.origin,
        created=created,
        objective=artefact.objective,
        num_questions=len(table),
        num_sources=table.overall.num_sources,
        num_discordant=int(table.is_discordant.sum()),
        num_groups=len(np.unique(table.groups)),
        num_left_out=unseen.num_left_out,
        num_seen=unseen.num_seen,
        is_crossfitted=False,
        best_arm=artefact.best_arm,
        verdict=verdict,
        arms=arm_figures(table, chosen),
        routed=figures,
        not_run={WORDS: why, NEIGHBOURS: why},
        heads="",
    )


def unseen_questions(artefact: Artefact, outcomes: Outcomes) -> Unseen:
    """The questions that did not train the router.

    Raises: TrainingDataError, see `evaluate_router`.
    """
    different = artefact.keys.differences(outcomes.keys)
    if different:
        raise TrainingDataError(
            f"{outcomes.origin}: was not measured with what {artefact.name} was trained on: {different[0]}. "
            "Collect the outcomes anew, or train a router on them."
        )
    whole, num_left_out = make_table(outcomes, list(artefact.arms))
    is_new = ~np.isin(np.array([question_number(each) for each in whole.ids], dtype=np.uint64), artefact.trained_on)
    if is_new.sum() < MIN_ROWS:
        raise TrainingDataError(
            f"{outcomes.origin}: {int((~is_new).sum()):,} of its {len(whole):,} questions trained {artefact.name}, and "
            f"{MIN_ROWS} others are needed. Name outcomes of other questions; what it is worth on these, each one left "
            "out of the fit in turn, is in the report of the training."
        )
    table = whole.take(np.flatnonzero(is_new))
    # By the artefact's order of arms, in which its arrays are.
    return Unseen(_ordered(table, artefact.arms), outcomes.origin, num_left_out, int((~is_new).sum()))


def route_table(artefact: Artefact, learned: Learned, table: OutcomeTable, origin: str) -> Routed:
    """The decisions by the signals that outcomes hold. Raises: TrainingDataError where they lack one."""
    missing = [name for name in artefact.signals if name not in table.signals]
    if missing:
        raise TrainingDataError(
            f"{origin}: lacks signals that the router needs ({', '.join(missing[:5])}). Collect them with this version."
        )
    places = [table.signals.index(name) for name in artefact.signals]
    return route(learned.model, learned.policy, table.values[:, places], artefact.objective)


def _ordered(table: OutcomeTable, arms: tuple[str, ...]) -> OutcomeTable:
    if table.arms != arms:
        raise TrainingDataError(
            f"the router has arms {', '.join(arms)}, the outcomes {', '.join(table.arms)}. Train it anew."
        )
    return table
