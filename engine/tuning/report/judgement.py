"""Did it learn? The first thing that a reader is told, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.metrics.bootstrap import MIN_ROWS
from engine.report.document import Tone
from engine.report.wording import counted, duration, metric_name
from engine.tuning.outcome import Evaluation, Outcome
from engine.tuning.report.comparison import Comparison, compare, judging_evaluation
from engine.tuning.report.learning import Learning, learning_of
from engine.tuning.report.wording import gained

Code = Literal["learned", "matched", "beaten", "not_learned", "worse", "unknown"]
_TONES: dict[Code, Tone] = {
    **{"learned": "good", "matched": "mixed", "beaten": "bad"},
    **{"not_learned": "bad", "worse": "bad", "unknown": "mixed"},
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """`headline` is the verdict in a sentence, `reasons` are the further ones; `evaluation` is what they rest on.

    learned: better than the base model and every model trained in seconds. matched: one of these is as good, as far as
    the rows can tell. beaten: one of them is better. not_learned, worse: than the base model. unknown: too few rows.
    """

    code: Code
    headline: str
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    evaluation: Evaluation | None

    @property
    def tone(self) -> Tone:
        """How the page colours it."""
        return _TONES[self.code]


def judge(outcome: Outcome) -> Judgement:
    """Judge the adapter by the rows of --eval, or by the validation rows without such."""
    evaluation = judging_evaluation(outcome)
    if evaluation is None:
        headline = "Nothing can be said: the adapter was evaluated on no rows."
        return Judgement("unknown", headline, tuple(_cautions(outcome, None)), (), None)
    comparisons = compare(outcome, evaluation)
    code, headline = _headline(outcome, evaluation, comparisons)
    reasons = [*map(_compared, comparisons), *_cautions(outcome, evaluation)]
    return Judgement(code, headline, tuple(reasons), comparisons, evaluation)


def _headline(outcome: Outcome, evaluation: Evaluation, comparisons: tuple[Comparison, ...]) -> tuple[Code, str]:
    metric = metric_name(outcome.metric)
    num_rows = len(evaluation.predictions)
    reached = sum(each.after.quality for each in evaluation.predictions) / num_rows
    result = f"{metric} {reached:.3f} on {counted(num_rows, f'{evaluation.name} row')}"
    if num_rows < MIN_ROWS:
        return "unknown", f"{result.capitalize()} {'says' if num_rows == 1 else 'say'} nothing yet: too few rows."
    base = next((each for each in comparisons if each.kind == "base"), None)
    others = sorted((each for each in comparisons if each.kind == "baseline"), key=lambda each: each.difference)
    if base is not None and base.low is None:
        return "unknown", f"The adapter has {result}; the base model was asked {base.num_rows} of them, too few."
    if base is not None and base.is_worse:
        return "worse", f"The adapter is worse than the base model: {result}, the base model has {base.other:.3f}."
    if base is not None and not base.is_better:
        return (
            "not_learned",
            f"It did not learn the task: {result}, the base model has {base.other:.3f}; that may be chance.",
        )
    if others and others[0].is_worse:
        best = others[0]
        return "beaten", (
            f"A model that trains in {duration(best.seconds or 0)} is better: {best.name} has {metric} "
            f"{best.other:.3f}, the adapter {best.adapter:.3f}, on {counted(num_rows, f'{evaluation.name} row')}."
        )
    learned = "It learned the task" if base is not None else "The adapter was not compared with the base model"
    if others and not others[0].is_better:
        best = others[0]
        return "matched", (
            f"{learned}, and a model that trains in {duration(best.seconds or 0)} is as good as far as these rows can "
            f"tell: {result}, {best.name} has {best.other:.3f}."
        )
    if base is None:
        return ("learned" if others else "unknown"), f"{learned}: {result}."
    return "learned", f"{learned}: {result}, where the base model has {base.other:.3f}."


def _compared(comparison: Comparison) -> str:
    """The comparison in a sentence."""
    name = "the base model" if comparison.kind == "base" else comparison.name
    trained = "" if comparison.seconds is None else f", trained in {duration(comparison.seconds)}"
    found = (
        "the adapter is better"
        if comparison.is_better
        else "the adapter is worse"
        if comparison.is_worse
        else "not distinguishable"
    )
    return (
        f"Against {name} ({comparison.other:.3f}{trained}): {gained(comparison)} on "
        f"{counted(comparison.num_rows, 'row')}; {found}."
    )


def _cautions(outcome: Outcome, evaluation: Evaluation | None) -> list[str]:
    """What a reader has to know to believe the figures."""
    found = []
    if evaluation is not None and evaluation.name == "validation":
        found.append(
            "These rows also chose the adapter, so the figures are a little too good. Hold rows back for --eval."
        )
    verdict = outcome.guard.get("verdict")
    if outcome.is_forced and verdict == "refuse":
        found.append("The guard refused this data, and --force trained on it anyway. Distrust what it seems to learn.")
    elif verdict == "risky":
        found.append("The guard calls this data risky; its reasons are below.")
    if outcome.is_split_by_row:
        found.append(
            "No group of rows could be held out whole, so the validation rows nearly repeat rows that were trained on. "
            "Only rows of --eval show what it does with others."
        )
    learning = learning_of(outcome.run)
    if learning is not None and learning.is_overfit:
        found.append(overfitting(learning))
    return found


def overfitting(learning: Learning) -> str:
    """Overfitting in a sentence: where it began, and which adapter was kept."""
    low, last, kept = learning.lowest, learning.last, learning.kept
    return (
        f"Overfitting was seen: from step {low.step} to {last.step} the validation loss rose from {low.valid_loss:.3f} "
        f"to {last.valid_loss:.3f} while the training loss fell from {low.train_loss:.3f} to {last.train_loss:.3f}. "
        f"The adapter of step {kept.step} is kept, {'the last one' if kept.step == last.step else 'not the last one'}."
    )
