"""A few rows worth reading: what tuning gained, what it lost, and what it still gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from engine.tuning.outcome import Evaluation, Prediction

NUM_SHOWN = 6
# Half of the quality: an answer that is more right than wrong.
_RIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Samples:
    """The first of `num_*` rows each: better with the adapter, worse with it, and wrong still (the surest first)."""

    gained: tuple[Prediction, ...]
    lost: tuple[Prediction, ...]
    wrong: tuple[Prediction, ...]
    num_gained: int
    num_lost: int
    num_wrong: int


def samples_of(evaluation: Evaluation) -> Samples:
    """The rows whose quality changed most; of equal ones some, drawn by their text, since files are often sorted."""
    known = [each for each in evaluation.predictions if each.before is not None]
    gained = _ordered([each for each in known if _change(each) > 0], lambda each: -_change(each))
    lost = _ordered([each for each in known if _change(each) < 0], _change)
    wrong = _ordered(
        [each for each in evaluation.predictions if each.after.quality < _RIGHT and each not in lost[:NUM_SHOWN]],
        lambda each: (each.after.quality, -(each.after.confidence or 0.0)),
    )
    num_wrong = sum(each.after.quality < _RIGHT for each in evaluation.predictions)
    return Samples(_first(gained), _first(lost), _first(wrong), len(gained), len(lost), num_wrong)


def _change(prediction: Prediction) -> float:
    return prediction.after.quality - (prediction.before.quality if prediction.before else 0.0)


def _first(rows: Sequence[Prediction]) -> tuple[Prediction, ...]:
    return tuple(rows[:NUM_SHOWN])


def _ordered(rows: Sequence[Prediction], key: Callable[[Prediction], object]) -> list[Prediction]:
    return sorted(rows, key=lambda each: (key(each), sha256(each.input.encode(errors="replace")).digest()))
