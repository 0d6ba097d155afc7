"""Signals of embeddings by hand, in two dimensions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.routing.signals.neighbours import PastOutcomes, TrainingNeighbours, adapter_signals, past_signals


def rows(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_nearest_and_the_five_nearest_training_inputs_are_measured():
    trained = TrainingNeighbours(rows(10, 20, 30, 40, 50, 170).astype(np.float16))
    table = adapter_signals(rows(0, 170), {"bot": trained})
    assert table.column("adapter.max_cosine") == pytest.approx([cosine(10), 1.0], abs=1e-3)
    expected = np.mean([cosine(degrees) for degrees in (10, 20, 30, 40, 50)])
    assert table.column("adapter.mean_cosine")[0] == pytest.approx(expected, abs=1e-3)
    assert np.isnan(table.column("adapter.centroid_cosine")).all()


def test_fewer_inputs_than_five_are_averaged_as_they_are():
    table = adapter_signals(rows(0), {"bot": TrainingNeighbours(rows(60, 90))})
    assert table.column("adapter.mean_cosine")[0] == pytest.approx(0.25, abs=1e-6)


def test_a_question_between_two_labels_has_no_margin():
    trained = TrainingNeighbours(rows(0, 20, 80, 100), labels=[3, 3, 7, 7])
    table = adapter_signals(rows(10, 50), {"bot": trained})
    assert table.column("adapter.centroid_cosine") == pytest.approx([1.0, cosine(40)], abs=1e-6)
    assert table.column("adapter.centroid_margin") == pytest.approx([1.0 - cosine(80), 0.0], abs=1e-6)
    single = adapter_signals(rows(0), {"bot": TrainingNeighbours(rows(0, 20), labels=[1, 1])})
    assert single.column("adapter.centroid_cosine")[0] == pytest.approx(cosine(10), abs=1e-6)
    assert np.isnan(single.column("adapter.centroid_margin")).all()


def test_nearest_adapter_is_told_with_its_lead_and_each_by_name():
    adapters = {"news": TrainingNeighbours(rows(90)), "bank": TrainingNeighbours(rows(0))}
    table = adapter_signals(rows(30), adapters)
    assert table.column("adapter.max_cosine")[0] == pytest.approx(cosine(30), abs=1e-6)
    assert table.column("adapter.lead")[0] == pytest.approx(cosine(30) - cosine(60), abs=1e-6)
    assert table.column("adapter.max_cosine.news")[0] == pytest.approx(cosine(60), abs=1e-6)
    assert table.column("adapter.max_cosine.bank")[0] == pytest.approx(cosine(30), abs=1e-6)
    assert table.names == adapter_signals(rows(0), dict(reversed(adapters.items()))).names


def test_without_adapters_the_names_stay_and_nothing_is_known():
    table = adapter_signals(rows(30, 60), {})
    assert "adapter.max_cosine" in table.names and len(table) == 2
    assert np.isnan(table.values).all()


def past(degrees: list[float], quality: list[list[float]], groups: list[str] | None = None) -> PastOutcomes:
    names = tuple(groups or [str(place) for place in range(len(degrees))])
    return PastOutcomes(rows(*degrees), ("base", "base+context"), np.array(quality, dtype=float), names)


def test_past_outcomes_of_the_ten_nearest_are_averaged():
    far = past([*[0] * 10, 90], [*[[1.0, 0.0]] * 5, *[[0.0, 0.5]] * 5, [9.0, 9.0]])
    table = past_signals(rows(0), far)
    assert table.names == ("past.max_cosine", "past.mean_cosine", "past.quality.base", "past.quality.base+context")
    assert table.values[0] == pytest.approx([1.0, 1.0, 0.5, 0.25])


def test_arms_that_were_not_measured_are_left_out_of_the_mean():
    some = past([0, 60], [[1.0, math.nan], [0.0, math.nan]])
    assert past_signals(rows(0), some).rows()[0] == {
        "past.max_cosine": 1.0,
        "past.mean_cosine": pytest.approx(0.75),
        "past.quality.base": 0.5,
        "past.quality.base+context": None,
    }


def test_a_question_does_not_see_the_outcomes_of_its_own_group():
    known = past([0, 0, 60], [[1.0, 1.0], [1.0, 1.0], [0.25, 0.0]], ["a", "a", "b"])
    table = past_signals(rows(0, 0), known, own_groups=["a", "c"])
    assert table.values[0] == pytest.approx([0.5, 0.5, 0.25, 0.0])
    assert table.column("past.max_cosine")[1] == 1.0
    alone = past_signals(rows(0), past([0], [[1.0, 1.0]], ["a"]), own_groups=["a"])
    assert np.isnan(alone.values).all()


def test_ties_go_to_the_earlier_of_the_past_questions():
    tied = past([0] * 12, [[float(place < 10), 0.0] for place in range(12)])
    assert past_signals(rows(0), tied).column("past.quality.base")[0] == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingNeighbours(np.zeros((0, 2), np.float16)), r"\(0, 2\); they must be \[N, E\]"),
        (lambda: TrainingNeighbours(rows(0) * 2), "row 0 has length 2.000"),
        (lambda: TrainingNeighbours(np.full((1, 2), np.nan, np.float16)), "row 0 has length nan"),
        (lambda: TrainingNeighbours(rows(0, 1), labels=[1]), "2 training inputs have 1 labels"),
        (lambda: past([0], [[1.0, 1.0], [0.0, 0.0]]), r"quality \(2, 2\)"),
        (lambda: past_signals(rows(0), past([0], [[1.0, 1.0]]), ["a", "b"]), "1 questions have 2 groups"),
        (lambda: adapter_signals(np.ones((1, 3), np.float32), {"a": TrainingNeighbours(rows(0))}), "has 2 columns"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(st.lists(st.floats(0, 360), min_size=1, max_size=6), st.lists(st.floats(0, 360), min_size=1, max_size=14))
def test_a_batch_gives_what_each_question_gives_alone(asked, trained):
    adapters = {"a": TrainingNeighbours(rows(*trained), labels=[place % 3 for place in range(len(trained))])}
    known = past(list(trained), [[place / 14, 1.0] for place in range(len(trained))])
    together = adapter_signals(rows(*asked), adapters)
    for place, degrees in enumerate(asked):
        alone = adapter_signals(rows(degrees), adapters)
        np.testing.assert_allclose(together.values[place], alone.values[0], atol=1e-6)
        assert past_signals(rows(degrees), known).column("past.max_cosine")[0] == pytest.approx(
            alone.column("adapter.max_cosine")[0], abs=1e-6
        )
    best = together.column("adapter.max_cosine")
    assert (best >= together.column("adapter.mean_cosine") - 1e-6).all()
