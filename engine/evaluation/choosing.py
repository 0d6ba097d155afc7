"""What a choice of arms is worth, and how much quality a second of latency or a search may cost.

Every choice is a share of each arm for each question, [N, A] with rows that sum to 1, so that a drawn one counts by its
expectation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError
from engine.evaluation.overall import Overall
from engine.evaluation.table import OutcomeTable
from engine.routing.artefact import Objective
from engine.routing.heads import Floats, Policy

_NUM_PRICES = 24
_MIN_MS = 1.0
# Of sums of weights.
_ROUNDING = 1e-9


def check_objective(objective: Objective, table: OutcomeTable) -> None:
    """Raises: ConfigError where no arm fits the objective."""
    if objective.name == "budget":
        if objective.budget is None:
            raise ConfigError("the objective is a budget, but none is given. Name the share: --budget 0.3.")
        if table.has_context.all():
            raise ConfigError("every arm measured uses passages, so no budget can hold. Measure an arm without them.")
    if objective.max_p95_ms is not None and not _fits(objective, table).any():
        lowest = _tails(table).min()
        raise ConfigError(
            f"no arm has a 95th percentile of latency within {objective.max_p95_ms:g} ms; the lowest is "
            f"{lowest:.0f} ms. Allow more with --max-p95-ms."
        )


def single_arm(objective: Objective, table: OutcomeTable) -> int:
    """The arm of the best mean quality of those that fit the objective by themselves, the faster of equal ones."""
    means = table.overall.means
    order = np.lexsort((means(table.latency_ms), -means(table.quality).round(9), ~_fits(objective, table)))
    return int(order[0])


def worthiest_arm(worth: Floats, overall: Overall) -> int:
    """The arm of the best mean worth [N, A]: quality less cost."""
    return int(overall.means(worth).round(9).argmax())


def find_costs(objective: Objective, qualities: Floats, table: OutcomeTable) -> Floats:
    """[A] what each arm costs in quality, so that choosing by `qualities` less cost serves the objective on `table`.

    The rows must be others than the qualities were fitted on; nothing else may be chosen on them.
    """
    if objective.name == "budget":
        return _budget_costs(objective, qualities, table)
    if objective.name == "quality" and objective.max_p95_ms is None:
        return np.zeros(len(table.arms))
    prices, overall = latency_prices(qualities, table), table.overall
    costs = [latency_costs(price, table) for price in prices]
    routed = [routed_by(each, qualities) for each in costs]
    if objective.name == "quality":
        limit = objective.max_p95_ms or np.inf
        tails = [overall.percentile(measured(each, table.latency_ms), 95) for each in routed]
        fitting = [place for place, tail in enumerate(tails) if tail <= limit]
        return costs[fitting[0] if fitting else int(np.argmin(tails))]
    single = table.quality[:, single_arm(objective, table)]
    gains = np.stack([measured(shares, table.quality) - single for shares in routed], axis=1)
    means = overall.resampled(gains)
    lows = np.full(len(costs), -np.inf) if means is None else np.percentile(means, 2.5, axis=0)
    waits = [overall.mean(measured(shares, table.latency_ms)) for shares in routed]
    good = [place for place, low in enumerate(lows) if low >= -objective.epsilon]
    return costs[min(good, key=lambda place: waits[place])] if good else _held(objective, table)


def latency_costs(price: float, table: OutcomeTable) -> Floats:
    """[A] the mean latency of each arm beyond the fastest one's, at `price` of quality for each second."""
    means = table.overall.means(table.latency_ms)
    return np.asarray(price * (means - means.min()) / 1000)


def latency_prices(qualities: Floats, table: OutcomeTable) -> list[float]:
    """Prices of a second at which choices change, ascending from 0: quantiles of all that do."""
    means = table.overall.means(table.latency_ms)
    found = []
    for slow in range(len(means)):
        for fast in range(len(means)):
            if means[slow] - means[fast] > _MIN_MS:
                found.append((qualities[:, slow] - qualities[:, fast]) * 1000 / (means[slow] - means[fast]))
    points = np.concatenate(found) if found else np.zeros(0)
    points = points[points > 0]
    if not len(points):
        return [0.0]
    # Beyond the highest, every question gets its fastest arm.
    quantiles = np.quantile(points, np.linspace(0.04, 1, _NUM_PRICES))
    return [0.0, *np.unique(np.append(quantiles, quantiles[-1] * 1.01)).tolist()]


def routed_by(costs: Floats, qualities: Floats) -> Floats:
    """The shares of choosing by `qualities` less `costs`."""
    return one_hot(Policy(costs, 1.0, 0.0).choose(qualities)[0], qualities.shape[1])


def one_hot(chosen: NDArray[np.int32] | NDArray[np.int64], num_arms: int) -> Floats:
    """The shares of a choice [N]."""
    shares = np.zeros((len(chosen), num_arms))
    shares[np.arange(len(chosen)), chosen] = 1.0
    return shares


def measured(shares: Floats, outcomes: Floats) -> Floats:
    """[N] what the choice got of outcomes [N, A]."""
    return np.asarray((shares * outcomes).sum(axis=1))


def _fits(objective: Objective, table: OutcomeTable) -> NDArray[np.bool_]:
    """[A] whether an arm alone keeps to the objective."""
    fits = np.ones(len(table.arms), dtype=bool)
    if objective.budget is not None and objective.budget < 1:
        fits &= ~table.has_context
    if objective.max_p95_ms is not None:
        fits &= _tails(table) <= objective.max_p95_ms
    return fits


def _tails(table: OutcomeTable) -> Floats:
    """[A] 95th percentile of latency of each arm alone."""
    overall = table.overall
    return np.array([overall.percentile(column, 95) for column in table.latency_ms.T])


def _held(objective: Objective, table: OutcomeTable) -> Floats:
    """Costs at which the single arm always answers."""
    costs = np.full(len(table.arms), 2.0)
    costs[single_arm(objective, table)] = 0.0
    return costs


def _budget_costs(objective: Objective, qualities: Floats, table: OutcomeTable) -> Floats:
    """A price of passages: the quantile of what they gain that leaves the budget's share above it, 0 at least."""
    with_context = table.has_context
    if not with_context.any():
        return np.zeros(len(table.arms))
    gains = qualities[:, with_context].max(axis=1) - qualities[:, ~with_context].max(axis=1)
    order = np.argsort(-gains, kind="stable")
    # As many questions as the budget allows gain more than the price; those that gain as much get no passages.
    used = np.cumsum(table.overall.weights[order])
    num_allowed = int(np.searchsorted(used, (objective.budget or 0.0) + _ROUNDING, side="right"))
    price = max(0.0, float(gains[order[num_allowed]])) if num_allowed < len(order) else 0.0
    return np.where(with_context, np.nextafter(price, 2.0), 0.0)
