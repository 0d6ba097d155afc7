"""What a server sustains, found by offering more and more: pure, so the search is tested without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.errors import SwitchyardError

# Each step offers so much more than the one before.
STEP_FACTOR = 1.5
# Less than this much more goodput is no growth; one such step may be chance, so many in a row are not.
MIN_GROWTH, PATIENCE = 1.05, 2
_MAX_STEPS = 20


@dataclass(frozen=True, slots=True)
class Step:
    """Requests/s that were offered, and that were answered within the objective."""

    rate_s: float
    goodput_s: float


@dataclass(frozen=True, slots=True)
class FoundKnee:
    """The highest goodput of all steps, in requests/s: beyond it, more requests bring no more answers in time."""

    goodput_s: float
    steps: tuple[Step, ...]


def search_knee(measure: Callable[[float], float], first_rate_s: float) -> FoundKnee:
    """Offer STEP_FACTOR times more each time until PATIENCE steps in a row brought no growth of MIN_GROWTH.

    Args:
        measure: goodput at a rate, both in requests/s.
    Raises: SwitchyardError where nothing was answered in time, or goodput still grew at the last step.
    """
    steps: list[Step] = []
    best, num_idle = 0.0, 0
    for rate_s in _rates(first_rate_s):
        steps.append(Step(rate_s, measure(rate_s)))
        has_grown = steps[-1].goodput_s > best * MIN_GROWTH
        best = max(best, steps[-1].goodput_s)
        num_idle = 0 if has_grown else num_idle + 1
        if num_idle == PATIENCE:
            break
    else:
        raise SwitchyardError(f"goodput still grew at {steps[-1].rate_s:.3g}/s. Begin higher: --knee-from RATE.")
    if best == 0:
        raise SwitchyardError(
            f"nothing was answered within the objective at {first_rate_s:g}/s or above. Begin lower with --knee-from, "
            "or allow more with --slo-ttft-ms and --slo-tpot-ms."
        )
    return FoundKnee(best, tuple(steps))


def _rates(first_rate_s: float) -> Iterator[float]:
    for number in range(_MAX_STEPS):
        yield float(f"{first_rate_s * STEP_FACTOR**number:.3g}")
