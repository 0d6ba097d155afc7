"""Rows that are the same, rows that contradict each other, and rows of the evaluation file that were trained on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from engine.tuning.data.rows import LabelRow, QuestionRow, Row
from engine.tuning.guard.contexts import NOTHING, Contexts
from engine.tuning.guard.near import NearIndex
from engine.tuning.guard.text import Template, normalise


@dataclass(frozen=True, slots=True)
class Duplicates:
    """How many rows say something new.

    `num_exact` rows repeat input and target of an earlier row (case and punctuation ignored). `num_near` rows beyond
    the first of their cluster are near-duplicates, exact ones among them; `num_distinct` are left without those.
    `largest` is the size of the largest cluster; `clusters` holds the lines of the largest ones, cut short.
    """

    num_exact: int
    num_near: int
    num_distinct: int
    largest: int
    clusters: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The same input with different targets: lines and targets, in pairs, and the input."""

    lines: tuple[int, ...]
    targets: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Contradictions:
    """`num_rows` rows in `num_inputs` inputs, of which `first` are some; cut short.

    `num_near_clusters` counts near-duplicate clusters with more than one target besides: often right (`rose` and
    `fell`), sometimes slips. Chats and completions never contradict: a prompt may have several good answers.
    """

    num_rows: int
    num_inputs: int
    first: tuple[Contradiction, ...]
    num_near_clusters: int


@dataclass(frozen=True, slots=True)
class LeakedRow:
    """A line of the evaluation file and the line of the training file that it repeats; `similarity` 1 is exact."""

    eval_line: int
    train_line: int
    similarity: float


@dataclass(frozen=True, slots=True)
class Leakage:
    """Rows of the evaluation file that training has seen: `num_exact` by the same words, `num_near` nearly.

    `num_same_context` questions besides are new ones about a context or document that training has seen.
    """

    num_eval_rows: int
    num_exact: int
    num_near: int
    num_same_context: int
    first: tuple[LeakedRow, ...]
    eval_digest: str


class Alike:
    """The rows of a training file, compared with each other once.

    `inputs` are what the rows ask, without a common template; `clusters` names each row's near-duplicate cluster by the
    position of its first row.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._template = Template([row.input_text for row in rows])
        self.inputs = [self._template.cut(row.input_text) for row in rows]
        self._texts = [normalise(text) for text in self.inputs]
        self._index = NearIndex(self._texts)
        self._contexts = Contexts(rows)
        self._about = [self._contexts.of(row) for row in rows]
        first: dict[tuple[int, int | None], int] = {}
        pairs = zip(self._index.clusters(), self._about, strict=True)
        self.clusters = [first.setdefault(pair, place) for place, pair in enumerate(pairs)]

    def duplicates(self, max_shown: int) -> Duplicates:
        """Counts over all rows, and the `max_shown` largest clusters by at most as many lines."""
        sizes = Counter(self.clusters)
        exact = Counter(
            (text, about, normalise(row.target))
            for text, about, row in zip(self._texts, self._about, self.rows, strict=True)
        )
        lines: dict[int, list[int]] = defaultdict(list)
        for row, cluster in zip(self.rows, self.clusters, strict=True):
            lines[cluster].append(row.line)
        ranked = sorted((each for each in lines.values() if len(each) > 1), key=lambda each: (-len(each), each[0]))
        return Duplicates(
            num_exact=len(self.rows) - len(exact),
            num_near=len(self.rows) - len(sizes),
            num_distinct=len(sizes),
            largest=max(sizes.values(), default=0),
            clusters=tuple(tuple(each[:max_shown]) for each in ranked[:max_shown]),
        )

    def contradictions(self, max_shown: int) -> Contradictions:
        """Labels that differ for one text, or answers for one question about one context that have none in common."""
        same: dict[tuple[str, int | None], list[int]] = defaultdict(list)
        labels: dict[int, set[str]] = defaultdict(set)
        for place, row in enumerate(self.rows):
            if isinstance(row, LabelRow | QuestionRow):
                same[self._texts[place], self._about[place]].append(place)
            if isinstance(row, LabelRow):
                labels[self.clusters[place]].add(row.label)
        found = [places for places in same.values() if _disagree([self.rows[place] for place in places])]
        first = []
        for places in found[:max_shown]:
            rows = [self.rows[place] for place in places[:max_shown]]
            lines, targets = tuple(row.line for row in rows), tuple(row.target for row in rows)
            first.append(Contradiction(lines, targets, rows[0].input_text[:200]))
        exact = {self.clusters[place] for places in found for place in places}
        return Contradictions(
            num_rows=sum(map(len, found)),
            num_inputs=len(found),
            first=tuple(first),
            num_near_clusters=sum(len(each) > 1 for cluster, each in labels.items() if cluster not in exact),
        )

    def leakage(self, rows: Sequence[Row], eval_digest: str, max_shown: int) -> Leakage:
        """What rows of an evaluation file have in common with these; a question leaks only with its own context."""
        trained: dict[tuple[str, int | None], int] = {}
        for place, key in enumerate(zip(self._texts, self._about, strict=True)):
            trained.setdefault(key, place)
        first: list[LeakedRow] = []
        num_exact = num_near = num_same_context = 0
        for row in rows:
            about = self._contexts.of(row)
            if about is None:
                continue
            text = normalise(self._template.cut(row.input_text))
            same = trained.get((text, about))
            found = self._index.nearest(text) if same is None else (same, 1.0)
            if found is None or self._about[found[0]] != about:
                num_same_context += about != NOTHING
                continue
            num_exact += same is not None
            num_near += same is None
            if len(first) < max_shown:
                first.append(LeakedRow(row.line, self.rows[found[0]].line, round(found[1], 3)))
        return Leakage(len(rows), num_exact, num_near, num_same_context, tuple(first), eval_digest)


def _disagree(rows: Sequence[Row]) -> bool:
    if len(rows) < 2:
        return False
    accepted = [
        {normalise(answer) for answer in row.answers} if isinstance(row, QuestionRow) else {row.target} for row in rows
    ]
    return any(one != other and not one & other for one in accepted[:1] for other in accepted[1:])
