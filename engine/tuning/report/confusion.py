"""Which labels are taken for which others, and how well each one is found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from engine.tuning.outcome import Evaluation

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of an evaluation. `num_rows` bear it and `num_said` were given it; `mistaken_for` is the wrong label
    that its rows are given most often, None without such."""

    label: str
    num_rows: int
    num_said: int
    num_right: int
    mistaken_for: str | None

    @property
    def precision(self) -> float:
        """Right ones of those that were given the label; 0 where none was."""
        return self.num_right / self.num_said if self.num_said else 0.0

    @property
    def recall(self) -> float:
        """Right ones of those that bear the label; 0 where none does."""
        return self.num_right / self.num_rows if self.num_rows else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        return 2 * self.num_right / max(1, self.num_rows + self.num_said)


@dataclass(frozen=True, slots=True)
class Confusion:
    """`counts[true, said]` rows; `labels` are all that occur, sorted."""

    labels: tuple[str, ...]
    counts: dict[Pair, int]

    @property
    def confused(self) -> list[tuple[Pair, int]]:
        """Wrong pairs (true, said), most frequent first."""
        wrong = [(pair, count) for pair, count in self.counts.items() if pair[0] != pair[1]]
        return sorted(wrong, key=lambda each: (-each[1], each[0]))

    @property
    def rows_of(self) -> Counter[str]:
        """How many rows bear each label."""
        found: Counter[str] = Counter()
        for (true, _), count in self.counts.items():
            found[true] += count
        return found

    def scores(self) -> list[LabelScore]:
        """Worst F1 first."""
        said: Counter[str] = Counter()
        mistaken: dict[str, str] = {}
        for (_, label), count in self.counts.items():
            said[label] += count
        for (true, label), _ in self.confused:
            mistaken.setdefault(true, label)
        rows = self.rows_of
        found = [
            LabelScore(label, rows[label], said[label], self.counts.get((label, label), 0), mistaken.get(label))
            for label in self.labels
        ]
        return sorted(found, key=lambda each: (each.f1, each.label))


def confusion_of(evaluation: Evaluation) -> Confusion:
    """The evaluation's rows by true label and by what the adapter said."""
    counts = Counter((each.targets[0], each.after.text) for each in evaluation.predictions if each.targets)
    return Confusion(tuple(sorted({label for pair in counts for label in pair})), dict(counts))
