from __future__ import annotations

import pytest

from engine.errors import ConfigError
from engine.tuning.training.events import HistoryPoint
from engine.tuning.training.schedule import evaluation_steps, learning_rate_at, num_warm_up_steps
from engine.tuning.training.settings import TrainingSettings, fitting_settings
from engine.tuning.training.watch import divergence, is_out_of_patience


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_rate_rises_during_warm_up_and_falls_to_almost_nothing(decay: str):
    settings = TrainingSettings(learning_rate=1.0, warm_up=0.1, decay=decay)  # type: ignore[arg-type]
    rates = [learning_rate_at(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.02
    assert rates[55] == pytest.approx(0.5)


def test_rate_is_defined_without_warm_up_and_for_a_single_step():
    assert num_warm_up_steps(TrainingSettings(warm_up=0.0), 10) == 0
    assert learning_rate_at(0, 1, TrainingSettings(warm_up=0.0, learning_rate=0.5)) == 0.5
    assert learning_rate_at(0, 1, TrainingSettings(warm_up=0.05, learning_rate=0.5)) == 0.5


def test_evaluations_are_even_within_each_epoch_and_at_its_end():
    assert evaluation_steps([8, 6], 4) == {2, 4, 6, 8, 10, 11, 13, 14}
    assert evaluation_steps([2], 4) == {1, 2}


def test_small_sets_get_more_epochs_smaller_steps_and_a_lower_rank():
    small = fitting_settings(200, 10_000, model_parameters=135_000_000)
    large = fitting_settings(10_000, 600_000, model_parameters=135_000_000)
    assert (small.epochs, small.rank, small.batch_tokens) == (10, 8, 512)
    assert (large.epochs, large.rank, large.batch_tokens, large.learning_rate) == (2, 16, 1024, 1e-3)
    assert large.alpha == 32


def test_long_examples_still_come_eight_to_a_step_and_larger_models_learn_slower():
    settings = fitting_settings(1000, 1_000_000, model_parameters=8_000_000_000)
    assert settings.batch_tokens == 8000
    assert settings.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": 0}, "rank=0 is too small"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a positive number"),
        ({"warm_up": 1.0}, "warm_up=1.0 is a share"),
        ({"decay": "step"}, "allowed: cosine, linear"),
    ],
)
def test_settings_refuse_what_cannot_train(setting: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        TrainingSettings(**setting)  # type: ignore[arg-type]


def point(step: int, valid: float, metric: float | None = None) -> HistoryPoint:
    return HistoryPoint(step, 0.0, 1.0, valid, metric)


def test_best_is_by_metric_then_by_loss_and_a_tie_keeps_the_earlier():
    assert point(2, 9.0, 0.8).beats(point(1, 1.0, 0.7))
    assert point(2, 0.9, 0.7).beats(point(1, 1.0, 0.7))
    assert not point(2, 1.0, 0.7).beats(point(1, 1.0, 0.7))
    assert point(2, 0.9).beats(point(1, 1.0))
    assert point(1, 5.0).beats(None)


def test_patience_ends_when_neither_metric_nor_loss_improved():
    falling = [point(1, 1.0, 0.5), point(2, 1.1, 0.5), point(3, 1.2, 0.4)]
    assert is_out_of_patience(falling, 2)
    assert not is_out_of_patience(falling, 3)
    assert not is_out_of_patience([*falling[:2], point(3, 0.9, 0.4)], 2)
    assert not is_out_of_patience([*falling[:2], point(3, 1.2, 0.6)], 2)


def test_divergence_is_seen_in_one_step_where_a_number_is_not_finite():
    assert divergence([1.0, float("nan")], 1.0, 5) == "the loss is nan"
    assert divergence([1.0], float("inf"), 5) == "the gradient's norm is inf"


def test_divergence_is_twice_the_start_after_the_warm_up():
    assert divergence([1.0] * 10 + [2.1] * 10, 1.0, 0) == (
        "the loss of the last 10 steps is 2.1, that of the first 10 was 1"
    )
    assert divergence([1.0] * 10 + [1.9] * 10, 1.0, 0) is None
    assert divergence([1.0] * 10 + [2.1] * 10, 1.0, 11) is None
    assert divergence([1.0] * 19 + [8.0], 1.0, 0) is None
    assert divergence([0.01] * 10 + [0.05] * 10, 1.0, 0) is None
