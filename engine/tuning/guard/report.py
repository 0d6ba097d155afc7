"""What the guard found: a value that is kept with the adapter, and its verdict."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.tuning.data.rows import Task
from engine.tuning.guard.alike import Contradictions, Duplicates, Leakage
from engine.tuning.guard.counts import LabelBalance, TokenCounts
from engine.tuning.guard.diversity import DistinctWords, SelfSimilarity

Verdict = Literal["ok", "risky", "refuse"]
Level = Literal["note", "risky", "refuse"]


@dataclass(frozen=True, slots=True)
class DataSummary:
    """The file and how it was read, as in Examples. `bad_rows` are the first of `num_bad`, a sentence each."""

    source: str
    description: str
    task: Task
    digest: str
    num_rows: int
    num_bad: int
    bad_rows: tuple[str, ...]
    ignored_fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TargetStats:
    """What the model is to say, for other tasks than `classify`.

    `most_frequent` is the target of `most_frequent_share` of the rows. Of questions, `num_with_context` bring one,
    `num_in_context` of those hold an answer in it word for word, and `num_unanswerable` have none by intent.
    """

    words: DistinctWords | None
    most_frequent: str
    most_frequent_share: float
    num_with_context: int
    num_in_context: int
    num_unanswerable: int


@dataclass(frozen=True, slots=True)
class BaseKnowledge:
    """How many of the asked rows the model answers before it is tuned."""

    num_asked: int
    num_right: int

    @property
    def share(self) -> float:
        """Of the asked rows."""
        return self.num_right / self.num_asked


@dataclass(frozen=True, slots=True)
class SplitSizes:
    """Rows on both sides, and the groups that were kept whole."""

    num_train: int
    num_validation: int
    num_groups: int
    seed: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know before training: what was seen and what to do about it. `code` is for programs."""

    level: Level
    code: str
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class GuardReport:
    """Everything measured; what is None was not measured, or does not exist for the task.

    `input_overlap` is the mean Jaccard similarity of two inputs' 5-grams. `findings` come worst first.
    """

    data: DataSummary
    tokens: TokenCounts | None
    labels: LabelBalance | None
    duplicates: Duplicates
    contradictions: Contradictions
    leakage: Leakage | None
    input_words: DistinctWords | None
    input_overlap: float | None
    similarity: SelfSimilarity | None
    targets: TargetStats | None
    base: BaseKnowledge | None
    split: SplitSizes
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst level of the findings; notes are ok."""
        levels = {finding.level for finding in self.findings}
        return "refuse" if "refuse" in levels else "risky" if "risky" in levels else "ok"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, with its verdict."""
        report: dict[str, Any] = json.loads(json.dumps({"verdict": self.verdict} | asdict(self)))
        return report
