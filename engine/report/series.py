"""Several lines over one axis, told apart by colour, dash and marker, with moments marked by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engine.report.html import Html, legend
from engine.report.plots import BAD, FIRST, GOOD, GRID, INK, SECOND, draw_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Class of the legend, colour, dash and marker, in the order in which lines take them.
_LOOKS = (
    ("second", SECOND, "-", "s"),
    ("first", FIRST, "--", "o"),
    ("third", GOOD, "-.", "^"),
    ("fourth", BAD, ":", "v"),
)
MAX_SERIES = len(_LOOKS)
# An axis is logarithmic where its values span at least this factor.
_LEAST_FACTOR = 5


@dataclass(frozen=True, slots=True)
class Series:
    """A line and the words that its legend has for it."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def plot_series(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    name: str,
    moments: Sequence[float] = (),
    spans: Sequence[tuple[float, float]] = (),
    marked_x: float | None = None,
    with_diagonal: bool = False,
    with_markers: bool = True,
    log_y: bool = False,
    log_x: bool = False,
    is_wide: bool = False,
) -> Html:
    """At most MAX_SERIES lines, from 0 on where an axis is not logarithmic.

    `log_x` and `log_y` make steps of an axis factors, where its values differ enough for that.

    Args:
        moments: values of x with a line and a number, from 1.
        spans: stretches of x that are shaded.
        marked_x: one value of x with a line of its own.
        with_diagonal: a thin line where y is x.
        name: unique on the page; begins the ids of the picture.
    Raises: ValueError for more lines than can be told apart.
    """
    if len(series) > MAX_SERIES:
        raise ValueError(f"{len(series)} lines cannot be told apart; at most {MAX_SERIES}")

    def draw(axes: Axes) -> None:
        for low, high in spans:
            axes.axvspan(low, high, color=GRID, alpha=0.35, linewidth=0)
        for line, (_, colour, dash, marker) in zip(series, _LOOKS, strict=False):
            shown = marker if with_markers else None
            axes.plot(line.xs, line.ys, color=colour, linestyle=dash, marker=shown, zorder=3)
        if with_diagonal:
            most = max((max(line.xs, default=0.0) for line in series), default=0.0)
            axes.plot([0, most], [0, most], color=INK, linewidth=0.9, linestyle=":", zorder=2)
        if not (log_x and _made_logarithmic(axes, "x", [x for line in series for x in line.xs])):
            axes.set_xlim(left=0)
        if not (log_y and _made_logarithmic(axes, "y", [y for line in series for y in line.ys])):
            axes.set_ylim(bottom=0)
        for number, x in enumerate(moments, 1):
            axes.axvline(x, color=INK, linewidth=0.9, linestyle="--", zorder=2)
            # Inside of the picture, at its upper edge.
            axes.annotate(str(number), (x, 1), (3, -9), xycoords=("data", "axes fraction"), textcoords="offset points")
        if marked_x is not None:
            axes.axvline(marked_x, color=INK, linewidth=0.9, linestyle=":", zorder=2)
        axes.set(xlabel=x_label, ylabel=y_label)

    return draw_svg(draw, (9.4, 3.0) if is_wide else (4.6, 3.0), name)


def _made_logarithmic(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> bool:
    """Whether the axis became logarithmic; a narrow one would be left without ticks."""
    if not values or min(values) <= 0 or max(values) < _LEAST_FACTOR * min(values):
        return False
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,)))
    # matplotlib's own labels are formulas, which are not drawn here.
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())
    return True


def series_legend(series: Sequence[Series], *more: tuple[str, str]) -> Html:
    """The legend of a `plot_series` with the same lines; `more` are class and words."""
    return legend(*((look[0], each.name) for each, look in zip(series, _LOOKS, strict=False)), *more)
