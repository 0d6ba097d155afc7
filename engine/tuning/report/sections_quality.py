"""How good the adapter is: against other models, by slice, by label, by confidence, and in examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from engine.report.html import Html, figure, legend, named, quoted, section, table, tag
from engine.report.plots import Line, plot_reliability
from engine.report.wording import counted, duration, metric_name, signed
from engine.tuning.outcome import Answer, Evaluation, Metrics, Outcome, Prediction
from engine.tuning.report.confusion import Confusion, LabelScore, confusion_of
from engine.tuning.report.judgement import Judgement
from engine.tuning.report.matrix import MAX_LABELS, matrix, shown_labels
from engine.tuning.report.reliability import Reliability, reliability_of
from engine.tuning.report.samples import NUM_SHOWN, samples_of
from engine.tuning.report.wording import metric_order

_FEW_LABELS = 15
_NUM_PAIRS = 12
_SLICES = {"all": "all rows", "exceptions": "exceptions", "others": "other rows"}


def models_section(outcome: Outcome, judgement: Judgement) -> Html:
    """Every model on the rows of each evaluation, and the differences with their intervals."""
    tables = [_models(outcome, each) for each in outcome.evaluations if each.slices]
    differences = [
        (
            each.name,
            f"{each.num_rows:,}",
            f"{each.adapter:.3f}",
            f"{each.other:.3f}",
            signed(each.difference),
            "too few rows" if each.low is None or each.high is None else f"{signed(each.low)} to {signed(each.high)}",
        )
        for each in judgement.comparisons
    ]
    header = ("against", "rows", "adapter", "other", "difference", "95 % interval")
    caption = f"Differences in {metric_name(outcome.metric)}, row by row (paired bootstrap)"
    return section(
        "models", "Beside other models", tables, table(caption, header, differences) if differences else None
    )


def _models(outcome: Outcome, evaluation: Evaluation) -> Html:
    whole = evaluation.whole
    models: list[tuple[str, Metrics, str]] = [("adapter", whole.after, duration(60 * outcome.run.minutes))]
    if whole.before:
        models.append(("base model", whole.before, ""))
    for each in outcome.baselines:
        if each.metrics.get(evaluation.name):
            models.append((each.name, each.metrics[evaluation.name], duration(each.seconds)))
    names = metric_order(outcome.metric, [metrics for _, metrics, _ in models])
    rows = [
        (name, *(f"{metrics[key]:.3f}" if key in metrics else "" for key in names), trained)
        for name, metrics, trained in models
    ]
    what = "held out of the data" if evaluation.name == "validation" else f"of {PurePath(evaluation.source).name}"
    caption = f"{evaluation.name.capitalize()}: {counted(whole.num_rows, 'row')} {what}"
    if evaluation.num_predicted < whole.num_rows:
        caption += f", of which {evaluation.num_predicted:,} were answered"
    return table(caption, ("model", *map(metric_name, names), "trained in"), rows)


def slices_section(outcome: Outcome) -> Html | None:
    """Exceptions apart from the other rows; None where there are none."""
    tables = []
    for evaluation in outcome.evaluations:
        if len(evaluation.slices) < 2:
            continue
        slices = evaluation.slices
        names = metric_order(outcome.metric, [each.after for each in slices])
        rows: list[tuple[str, ...]] = []
        for each in slices:
            for who, metrics in (("adapter", each.after), ("base model", each.before)):
                if metrics:
                    values = (f"{metrics[key]:.3f}" if key in metrics else "" for key in names)
                    rows.append((f"{_SLICES[each.name]}, {who}", f"{each.num_rows:,}", *values))
        tables.append(table(evaluation.name.capitalize(), ("", "rows", *map(metric_name, names)), rows))
    if not tables:
        return None
    source = "" if outcome.exceptions_source is None else f" of {outcome.exceptions_source}"
    said = (
        f"{counted(outcome.num_exceptions, 'row')}{source} were trained on, each {outcome.exceptions_factor} times. "
        "What else the adapter does is worth little where it fails on these."
    )
    return section("exceptions", "Exceptions", tag("p", said), tables)


def labels_sections(outcome: Outcome, evaluation: Evaluation) -> list[Html]:
    """Confusion matrix and scores of every label; nothing for other tasks."""
    if outcome.task != "classify":
        return []
    confusion = confusion_of(evaluation)
    if not confusion.labels:
        return []
    return [_confusion_section(confusion, evaluation), _scores_section(confusion)]


def _confusion_section(confusion: Confusion, evaluation: Evaluation) -> Html:
    confused, rows_of = confusion.confused, confusion.rows_of
    num_wrong = sum(count for _, count in confused)
    pairs = [
        (named(true), named(said), f"{count:,} / {rows_of[true]:,}") for (true, said), count in confused[:_NUM_PAIRS]
    ]
    shown = len(shown_labels(confusion))
    cut = "" if shown == len(confusion.labels) else f" Shown are the {MAX_LABELS} labels with the most mistakes."
    label = f"Confusion matrix of {shown} labels; the most frequent confusions are in the table beside it."
    caption = "Rows are true labels, columns what the adapter said. Blue is right, red is wrong." + cut
    beside = table("Most frequent confusions", ("true label", tag("span", "taken for"), "rows"), pairs)
    picture = figure(matrix(confusion), label, caption, scrolls_as="Confusion matrix")
    return section(
        "confusion",
        "What is taken for what",
        tag("p", f"{num_wrong:,} of {counted(len(evaluation.predictions), f'{evaluation.name} row')} are wrong."),
        tag("div", picture, beside if pairs else None, class_="beside"),
    )


def _scores_section(confusion: Confusion) -> Html:
    scores = confusion.scores()
    header = ("label", "F1", "precision", "recall", "rows", "said", tag("span", "mostly mistaken for"))
    parts = [
        table(
            "Every label, the worst first" if len(scores) <= _FEW_LABELS else f"The {_FEW_LABELS} worst labels",
            header,
            map(_score, scores[:_FEW_LABELS]),
        )
    ]
    if len(scores) > _FEW_LABELS:
        rest = table("The other labels", header, map(_score, scores[_FEW_LABELS:]))
        parts.append(tag("details", tag("summary", f"The other {len(scores) - _FEW_LABELS} labels"), rest))
    return section("labels", "Label by label", parts)


def _score(score: LabelScore) -> Sequence[Html | str]:
    return (
        named(score.label),
        f"{score.f1:.3f}",
        f"{score.precision:.3f}",
        f"{score.recall:.3f}",
        f"{score.num_rows:,}",
        f"{score.num_said:,}",
        "" if score.mistaken_for is None else named(score.mistaken_for),
    )


def calibration_section(outcome: Outcome, evaluation: Evaluation) -> Html | None:
    """Whether probabilities mean what they say, before and after the temperature; None where there are none."""
    before = reliability_of(evaluation, is_calibrated=False)
    after = reliability_of(evaluation, is_calibrated=True)
    fitted = outcome.calibration
    if before is None and fitted is None:
        return None
    rows: list[tuple[str, ...]] = []
    if fitted is not None:
        where = f"validation ({fitted.num_rows:,} rows, fitted on)"
        rows.append((f"calibration error, {where}", f"{fitted.ece_before:.3f}", f"{fitted.ece_after:.3f}"))
        rows.append((f"loss in nats, {where}", f"{fitted.loss_before:.3f}", f"{fitted.loss_after:.3f}"))
    if before is not None and (evaluation.name != "validation" or fitted is None):
        error = "" if after is None else f"{after.error:.3f}"
        rows.append(
            (
                f"calibration error, {evaluation.name} ({len(evaluation.predictions):,} rows)",
                f"{before.error:.3f}",
                error,
            )
        )
    picture = None
    if before is not None:
        label = f"Share of right answers over confidence on {evaluation.name} rows: {_points(before)}"
        label += "." if after is None else f"; after the temperature {_points(after)}."
        picture = figure(
            plot_reliability(_line(before), _line(after), name="reliability"),
            label,
            f"{evaluation.name.capitalize()} rows in groups of equal size. Below the dotted line it is too sure.",
            legend(("first", "before"), *([("second", "after the temperature")] if after is not None else [])),
        )
    said = (
        "No temperature was fitted."
        if fitted is None
        else f"Log-probabilities of labels are divided by the temperature {fitted.temperature:.3f}, which is stored "
        "with the adapter. It changes no answer, only how sure it is."
    )
    figures = table("Lower is better", ("", "before", "after"), rows) if rows else None
    return section("calibration", "How sure it is", tag("p", said), tag("div", picture, figures, class_="plots"))


def _line(reliability: Reliability | None) -> Line | None:
    return None if reliability is None else Line(reliability.confidences, reliability.shares)


def _points(reliability: Reliability) -> str:
    pairs = zip(reliability.confidences, reliability.shares, strict=True)
    return ", ".join(f"{sure:.2f}: {share:.2f}" for sure, share in pairs)


def samples_section(evaluation: Evaluation) -> Html:
    """Rows that changed and rows that are wrong."""
    found = samples_of(evaluation)
    parts: list[Html] = []
    for title, rows, number in (
        ("Better than the base model", found.gained, found.num_gained),
        ("Worse than the base model", found.lost, found.num_lost),
        ("Still wrong", found.wrong, found.num_wrong),
    ):
        if rows:
            count = f" ({number:,})" if number <= NUM_SHOWN else f" ({len(rows)} of {number:,})"
            parts.append(tag("h3", title, count))
            parts.append(tag("div", map(_sample, rows), class_="samples"))
    return section("samples", "Before and after", parts or tag("p", "No row changed, and none is wrong."))


def _sample(prediction: Prediction) -> Html:
    lines: list[tuple[str, Html]] = [("right", _targets(prediction.targets))]
    if prediction.before is not None:
        lines.append(("before", _answer(prediction.before)))
    lines.append(("after", _answer(prediction.after)))
    listed = [(tag("dt", name), tag("dd", text)) for name, text in lines]
    where = f"line {prediction.line}" + (", an exception" if prediction.is_exception else "")
    return tag(
        "div",
        tag("p", quoted(prediction.input)),
        tag("dl", [part for pair in listed for part in pair]),
        tag("span", where, class_="soft"),
        class_="sample",
    )


def _targets(targets: Sequence[str]) -> Html:
    if not targets:
        return Html("<i>not in the documents</i>")
    more = f" (or {len(targets) - 1} more)" if len(targets) > 1 else ""
    return tag("span", quoted(targets[0]), more)


def _answer(answer: Answer) -> Html:
    sure = answer.confidence if answer.calibrated is None else answer.calibrated
    score = f" ({sure:.2f})" if sure is not None else f" (score {answer.quality:.2f})"
    return tag("span", quoted(answer.text), tag("span", score, class_="soft"))
