"""Lines over one axis: told apart, marked, logarithmic only where that can be read."""

from __future__ import annotations

import pytest

from engine.report.series import MAX_SERIES, Series, plot_series, series_legend


def plot(*series, **more):
    return plot_series(series, x_label="requests/s", y_label="ms", name="lines", **more)


def test_each_line_has_a_colour_of_the_page_and_its_name_in_the_legend():
    lines = [Series(f"p{each}", [1, 2], [each, each + 1]) for each in (50, 95, 99, 100)]
    made = plot(*lines)
    for colour in ("first", "second", "good", "bad"):
        assert f"var(--{colour})" in made
    assert "#0102" not in made
    assert series_legend(lines, ("kept", "the knee")).count("<li") == 5


def test_more_lines_than_can_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="5 lines cannot be told apart; at most 4"):
        plot(*[Series("", [1], [1])] * (MAX_SERIES + 1))


def test_steps_are_factors_only_where_values_span_some():
    assert ">10,000<" in plot(Series("", [1, 2], [10, 20_000]), log_y=True)
    narrow = plot(Series("", [1, 2], [34, 42]), log_y=True)
    assert ">40<" in narrow
    # Zero has no logarithm.
    assert plot(Series("", [1, 2], [0, 9_000]), log_y=True)
    assert plot(Series("", [], []), log_x=True, log_y=True)


def test_formulas_of_the_plotter_are_not_drawn_as_text():
    assert "mathdefault" not in plot(Series("", [0.001, 90], [10, 200_000]), log_y=True, log_x=True)


def test_moments_are_numbered_and_no_text_of_a_user_is_drawn():
    made = plot(Series("<b>name</b>", [0, 10], [1, 2]), moments=(2.5, 7.5), marked_x=3, with_diagonal=True)
    assert ">1</text>" in made and ">2</text>" in made
    assert "<b>" not in made
