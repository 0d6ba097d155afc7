"""`classify`: a text to one of a closed set of labels, by the log-probability of each label's words."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

import numpy as np

from engine.tuning.calibration import Floats, label_losses, label_probabilities
from engine.tuning.data.rows import LabelRow
from engine.tuning.outcome import Answer, Metrics
from engine.tuning.tasks.encoding import PromptEncoder, Tokens
from engine.tuning.tasks.labels import PROBABILITY_FLOOR, best_labels, label_scores, label_texts
from engine.tuning.tasks.task import TuningTask
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.model import AdapterModel
from engine.values import Message

# Short, since it is read with every text; the labels themselves are in the adapter.
DEFAULT_INSTRUCTION = "Classify the message. Answer with one of the labels' names."


class ClassifyTask(TuningTask[LabelRow]):
    """For rows with labels. `texts` are what the model writes for `labels`."""

    name = "classify"
    num_watched = 200

    def __init__(self, encoder: PromptEncoder, labels: Sequence[str]) -> None:
        self.encoder = encoder
        self.labels = tuple(labels)
        self.texts = label_texts(self.labels)
        self._text_of = dict(zip(self.labels, self.texts, strict=True))
        self._place = {label: place for place, label in enumerate(self.labels)}
        self._tokens = [encoder.completion(text) for text in self.texts]
        self._longest = max(map(len, self._tokens))

    def example(self, row: LabelRow) -> EncodedExample:
        """See TuningTask."""
        return self.encoder.example(row.line, [Message("user", row.text)], (), self._text_of[row.label])

    def targets(self, row: LabelRow) -> tuple[str, ...]:
        """See TuningTask."""
        return (row.label,)

    def quality(self, model: AdapterModel, rows: Sequence[LabelRow]) -> float:
        """See TuningTask. The accuracy of the best label, as `known` finds it."""
        return sum(self.known(model, rows)) / len(rows)

    def scores(self, model: AdapterModel, rows: Sequence[LabelRow], *, floor: float = PROBABILITY_FLOOR) -> Floats:
        """[N, L] log-probability of each label, its end included, in nats: what serving's scores are.

        Those of labels more than `floor` below the best one may be estimates.
        """
        return label_scores(model, self._prompts(rows), self._tokens, self.places(rows), floor=floor)

    def places(self, rows: Sequence[LabelRow]) -> list[int]:
        """The column of each row's label in `scores`."""
        return [self._place[row.label] for row in rows]

    def answers(self, model: AdapterModel, rows: Sequence[LabelRow]) -> list[Answer]:
        """See TuningTask."""
        return self.answers_of(rows, self.scores(model, rows))

    def answers_of(self, rows: Sequence[LabelRow], scores: Floats, temperature: float | None = None) -> list[Answer]:
        """Answers from [N, L] log-probabilities; without a temperature they have no calibrated probability."""
        best = scores.argmax(axis=1)
        every = np.arange(len(rows))
        losses = label_losses(scores, self.places(rows))
        plain = label_probabilities(scores)[every, best]
        calibrated = None if temperature is None else label_probabilities(scores, temperature)[every, best]
        return [
            Answer(
                text=self.labels[best[row]],
                quality=float(self.labels[best[row]] == rows[row].label),
                loss=float(losses[row]),
                confidence=float(plain[row]),
                calibrated=None if calibrated is None else float(calibrated[row]),
            )
            for row in range(len(rows))
        ]

    def known(self, model: AdapterModel, rows: Sequence[LabelRow]) -> list[bool]:
        """See TuningTask. Whether the right label is the likeliest, unlikely beginnings left out."""
        best = best_labels(model, self._prompts(rows), self._tokens)
        return [self.labels[place] == row.label for place, row in zip(best, rows, strict=True)]

    def metrics(self, rows: Sequence[LabelRow], answers: Sequence[Answer]) -> Metrics:
        """See TuningTask."""
        metrics = {
            "accuracy": sum(answer.quality for answer in answers) / len(answers),
            "macro_f1": macro_f1([row.label for row in rows], [answer.text for answer in answers]),
        }
        losses = [answer.loss for answer in answers if answer.loss is not None]
        return metrics | ({"loss": sum(losses) / len(losses)} if losses else {})

    def _prompts(self, rows: Sequence[LabelRow]) -> list[Tokens]:
        return [self.encoder.prompt([Message("user", row.text)], max_tokens=self._longest) for row in rows]


def macro_f1(targets: Sequence[str], answers: Sequence[str]) -> float:
    """The mean F1 over the labels that are right or were answered at least once; each label counts the same."""
    right, wanted, said = (dict.fromkeys({*targets, *answers}, 0) for _ in range(3))
    for target, answer in zip(targets, answers, strict=True):
        wanted[target] += 1
        said[answer] += 1
        right[target] += target == answer
    # Rounded once: a plain sum differs in the last digit with the order of a set, which every process draws anew.
    return fsum(2 * right[label] / (wanted[label] + said[label]) for label in right) / len(right)
