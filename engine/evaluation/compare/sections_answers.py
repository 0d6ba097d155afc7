"""The later sections of the report: changed documents, how answers read, sources, examples, how it was measured."""

from __future__ import annotations

from engine.evaluation.compare.few_shot import DEFAULT_NUM
from engine.evaluation.compare.figures import Comparison
from engine.evaluation.compare.measuring import Sheet
from engine.evaluation.compare.wording import arm_name, ranked, words
from engine.report.bars import Bar, bar_chart
from engine.report.html import Content, Html, named, quoted, section, table, tag
from engine.report.wording import counted, percent

_NUM_EXAMPLES = 6
_MAX_CHARS = 300


def updates_section(comparison: Comparison) -> Html | None:
    """Which arms answer by a changed document."""
    if not comparison.updates and not comparison.updates_skipped:
        return None
    arms = {each.name: each for each in comparison.arms}
    bars: list[Bar] = []
    rows: list[tuple[Content, ...]] = []
    for each in comparison.updates:
        bars += [
            Bar(arm_name(arms[each.arm]), each.followed / each.num, f"new answer: {each.followed} of {each.num}"),
            Bar(None, each.stale / each.num, f"still the old one: {each.stale}", kind="first"),
        ]
        rows.append(
            (arm_name(arms[each.arm]), f"{each.num}", f"{each.right_before}", f"{each.followed}", f"{each.stale}")
        )
    said = [
        (
            words(each.arm),
            quoted(each.question, _MAX_CHARS),
            quoted(each.said_before, _MAX_CHARS),
            quoted(each.said_after, _MAX_CHARS),
            "followed" if each.followed else "old answer" if each.is_stale else "neither",
        )
        for each in comparison.followed
    ]
    return section(
        "updates",
        "When a document changes",
        tag(
            "p",
            "Each question was asked, its document changed in the knowledge base, and the question asked again; then "
            "the document was put back as it was.",
        ),
        bar_chart("Answers that followed the change, and answers that did not", bars) if bars else None,
        table("Counts", ("arm", "changes", "right before", "followed", "still old"), rows) if rows else None,
        tag(
            "details",
            tag("summary", "What was said"),
            table("Before and after", ("arm", "question", "before", "after", "finding"), said, numeric=False),
        )
        if said
        else None,
        [tag("p", f"Not tried: {each}", class_="soft") for each in comparison.updates_skipped],
    )


def answers_section(comparison: Comparison) -> Html:
    """How answers read and what they rest on."""
    rows = [
        (
            arm_name(each),
            _share(each.grounded),
            percent(each.refused),
            _share(each.valid),
            _share(each.repetition),
            "" if each.distinct_2 is None else f"{each.distinct_2:.3f}",
            percent(each.cut_off),
        )
        for each in ranked(comparison)
    ]
    header = ("arm", "grounded", "refused", "a valid label", "repeated", "distinct-2", "cut off")
    labels = (
        " The base model is asked the question alone and is told no labels; with examples it sees some."
        if comparison.metrics.get("accuracy")
        else ""
    )
    return section(
        "answers",
        "The answers themselves",
        table("Shares of the answers", header, rows),
        tag(
            "p",
            "Grounded: of the content words of answers with passages, the share that the passages hold, which shows "
            "copying, not truth. Repeated: runs of four words that stood in the answer before. Distinct-2: different "
            "pairs of neighbouring words among all pairs of an arm; it falls as answers get longer or more. Cut off: "
            f"at {comparison.setting.max_tokens} tokens.{labels}",
            class_="soft",
        ),
    )


def sources_section(comparison: Comparison) -> Html | None:
    """Quality in each source."""
    if not comparison.sources:
        return None
    names = [each.name for each in ranked(comparison)]
    rows = [
        (quoted(each.source), f"{each.num_rows:,}", *(f"{each.quality[name]:.3f}" for name in names))
        for each in comparison.sources
    ]
    header = ("source", "questions", *(words(name) for name in names))
    return section("sources", "Source by source", table("Mean quality in each source", header, rows))


def differing_section(comparison: Comparison, sheet: Sheet) -> Html | None:
    """Questions on which the arms differ most, with what was said."""
    if len(sheet.contenders) < 2:
        return None
    spread = sheet.quality.max(axis=1) - sheet.quality.min(axis=1)
    # Of equally different ones those that most arms get right come first: it shows where an arm fails.
    order = sorted(
        range(len(sheet.questions)), key=lambda row: (-round(float(spread[row]), 3), -sheet.quality[row].sum())
    )
    shown = [row for row in order if spread[row] > 0][:_NUM_EXAMPLES]
    if not shown:
        return None
    samples = []
    for row in shown:
        question = sheet.questions[row]
        right = question.label if question.label is not None else " | ".join(question.answers)
        said: list[Content] = [tag("dt", "right"), tag("dd", quoted(right, _MAX_CHARS))]
        for column, contender in enumerate(sheet.contenders):
            answer = sheet.answer(contender, question)
            said += [
                tag("dt", named(contender.name)),
                tag(
                    "dd",
                    f"{sheet.quality[row, column]:.2f}  ",
                    quoted(answer.text if answer.error is None else f"failed: {answer.error}", _MAX_CHARS),
                ),
            ]
        samples.append(tag("div", tag("p", quoted(question.question, _MAX_CHARS)), tag("dl", said), class_="sample"))
    return section(
        "differing",
        "Where they differ most",
        tag("p", "Every answer to every question is in per_query.csv, beside this page.", class_="soft"),
        tag("div", samples, class_="samples"),
    )


def made_section(comparison: Comparison) -> Html:
    """What the figures rest on, and what was not measured."""
    setting = comparison.setting
    of = f"{comparison.num_questions:,}"
    if setting.num_in_file != comparison.num_questions:
        of += f", drawn from {setting.num_in_file:,}"
    rows: list[tuple[Content, ...]] = [
        ("base model", quoted(setting.base_model)),
        ("questions", of),
        ("groups", f"{comparison.num_groups:,}"),
        ("collection", quoted(setting.collection)),
        ("decoding", f"greedy, at most {counted(setting.max_tokens, 'token')}"),
        ("at once", counted(setting.num_at_once, "request")),
    ]
    if setting.router is not None:
        rows.append(("router", quoted(setting.router)))
    if setting.few_shot_source is not None:
        rows.append(
            (
                "few-shot",
                quoted(f"{setting.num_few_shot or DEFAULT_NUM} most similar examples of {setting.few_shot_source}"),
            )
        )
    left_out = (
        "Not measured: the perplexity of answers under the base model, which no address of the server gives; agreement "
        "over paraphrases, of which the file has none; the time of building the index, which was there. Decoding "
        "is greedy, so no answer is drawn twice."
    )
    how = (
        "Arms were asked over HTTP, as clients ask, the same questions with the same limits, in an order drawn for "
        "each question, after one answer of each that was thrown away. Intervals are bootstraps over groups."
    )
    return section(
        "made",
        "How it was measured",
        tag("p", how),
        table("The comparison", ("", ""), rows, numeric=False),
        tag("p", left_out, class_="soft"),
    )


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)
