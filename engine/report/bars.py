"""Bars with intervals as elements of the page: names of any length wrap beside them, and values stand there too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.report.html import Content, Html, scrolling, tag

_TICKS = 5


@dataclass(frozen=True, slots=True)
class Bar:
    """A value from 0 with its interval, in the colour of `kind`. `name` None: it belongs to the bar above.

    `value` None is not known and draws nothing; `text` says it in figures. `is_marked`: the one that is spoken of.
    """

    name: Content
    value: float | None
    text: str
    interval: tuple[float, float] | None = None
    kind: Literal["first", "second"] = "second"
    is_marked: bool = False


def bar_chart(caption: str, bars: Sequence[Bar], *, most: float = 1.0, name: str = "arm") -> Html:
    """A table of bars from 0 to `most`."""
    rows = [
        tag(
            "tr",
            tag("th", each.name, scope="row"),
            tag("td", _track(each, most), class_="track"),
            tag("td", each.text, class_="value"),
            class_=" ".join(filter(None, ("marked" if each.is_marked else "", "more" if each.name is None else "")))
            or None,
        )
        for each in bars
    ]
    ticks = [
        tag("span", f"{most * place / _TICKS:.2g}", style=f"left:{100 * place / _TICKS:.4g}%")
        for place in range(_TICKS + 1)
    ]
    axis = tag("tr", tag("td"), tag("td", tag("div", ticks, class_="axis"), class_="track"), tag("td"), class_="ticks")
    head = tag("thead", tag("tr", [tag("th", each, scope="col", class_="unseen") for each in (name, "chart", "value")]))
    made = tag("table", tag("caption", caption), head, tag("tbody", rows, axis), class_="bars")
    return scrolling(made, caption)


def _track(bar: Bar, most: float) -> Html:
    parts = []
    if bar.value is not None:
        parts.append(tag("span", class_=f"bar {bar.kind}", style=f"width:{_percent(bar.value, most)}%"))
    if bar.interval is not None:
        low, high = (_percent(each, most) for each in bar.interval)
        parts.append(tag("span", class_="whisker", style=f"left:{low}%;width:{float(high) - float(low):.4g}%"))
    return tag("div", parts, aria_hidden="true")


def _percent(value: float, most: float) -> str:
    return f"{100 * min(max(value / most, 0.0), 1.0):.4g}"
