"""Bars: drawn to scale, never beyond the chart, named whatever the name holds."""

from __future__ import annotations

import re

from engine.report.bars import Bar, bar_chart


def widths(markup):
    return [float(each) for each in re.findall(r'class="bar \w+" style="width:([\d.]+)%', markup)]


def test_bars_are_drawn_to_scale_and_never_beyond_the_chart():
    made = bar_chart(
        "Quality", [Bar("a", 0.5, "0.5"), Bar(None, 0.25, "0.25", kind="first"), Bar("c", 3.0, "3")], most=2.0
    )
    assert widths(made) == [25.0, 12.5, 100.0]
    assert 'class="more"' in made and 'class="bar first"' in made


def test_an_interval_lies_around_its_bar_and_an_unknown_value_draws_nothing():
    made = bar_chart("Quality", [Bar("a", 0.5, "0.5", (0.4, 0.7), is_marked=True), Bar("b", None, "none")])
    assert 'class="whisker" style="left:40%;width:30%"' in made
    assert widths(made) == [50.0]
    assert 'class="marked"' in made and ">none<" in made


def test_names_and_values_are_texts():
    made = bar_chart("<i>", [Bar("<b>", 0.1, "<u>")])
    assert "&lt;b&gt;" in made and "&lt;u&gt;" in made and "<b>" not in made
