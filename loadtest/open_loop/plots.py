"""Plots of an open-loop run: latency over throughput, goodput over what was offered, the run second by second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from engine.report.html import Html, figure, tag
from engine.report.series import MAX_SERIES, Series, plot_series, series_legend
from loadtest.measures import Slo, percentile
from loadtest.open_loop.request_log import Request
from loadtest.open_loop.run import Happening
from loadtest.open_loop.summary import PERCENTS, PartFigures

# So many points are drawn of a timeline at most; a point stands for a second at least.
_MAX_BINS = 120


def latency_plots(parts: Sequence[PartFigures]) -> list[Html]:
    """TTFT and whole latency of streams, one point for each part. Empty where fewer than two parts have any."""
    drawn = []
    of_measure: tuple[tuple[str, str, Callable[[PartFigures], list[float]]], ...] = (
        ("TTFT", "first token of streams", PartFigures.ttfts_ms),
        ("E2E", "whole streams", PartFigures.e2es_ms),
    )
    for name, words, values in of_measure:
        known = [(part.answered_s, values(part)) for part in parts if values(part)]
        if len(known) < 2:
            continue
        lines = [
            Series(f"p{percent}", [x for x, _ in known], [percentile(ms, percent) for _, ms in known])
            for percent in PERCENTS
        ]
        picture = plot_series(
            lines, x_label="answers/s", y_label=f"{name} (ms)", log_y=True, name=f"latency-{name.lower()}"
        )
        label = f"{name} in milliseconds over answers per second, one point for each part of the run"
        drawn.append(figure(picture, label, f"{name}: {words}, from when they were due.", series_legend(lines)))
    return drawn


def goodput_plot(parts: Sequence[PartFigures], knee: int | None) -> Html | None:
    """Goodput over what was offered. None where there is one part only."""
    if len(parts) < 2:
        return None
    in_order = sorted(parts, key=lambda part: part.offered_s)
    offered = [part.offered_s for part in in_order]
    lines = [
        Series("answered within the objective", offered, [part.goodput_s for part in in_order]),
        Series("answered meanwhile", offered, [part.answered_s for part in in_order]),
    ]
    picture = plot_series(
        lines,
        x_label="offered requests/s",
        y_label="requests/s",
        marked_x=None if knee is None else parts[knee].offered_s,
        with_diagonal=True,
        name="goodput",
    )
    more = [] if knee is None else [("kept", f"the knee, {parts[knee].rate_s:g}/s")]
    caption = "On the thin diagonal everything that was offered would be answered at once."
    return figure(picture, "Requests answered over requests offered", caption, series_legend(lines, *more))


def timeline_plots(
    requests: Sequence[Request], slo: Slo, duration_s: float, happenings: Sequence[Happening]
) -> list[Html]:
    """Rates and first tokens over the time at which requests were due; events stand at their numbers."""
    width_s = max(1.0, math.ceil(duration_s / _MAX_BINS))
    bins: list[list[Request]] = [[] for _ in range(max(1, math.ceil(duration_s / width_s)))]
    for each in requests:
        bins[min(int(each.intended_s / width_s), len(bins) - 1)].append(each)
    middles = [(number + 0.5) * width_s for number in range(len(bins))]

    def rate(counted: Callable[[Request], bool]) -> list[float]:
        return [sum(map(counted, each)) / width_s for each in bins]

    rates = [
        Series("due", middles, rate(lambda each: True)),
        Series("rejected", middles, rate(lambda each: each.ending == "rejected")),
        Series("answered within the objective", middles, rate(lambda each: each.keeps(slo))),
        Series(
            "failed, cut off or not sent",
            middles,
            rate(lambda each: each.ending in ("failed", "cut off", "not sent")),
        ),
    ]
    moments = [each.at_s for each in happenings]
    seconds = "second of the run" if width_s == 1 else f"second of the run, in bins of {width_s:g} s"
    picture = plot_series(
        rates,
        x_label=seconds,
        y_label="requests/s",
        moments=moments,
        with_markers=False,
        is_wide=True,
        name="rates",
    )
    drawn = [figure(picture, "Requests per second over the run", None, series_legend(rates), scrolls_as="Rates")]
    tokens = [(x, ms) for x, each in zip(middles, bins, strict=True) if (ms := _ttfts_ms(each))]
    if len(tokens) > 1:
        lines = [
            Series(f"TTFT p{percent}", [x for x, _ in tokens], [percentile(ms, percent) for _, ms in tokens])
            for percent in (50, 95)
        ]
        picture = plot_series(
            lines,
            x_label=seconds,
            y_label="TTFT (ms)",
            moments=moments,
            with_markers=False,
            log_y=True,
            is_wide=True,
            name="first-tokens",
        )
        label = "Time to first token over the run, in milliseconds"
        drawn.append(figure(picture, label, None, series_legend(lines), scrolls_as="First tokens"))
    return drawn


def _ttfts_ms(requests: Iterable[Request]) -> list[float]:
    return [1000 * each.ttft_s for each in requests if each.ending == "complete" and each.ttft_s is not None]


def distribution_plots(found: dict[tuple[str, str], list[float]]) -> Html | None:
    """The share of answers within a time, one picture for each of TTFT, ITL and TPOT, one line for each route."""
    drawn = []
    for measure in ("TTFT", "ITL", "TPOT"):
        routes = [(route, sorted(values)) for (name, route), values in found.items() if name == measure]
        # Those with most answers where there are more routes than lines.
        routes = sorted(routes, key=lambda each: -len(each[1]))[:MAX_SERIES]
        if not routes:
            continue
        lines = [
            Series(route, values, [(place + 1) / len(values) for place in range(len(values))])
            for route, values in routes
        ]
        picture = plot_series(
            lines,
            x_label=f"{measure} (ms)",
            y_label="share of answers",
            log_x=True,
            with_markers=False,
            name=f"share-{measure.lower()}",
        )
        drawn.append(figure(picture, f"Share of answers by {measure}, for each route", None, series_legend(lines)))
    return tag("div", drawn, class_="plots") if drawn else None
