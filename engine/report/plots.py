"""Plots as SVG that takes the page's colours, so that one picture serves a light and a dark page.

matplotlib draws in placeholder colours, which become CSS variables. No text of a user is drawn here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from engine.report.html import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Placeholders: no other colour of a picture has these values.
INK, GRID, FIRST, SECOND, GOOD, BAD = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_VARIABLES = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
}
# Inches, of 96 pixels.
_SIZE = (4.6, 3.0)
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one line. The first line is drawn dashed with circles, the second solid with squares."""

    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class Point:
    """A point with the interval of its y."""

    x: float
    y: float
    interval: tuple[float, float] | None = None
    is_marked: bool = False


def check_plotter() -> None:
    """Raises: ConfigError naming the extra where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the report's plots need matplotlib, which is not installed. Run pip install 'switchyard[tune]'."
        ) from None


def plot_lines(
    first: Line | None,
    second: Line | None,
    *,
    x_label: str,
    y_label: str,
    kept: tuple[float, float] | None = None,
    fill: bool = False,
    log_x: bool = False,
    whole_x: bool = True,
    name: str,
) -> Html:
    """One or two lines over the same axis.

    Args:
        kept: a point to mark as the one that was kept.
        fill: shade what lies between both lines.
        log_x: steps of x are factors; every x of `second` gets a tick.
        whole_x: ticks of x are whole numbers.
        name: unique on the page; begins the ids of the picture.
    """

    def draw(axes: Axes) -> None:
        for line, colour, marker, dash in ((first, FIRST, "o", "--"), (second, SECOND, "s", "-")):
            if line is not None:
                axes.plot(line.xs, line.ys, color=colour, marker=marker, linestyle=dash, zorder=3)
        if fill and first is not None and second is not None:
            axes.fill_between(first.xs, first.ys, second.ys, color=SECOND, alpha=0.1, linewidth=0)
        if kept is not None:
            axes.axvline(kept[0], color=INK, linewidth=0.9, linestyle=":")
            axes.plot([kept[0]], [kept[1]], marker="o", markersize=10, markerfacecolor="none", color=INK, zorder=4)
        if log_x and second is not None:
            axes.set_xscale("log")
            axes.set_xticks(list(second.xs), [f"{x:,.0f}" for x in second.xs])
            axes.minorticks_off()
        elif whole_x:
            axes.locator_params(axis="x", integer=True)
        axes.set_xlabel(x_label)
        # A font may lack other characters.
        axes.set_ylabel("".join(each for each in y_label if each.isascii() and each.isprintable()))

    return draw_svg(draw, _SIZE, name)


def plot_points(points: Sequence[Point], *, x_label: str, y_label: str, name: str) -> Html:
    """Points from 0 on with their intervals, each beside its number, from 1. The marked one is filled."""

    def draw(axes: Axes) -> None:
        for number, point in enumerate(points, start=1):
            if point.interval is not None:
                low, high = point.interval
                axes.plot([point.x, point.x], [low, high], color=GRID, linewidth=2.2, zorder=2)
            axes.plot(
                [point.x],
                [point.y],
                marker="o",
                markersize=7,
                color=SECOND,
                markerfacecolor=SECOND if point.is_marked else "none",
                markeredgewidth=1.6,
                zorder=3,
            )
            # Numbers of points at one place stand above and below.
            beside = (6, 5) if number % 2 else (6, -11)
            axes.annotate(str(number), (point.x, point.y), beside, textcoords="offset points", color=INK)
        axes.set_xlim(0, max(point.x for point in points) * 1.1 or 1)
        highest = max(max(point.y, *(point.interval or (0,))) for point in points)
        axes.set_ylim(-0.05 * (highest or 1), 1.1 * highest or 1)
        axes.set(xlabel=x_label, ylabel=y_label)

    return draw_svg(draw, _SIZE, name)


def plot_reliability(
    before: Line | None, after: Line | None, *, name: str, y_label: str = "share that is right"
) -> Html:
    """Share of right answers over confidence; the diagonal is what it should be."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=":")
        for line, colour, marker, dash in ((before, FIRST, "o", "--"), (after, SECOND, "s", "-")):
            if line is not None:
                axes.plot(line.xs, line.ys, color=colour, marker=marker, linestyle=dash, zorder=3)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal", xlabel="confidence", ylabel=y_label)

    return draw_svg(draw, (3.4, 3.2), name)


def draw_svg(draw: Callable[[Axes], None], size: tuple[float, float], name: str) -> Html:
    """What `draw` draws in the placeholder colours; `size` is in inches, `name` unique on the page."""
    check_plotter()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        picture = Figure(figsize=size, layout="constrained")
        picture.patch.set_visible(False)
        axes = picture.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        written = StringIO()
        picture.savefig(written, format="svg", metadata={"Date": None})
    return _embedded(written.getvalue(), name, size[0])


def _embedded(svg: str, name: str, width: float) -> Html:
    """The SVG element alone, sized by the page, in its colours and with ids of its own."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # A fifth larger than drawn at most, so that all pictures have letters of like size.
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', rf'\1 style="max-width: {115 * width:.0f}px"', svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "system-ui, sans-serif", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    return Html(svg.strip())
