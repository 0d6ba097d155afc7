"""`train_router`: from outcomes to a router and to what it is worth.

What it is worth is found by cross-fitting: of five folds each is the test once, the next one calibrates, the others are
fitted to. Costs and the kind of heads are found on the calibration fold alone, and the test fold is only looked at. The
router that is kept is fitted in the same way, to four folds and calibrated with the fifth.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import TrainingDataError
from engine.evaluation.choosing import check_objective, one_hot, single_arm
from engine.evaluation.figures import Evaluation, RoutedFigures, Verdict
from engine.evaluation.fitting import FittedRouter, Routed, fit_router, route
from engine.evaluation.fitting_heads import check_learner
from engine.evaluation.folds import make_folds
from engine.evaluation.measuring import arm_figures, measure
from engine.evaluation.outcomes import Outcomes
from engine.evaluation.rivals import held_to, rival_shares, rivals_not_run
from engine.evaluation.table import OutcomeTable, make_table
from engine.evaluation.verdict import judge, too_little, untrained
from engine.routing.artefact import Artefact, Learned, Objective, SelfTest, question_number
from engine.routing.heads import Floats

NUM_FOLDS = 5
NUM_TESTED = 20
# A decision that rounding could turn is no test.
_MIN_TEST_MARGIN = 1e-4


@dataclass(frozen=True, slots=True)
class TrainedRouter:
    """A router that is not written yet, and its evaluation."""

    artefact: Artefact
    evaluation: Evaluation


def train_router(
    outcomes: Outcomes, objective: Objective, *, created: str, arms: list[str] | None = None, seed: int = 0
) -> TrainedRouter:
    """Fit, judge and describe a router; where it does not beat every rival, the router is the best single arm.

    Args:
        created: ISO time in UTC.
        arms: those to choose among; None takes all that were measured.
    Raises: TrainingDataError where there are not two arms, ConfigError where no arm fits the objective.
    """
    check_learner()
    table, num_left_out = make_table(outcomes, arms)
    if len(table.arms) < 2:
        raise TrainingDataError(
            f"{outcomes.origin}: holds outcomes of {table.arms[0]} alone; a route needs two arms at least. Collect "
            "another one."
        )
    check_objective(objective, table)
    best_arm = table.arms[single_arm(objective, table)]
    why = too_little(table)
    routed: Routed | None = None
    figures: RoutedFigures | None = None
    fitted: FittedRouter | None = None
    heads = ""
    if why is not None:
        verdict = untrained(best_arm, why)
    else:
        folds = make_folds(table, NUM_FOLDS, seed)
        routed, rivals = cross_fit(table, folds, objective, seed)
        figures = measure(table, routed, rivals)
        verdict = judge(objective, figures, table, one_hot(routed.chosen, len(table.arms)), best_arm)
        fitted = fit_router(_rows(table, folds != 0), _rows(table, folds == 0), objective, seed)
        heads = fitted.why
    evaluation = Evaluation(
        title="Router training",
        origin=outcomes.origin,
        created=created,
        objective=objective,
        num_questions=len(table),
        num_sources=table.overall.num_sources,
        num_discordant=int(table.is_discordant.sum()),
        num_groups=len(np.unique(table.groups)),
        num_left_out=num_left_out,
        num_seen=0,
        is_crossfitted=True,
        best_arm=best_arm,
        verdict=verdict,
        arms=arm_figures(table, None if routed is None else routed.chosen),
        routed=figures,
        not_run=rivals_not_run(table),
        heads=heads,
    )
    return TrainedRouter(_artefact(table, objective, evaluation, fitted, created), evaluation)


def cross_fit(
    table: OutcomeTable, folds: NDArray[np.int64], objective: Objective, seed: int
) -> tuple[Routed, dict[str, Floats]]:
    """Decisions for every question by a router fitted without its fold, and those of rivals that know as much."""
    size = table.quality.shape
    found = Routed(
        before=np.zeros(size),
        expected=np.zeros(size),
        costs=np.zeros(size),
        chosen=np.zeros(len(table), dtype=np.int32),
        confidence=np.zeros(len(table)),
    )
    rivals: dict[str, Floats] = defaultdict(lambda: np.zeros(size))
    for fold in range(NUM_FOLDS):
        is_test, calibrates = folds == fold, folds == (fold + 1) % NUM_FOLDS
        test = _rows(table, is_test)
        fitted = fit_router(_rows(table, ~is_test & ~calibrates), _rows(table, calibrates), objective, seed)
        routed = route(fitted.model, fitted.policy, test.values, objective)
        for name in ("before", "expected", "costs", "chosen", "confidence"):
            getattr(found, name)[is_test] = getattr(routed, name)
        for name, shares in _rivals(_rows(table, ~is_test), test, objective, fitted, routed).items():
            rivals[name][is_test] = shares
    return found, dict(rivals)


def _rivals(
    train: OutcomeTable, test: OutcomeTable, objective: Objective, fitted: FittedRouter, routed: Routed
) -> dict[str, Floats]:
    """At the route's costs, or held to its share of passages where the objective is a budget of them."""
    if objective.name != "budget":
        return rival_shares(train, test, fitted.policy.costs)
    rate = test.overall.mean(test.has_context[routed.chosen])
    free = rival_shares(train, test, np.zeros(len(train.arms)), single_arm(objective, train))
    return {name: held_to(rate, shares, train, test.overall) for name, shares in free.items()}


def _artefact(
    table: OutcomeTable, objective: Objective, evaluation: Evaluation, fitted: FittedRouter | None, created: str
) -> Artefact:
    verdict: Verdict = evaluation.verdict
    is_learned = verdict.is_learned and fitted is not None
    means = [each.quality.value for each in evaluation.arms]
    others = sorted(set(table.arms) - {evaluation.best_arm}, key=lambda arm: -means[table.arms.index(arm)])
    figures = evaluation.to_json()
    frontier = evaluation.routed.frontier if evaluation.routed else ()
    if figures["routed"]:
        # Held by the artefact itself.
        del figures["routed"]["frontier"]
    return Artefact(
        created=created,
        keys=table.keys,
        arms=table.arms,
        ranked=(evaluation.best_arm, *others),
        rates=tuple(each.best_rate for each in evaluation.arms),
        objective=objective,
        headline=verdict.headline,
        reasons=verdict.reasons,
        num_questions=len(table),
        signals=table.signals if is_learned else (),
        learned=_learned(fitted, table) if is_learned and fitted is not None else None,
        frontier=frontier,
        figures=figures,
        trained_on=np.sort(np.array([question_number(each) for each in table.ids], dtype=np.uint64)),
    )


def _learned(fitted: FittedRouter, table: OutcomeTable) -> Learned:
    """With questions of every decision to test it by, spread over the sure and the unsure ones."""
    qualities = fitted.model.qualities(table.values)
    chosen, margins = fitted.policy.choose(qualities)
    rows: list[int] = []
    by_arm = [np.flatnonzero((chosen == arm) & (margins > _MIN_TEST_MARGIN)) for arm in range(len(table.arms))]
    by_arm = [each[np.argsort(margins[each], kind="stable")] for each in by_arm if len(each)]
    for each in by_arm:
        num = NUM_TESTED // len(by_arm)
        rows += each[np.unique(np.linspace(0, len(each) - 1, num).round().astype(int))].tolist()
    picked = np.array(rows or [int(margins.argmax())])
    return Learned(fitted.model, fitted.policy, SelfTest(table.values[picked], qualities[picked], chosen[picked]))


def _rows(table: OutcomeTable, which: NDArray[np.bool_]) -> OutcomeTable:
    return table.take(np.flatnonzero(which))
