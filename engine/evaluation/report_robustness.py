"""Robustness to changed questions, in a router's report and in lines for a terminal."""

from __future__ import annotations

from engine.evaluation.changing import KINDS, PARAPHRASES
from engine.evaluation.figures import ChangedFigures, Robustness
from engine.evaluation.verdict import gained
from engine.report.html import Html, section, table, tag
from engine.report.wording import counted, percent, signed

_NOTE = (
    "Each question was asked of the server as it was written and as it was changed, for its signals alone; this router "
    "decided by both. Quality is what the arm chosen then made of the question as it was written, so a difference is "
    "what the other decision costs, and says nothing of how an arm answers the changed text."
)


def robustness_section(found: Robustness) -> Html:
    """What changed texts do to decisions."""
    rows = [
        (
            each.kind,
            f"{each.num_questions:,}",
            percent(each.unchanged.value),
            f"{each.before:.3f}",
            f"{each.after:.3f}",
            signed(each.difference.value),
            _interval(each),
        )
        for each in found.kinds
    ]
    header = (
        *("changed by", "questions", "decided alike", "quality before", "quality after"),
        *("difference", "95 % interval"),
    )
    return section(
        "robustness",
        "The same question, typed otherwise",
        tag("p", f"{_counted(found)} {_NOTE}"),
        table("Decisions for changed questions", header, rows),
        [tag("p", each, class_="soft") for each in _remarks(found)],
    )


def robustness_lines(found: Robustness) -> list[str]:
    """The same for a terminal."""
    lines = [f"  {'changed by':<28} {'questions':>9} {'alike':>7} {'before':>8} {'after':>8}  difference"]
    lines += [
        f"  {each.kind:<28} {each.num_questions:>9,} {each.unchanged.value:>7.1%} {each.before:>8.3f} "
        f"{each.after:>8.3f}  {gained(each.difference)}"
        for each in found.kinds
    ]
    return lines + [f"  {each}" for each in _remarks(found)]


def _counted(found: Robustness) -> str:
    return f"{counted(found.num_questions, 'question')}; typos drawn with seed {found.seed}."


def _remarks(found: Robustness) -> list[str]:
    remarks = [
        f"As they were written, {percent(found.same_as_measured)} are decided as by the signals of the outcomes."
    ]
    if found.num_without_text:
        remarks.append(f"{counted(found.num_without_text, 'question')} left out: the file of questions has no such id.")
    missing = [kind for kind in KINDS if kind not in {each.kind for each in found.kinds}]
    for kind in missing:
        why = "the file of questions has none" if kind == PARAPHRASES else "it changes no text"
        remarks.append(f"Not measured: {kind}; {why}.")
    return remarks


def _interval(each: ChangedFigures) -> str:
    found = each.difference.interval
    return "too few" if found is None else f"{signed(found[0])} to {signed(found[1])}"
