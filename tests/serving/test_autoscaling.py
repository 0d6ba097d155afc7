"""How many generators a load gets, over simulated minutes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from engine.serving.autoscaling import FleetLoad, ScalingPolicy

SPEED = 10_000.0
PROMPT = 500
UP_S, DOWN_S = 20.0, 120.0


def policy(**options: float) -> ScalingPolicy:
    return ScalingPolicy(**{"waiting_tokens": 4096, "upscale_delay_s": UP_S, "downscale_delay_s": DOWN_S, **options})


def simulate(
    demand: Callable[[float], float],
    seconds: int,
    *,
    least: int = 1,
    most: int = 8,
    start: int | None = None,
    start_s: float = 30.0,
    waiting_for: float = 4.0,
) -> list[int]:
    """Replicas asked for, each second, where tokens arrive at `demand` a second, `SPEED` are done by each replica, as
    much may queue as takes `waiting_for` s and a replica starts in `start_s`. The policy sees means over 10 s.
    """
    rng, decide = random.Random(3), policy().decide
    target = start or least
    ready_s = [0.0] * target
    queue, history, targets = 0.0, [], []
    for second in range(seconds):
        running = sum(ready <= second for ready in ready_s)
        arrived = demand(second) * rng.uniform(0.8, 1.2)
        done = min(queue + arrived, running * SPEED)
        queue = min(queue + arrived - done, running * SPEED * waiting_for)
        utilisation = min(done / (running * SPEED), 0.99)
        # What a queue of single requests holds on average (M/M/1), beside what is left over.
        waiting = queue / running + min(PROMPT * utilisation**2 / (1 - utilisation), 20 * PROMPT) * rng.uniform(
            0.5, 1.5
        )
        history.append((waiting, 0.05 + 0.2 * utilisation, done / running))
        window = history[-10:]
        means = FleetLoad(*(sum(each) / len(window) for each in zip(*window, strict=True)))
        target = decide(means, running, target, least=least, most=most, now_s=second)
        ready_s = [*ready_s[:target], *[second + start_s] * (target - len(ready_s))]
        targets.append(target)
    return targets


def num_turns(targets: list[int]) -> int:
    """Changes of direction."""
    steps = [after - before for before, after in itertools.pairwise(targets) if after != before]
    return sum((one > 0) != (other > 0) for one, other in itertools.pairwise(steps))


@pytest.mark.parametrize("load", [0.0, 0.3, 0.7, 0.95, 1.05, 1.5, 1.9, 2.1, 2.5, 3.0, 3.7, 4.4, 6.0, 7.5, 12.0])
@pytest.mark.parametrize("start", [1, 3, 8])
def test_constant_load_does_not_make_replicas_come_and_go(load: float, start: int):
    targets = simulate(lambda _: load * SPEED, 300, start=start)
    assert num_turns(targets) <= 2
    later = simulate(lambda _: load * SPEED, 3000, start=start)[1200:]
    assert num_turns(later) <= 2 and max(later) - min(later) <= 1
    assert min(max(later), 8) >= min(load, 8) * 0.95


def test_step_up_is_answered_within_the_delay_and_the_time_that_metrics_take():
    targets = simulate(lambda second: (0.4 if second < 100 else 3.0) * SPEED, 400)
    assert set(targets[:100]) == {1}
    first = next(second for second, target in enumerate(targets) if target > 1)
    assert UP_S <= first - 100 <= UP_S + 10
    assert targets[-1] >= 3


def test_replicas_go_one_by_one_after_the_longer_delay():
    targets = simulate(lambda second: (3.4 if second < 300 else 0.2) * SPEED, 1200, start=4, most=4)
    before = targets[299]
    last = max(second for second, target in enumerate(targets) if target == before)
    assert DOWN_S <= last - 300 <= DOWN_S + 20
    assert targets[-1] == 1
    assert all(after - before >= -1 for before, after in itertools.pairwise(targets))


def test_replicas_stay_within_their_bounds():
    assert max(simulate(lambda _: 50 * SPEED, 600, most=5)) == 5
    assert min(simulate(lambda _: 0, 1000, least=2, start=5)) == 2
    idle = FleetLoad(0, 0, 0)
    assert policy().decide(idle, 1, 1, least=3, most=8, now_s=0) == 3
    assert policy().decide(idle, 9, 9, least=3, most=8, now_s=0) == 8


def test_a_step_is_at_most_half_of_what_is_there():
    targets = simulate(lambda _: 50 * SPEED, 900, most=64)
    assert all(after <= before + max(1, before // 2) for before, after in itertools.pairwise(targets))


def test_nothing_more_is_asked_for_while_replicas_are_on_their_way():
    targets = simulate(lambda _: 50 * SPEED, 300, start_s=1000)
    assert targets[-1] == 2


def test_full_keys_and_values_are_pressure_without_any_prompt_waiting():
    made, full = policy(), FleetLoad(0, 0.95, SPEED)
    assert made.decide(full, 1, 1, least=1, most=8, now_s=0) == 1
    assert made.decide(full, 1, 1, least=1, most=8, now_s=UP_S) == 2


def test_a_short_peak_changes_nothing():
    made, full, idle = policy(), FleetLoad(9000, 0.1, SPEED), FleetLoad(1000, 0.1, SPEED)
    for second in range(100):
        assert made.decide(idle if second % 10 == 0 else full, 1, 1, least=1, most=8, now_s=second) == 1


def test_ray_serves_context_is_read_and_a_fleet_without_metrics_stays():
    made = ScalingPolicy(waiting_tokens=100, upscale_delay_s=0, downscale_delay_s=60)
    metrics = {"waiting_tokens": {"a": 300.0, "b": 100.0}, "kv_share": {"a": 0.1, "b": 0.1}, "tokens_per_s": {"a": 5.0}}
    bounds = {"capacity_adjusted_min_replicas": 1, "capacity_adjusted_max_replicas": 4}
    context = SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=2, current_time=5.0, **bounds)
    assert made(context) == (3, {})
    context.aggregated_metrics = None
    assert made(context) == (2, {})
