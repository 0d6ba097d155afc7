"""How the training went: curves over its steps, and over the size of the data."""

from __future__ import annotations

from collections.abc import Iterable

from engine.report.html import Html, figure, legend, section, table, tag
from engine.report.plots import Line, plot_lines
from engine.report.wording import duration, metric_name, signed
from engine.tuning.outcome import MAIN_METRIC, Outcome
from engine.tuning.report.judgement import overfitting
from engine.tuning.report.learning import learning_of
from engine.tuning.report.wording import metric_order


def learning_section(outcome: Outcome) -> Html:
    """Loss on both sides, the metric, the kept step and the gap."""
    learning, history = learning_of(outcome.run), outcome.run.history
    if learning is None:
        return section("learning", "Learning curves", tag("p", "The run ended before its first evaluation."))
    kept, metric = learning.kept, metric_name(outcome.metric)
    steps = [point.step for point in history]
    train, valid = Line(steps, [p.train_loss for p in history]), Line(steps, [p.valid_loss for p in history])
    loss = figure(
        plot_lines(
            train,
            valid,
            x_label="step",
            y_label="loss, nats per token",
            kept=(kept.step, kept.valid_loss),
            fill=True,
            name="loss",
        ),
        f"Loss over {len(history)} evaluations: training {train.ys[0]:.3f} to {train.ys[-1]:.3f}, validation "
        f"{valid.ys[0]:.3f} to {valid.ys[-1]:.3f}; kept is step {kept.step}.",
        f"The shaded gap between validation and training loss is {signed(learning.kept_gap)} nats at the kept step and "
        f"{signed(learning.last_gap)} at the last.",
        legend(("first", "training"), ("second", "validation"), ("kept", f"kept: step {kept.step}")),
    )
    measured = [point for point in history if point.metric is not None]
    over_steps = None
    if measured and kept.metric is not None:
        values = [point.metric or 0.0 for point in measured]
        over_steps = figure(
            plot_lines(
                None,
                Line([point.step for point in measured], values),
                x_label="step",
                y_label=metric,
                kept=(kept.step, kept.metric),
                name="metric",
            ),
            f"Validation {metric} over {len(values)} evaluations: {values[0]:.3f} to {values[-1]:.3f}, "
            f"{kept.metric:.3f} at the kept step {kept.step}.",
            f"During training the {metric} is that of a sample of the validation rows where there are many.",
            legend(("second", f"validation {metric}"), ("kept", f"kept: step {kept.step}")),
        )
    found = (
        overfitting(learning)
        if learning.is_overfit
        else "No overfitting was seen: the validation loss did not rise beyond noise."
    )
    rows = [
        (
            f"{point.step:,}{' (kept)' if point.step == kept.step else ''}",
            f"{point.epoch:.2f}",
            f"{point.train_loss:.4f}",
            f"{point.valid_loss:.4f}",
            "" if point.metric is None else f"{point.metric:.3f}",
        )
        for point in history
    ]
    header = ("step", "epoch", "training loss", "validation loss", metric)
    return section(
        "learning",
        "Learning curves",
        tag("p", found),
        tag("div", loss, over_steps, class_="plots"),
        tag(
            "details", tag("summary", "The evaluations as a table"), table("Evaluations during training", header, rows)
        ),
    )


def curve_section(outcome: Outcome) -> Html | None:
    """The metric over the number of training rows, the whole run as its last point; None without --curve."""
    if not outcome.curve:
        return None
    metric, name = MAIN_METRIC[outcome.task], metric_name(MAIN_METRIC[outcome.task])
    points = [(point.num_train, point.metrics, point.minutes, point.num_per_label) for point in outcome.curve]
    validation = outcome.evaluation("validation")
    if validation is not None and outcome.num_train > max(num for num, *_ in points):
        per_label = outcome.num_train / len(outcome.labels) if outcome.labels else None
        points.append((outcome.num_train, validation.whole.after, outcome.run.minutes, per_label))
    points.sort(key=lambda point: point[0])
    sizes, values = [point[0] for point in points], [point[1].get(metric, 0.0) for point in points]
    last = "" if len(values) < 2 else _last_gain(sizes, values, name)
    picture = plot_lines(
        None, Line(sizes, values), x_label="training rows", y_label=f"validation {name}", log_x=True, name="curve"
    )
    label = f"Validation {name} over training rows: " + ", ".join(
        f"{num:,}: {value:.3f}" for num, value in zip(sizes, values, strict=True)
    )
    others = metric_order(metric, [point[1] for point in points])[1:]
    header = ("training rows", *(["per label"] if outcome.labels else []), name, *map(metric_name, others), "time")
    rows: Iterable[tuple[str, ...]] = [
        (
            f"{num:,}",
            *([f"{per_label:,.0f}" if per_label is not None else ""] if outcome.labels else []),
            f"{metrics.get(metric, 0.0):.3f}",
            *(f"{metrics[key]:.3f}" if key in metrics else "" for key in others),
            duration(60 * minutes),
        )
        for num, metrics, minutes, per_label in points
    ]
    return section(
        "curve",
        "More data",
        tag("p", "Trained on subsets of the rows, judged on the same validation rows. ", last),
        figure(picture, label),
        table("The same as a table", header, rows),
    )


def _last_gain(sizes: list[int], values: list[float], name: str) -> str:
    gain = values[-1] - values[-2]
    factor = sizes[-1] / sizes[-2]
    rising = "more rows are likely to help." if gain > 0.01 else "more rows of the same kind are unlikely to help much."
    return f"The last step, {factor:.3g} times the rows, changed {name} by {signed(gain)}: {rising}"
