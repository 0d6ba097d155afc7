"""The sections of a router's report."""

from __future__ import annotations

from engine.evaluation.figures import Estimate, Evaluation, Overhead, RoutedFigures
from engine.evaluation.intervals import Interval
from engine.evaluation.table import DISCORDANT
from engine.evaluation.verdict import below_single, counted_value
from engine.report.html import Html, figure, legend, section, table, tag
from engine.report.plots import Line, plot_lines, plot_reliability
from engine.report.wording import percent, signed


def rivals_section(evaluation: Evaluation, figures: RoutedFigures) -> Html:
    """The route beside simpler ones, and beside the best that could be."""
    rows = [
        (each.name, f"{each.routed:.3f}", f"{each.other:.3f}", signed(each.difference), _signed(each.interval))
        for each in figures.comparisons
    ]
    not_run = [tag("p", f"{name} was not run: {why}.", class_="soft") for name, why in evaluation.not_run.items()]
    header = ("against", "as routed", "other", "difference", "95 % interval")
    caption = f"{counted_value(evaluation.objective).capitalize()}, question by question (bootstrap over groups)"
    bounds = [
        ("as routed", *_estimate(figures.quality)),
        ("the best arm each time", *_estimate(figures.oracle)),
        ("lost against it", *_estimate(figures.regret)),
    ]
    if figures.headroom is not None:
        bounds.append(("share of the possible gain that is captured", *_estimate(figures.headroom)))
    note = (
        "The best arm each time is chosen after the fact and so profits from chance: no route reaches it. "
        "Arms drawn at random are drawn as often as the route takes them. Under a budget of passages all others are "
        "held to the share that the route uses."
    )
    return section(
        "rivals",
        "Beside simpler ways",
        table(caption, header, rows),
        not_run,
        table("What could be had", ("", "quality", "95 % interval"), bounds),
        tag("p", note, class_="soft"),
    )


def arms_section(evaluation: Evaluation) -> Html:
    """Every arm by itself."""
    rows = [
        (
            each.name,
            f"{each.quality.value:.3f}",
            _plain(each.quality.interval),
            percent(each.refused),
            f"{each.mean_ms:,.0f}",
            f"{each.p50_ms:,.0f}",
            f"{each.p95_ms:,.0f}",
            "" if each.tokens is None else f"{each.tokens:,.0f}",
            percent(each.best_rate),
            percent(each.chosen),
        )
        for each in evaluation.arms
    ]
    header = (
        *("arm", "quality", "95 % interval", "refused", "mean ms", "median ms", "p95 ms", "tokens"),
        *("none better", "routed to"),
    )
    return section("arms", "The arms alone", table("Every arm on every question", header, rows))


def cost_section(figures: RoutedFigures) -> Html:
    """Quality over the share of questions with passages and over latency."""
    pictures = []
    if (curve := figures.curve) is not None:
        first, last = curve.qualities[0], curve.qualities[-1]
        chord = [first + (last - first) * rate for rate in curve.context_rates]
        low, high = min(curve.qualities), max(curve.qualities)
        pictures.append(
            figure(
                plot_lines(
                    Line(curve.context_rates, chord),
                    Line(curve.context_rates, curve.qualities),
                    x_label="share of questions with passages",
                    y_label="quality",
                    kept=(figures.context_rate, figures.quality.value),
                    fill=True,
                    whole_x=False,
                    name="context",
                ),
                f"Quality over the share of questions with passages: from {curve.qualities[0]:.3f} without any to "
                f"{curve.qualities[-1]:.3f} with passages for all, between {low:.3f} and {high:.3f}.",
                f"Mean height above arms drawn at random: {curve.area.value:+.3f} ({_plain(curve.area.interval)}).",
                legend(("first", "drawn at random"), ("second", "learned order"), ("kept", "this router")),
            )
        )
    priced = [each for each in figures.frontier if each.price is not None]
    if len(priced) > 1:
        alone = sorted((each.mean_ms, each.quality) for each in figures.frontier if each.name.startswith("always "))
        pictures.append(
            figure(
                plot_lines(
                    Line(*zip(*alone, strict=True)),
                    Line([each.mean_ms for each in priced], [each.quality for each in priced]),
                    x_label="mean latency (ms)",
                    y_label="quality",
                    kept=(figures.mean_ms, figures.quality.value),
                    whole_x=False,
                    name="latency",
                ),
                f"Quality over mean latency, from {priced[-1].mean_ms:.0f} to {priced[0].mean_ms:.0f} ms.",
                None,
                legend(("first", "single arms"), ("second", "at a price of latency"), ("kept", "this router")),
            )
        )
    rows = [
        (
            each.name,
            f"{each.context_rate:.0%}",
            f"{each.quality:.3f}",
            _plain(None if each.low is None or each.high is None else (each.low, each.high)),
            f"{each.mean_ms:,.0f}",
            f"{each.p50_ms:,.0f}",
            f"{each.p95_ms:,.0f}",
            "" if each.tokens is None else f"{each.tokens:,.0f}",
        )
        for each in figures.frontier
    ]
    header = ("", "passages", "quality", "95 % interval", "mean ms", "median ms", "p95 ms", "tokens")
    caption = "Operating points, by what a second of latency may cost in quality"
    return section("costs", "Quality and its cost", tag("div", pictures, class_="plots"), table(caption, header, rows))


def order_section(figures: RoutedFigures) -> Html:
    """How well it tells which arm is better, over all questions and within sources."""
    rows = [
        (
            f"{each.first} | {each.second}",
            f"{each.num_rows:,}",
            "one side only" if each.auroc is None else f"{each.auroc:.3f}",
            _plain(each.interval),
            "" if each.within is None else f"{each.within:.3f}",
            f"{each.num_sources:,}",
        )
        for each in figures.pairs
    ]
    zones = figures.zones
    best = (
        ""
        if zones.best_of_differ is None
        else f" Where they differ, a best arm is taken on {zones.best_of_differ:.0%}."
    )
    said = (
        f"The arms differ by {DISCORDANT:g} or more on {zones.differ:.0%} of the questions; on {zones.all_good:.0%} "
        f"all are good, on {zones.all_poor:.0%} all are poor.{best}"
    )
    caption = "AUROC of the expected gain where the arms differ: 0.5 is chance, 1 is a perfect order"
    header = ("arms", "questions", "AUROC", "95 % interval", "within sources", "sources")
    return section("order", "Telling the arms apart", tag("p", said), table(caption, header, rows))


def sureness_section(figures: RoutedFigures) -> Html:
    """Expected quality against quality, and confidence against its truth."""
    rows = [
        (
            each.arm,
            f"{each.ece_before:.3f}",
            f"{each.ece_after:.3f}",
            f"{each.brier_before:.3f}",
            f"{each.brier_after:.3f}",
        )
        for each in figures.calibration
    ]
    header = ("arm", "error before", "error after", "Brier before", "Brier after")
    caption = "Expected quality before and after calibration (10 bins of equal counts; lower is better)"
    found = figures.reliability
    picture = figure(
        plot_reliability(
            None, Line(found.confidence, found.share), name="confidence", y_label="share that no arm bettered"
        ),
        "Share of questions that no other arm answered better, over confidence: "
        + ", ".join(f"{share:.2f} at {sure:.2f}" for sure, share in zip(found.confidence, found.share, strict=True)),
        f"Calibration error of the confidence {found.ece:.3f}, Brier score {found.brier:.3f}.",
    )
    return section("sureness", "How sure it is", tag("div", picture, class_="plots"), table(caption, header, rows))


def sources_section(figures: RoutedFigures) -> Html:
    """Each source by itself."""
    rows = [
        (
            each.source,
            f"{each.num_rows:,}",
            tag("span", each.best_arm),
            f"{each.best_arm_quality:.3f}",
            f"{each.single:.3f}",
            f"{each.routed:.3f}",
            signed(each.difference),
            _signed(each.gain),
            f"{each.oracle:.3f}",
            f"{each.context_rate:.0%}",
        )
        for each in figures.sources
    ]
    header = (
        *("source", "questions", "best arm", "its quality", "best single arm", "as routed"),
        *("difference", "95 % interval", "best each time", "passages"),
    )
    said = below_single(figures.sources)
    return section(
        "sources",
        "Source by source",
        tag("p", f"{said[0].upper()}{said[1:]}."),
        table("Quality in each source", header, rows),
    )


def overhead_wording(found: Overhead) -> str:
    """What deciding costs."""
    return (
        f"{found.p50_ms:.2f} ms (95th percentile {found.p95_ms:.2f}) alone, "
        f"{found.batched_ms:.3f} ms each of {found.batch} at once"
    )


def made_section(evaluation: Evaluation) -> Html:
    """What the figures rest on."""
    how = (
        "Each question was routed by a router that was fitted without it and without those of its group: five folds, "
        "of which one is tested, prices and kinds are found on the next one, and three are fitted to."
        if evaluation.is_crossfitted
        else "The router had seen none of these questions."
    )
    objective = evaluation.objective
    limits = [
        None if objective.max_p95_ms is None else f"95th percentile of latency within {objective.max_p95_ms:g} ms",
        f"at most {objective.epsilon:g} of quality lost" if objective.name == "latency" else None,
        None if objective.budget is None else f"passages for at most {objective.budget:.0%}",
    ]
    rows = [
        ("objective", "; ".join([objective.name, *filter(None, limits)])),
        ("best single arm", evaluation.best_arm),
        ("questions", f"{evaluation.num_questions:,}"),
        ("sources", f"{evaluation.num_sources:,}"),
        ("where the arms differ", f"{evaluation.num_discordant:,}"),
        ("groups", f"{evaluation.num_groups:,}"),
        ("left out: an arm has no answer", f"{evaluation.num_left_out:,}"),
        ("left out: trained on", f"{evaluation.num_seen:,}"),
    ]
    if evaluation.heads:
        rows.append(("heads", evaluation.heads))
    if evaluation.overhead is not None:
        rows.append(("a decision from signals", overhead_wording(evaluation.overhead)))
    alike = (
        "Means, shares and percentiles over all questions count each source alike: a mean is the mean of the sources' "
        "means, in every draw of a bootstrap too. AUROC and calibration count each question alike."
        if evaluation.num_sources > 1
        else ""
    )
    said = [tag("p", each) for each in (how, alike) if each]
    return section("made", "How it was measured", said, table("The evaluation", ("", ""), rows, numeric=False))


def _estimate(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.value:.3f}", _plain(estimate.interval)


def _plain(interval: Interval | None) -> str:
    return "too few" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}".replace("-", "−")


def _signed(interval: Interval | None) -> str:
    return "too few" if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"
