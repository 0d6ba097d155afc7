"""`qa`: questions from memory, from the row's own context, or from retrieved passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.metrics.refusals import NOT_IN_DOCUMENTS
from engine.metrics.text import exact_match, plain_answer
from engine.tuning.data.rows import QuestionRow
from engine.tuning.outcome import Answer, Context, Metrics
from engine.tuning.tasks.encoding import PromptEncoder
from engine.tuning.tasks.free_text import FreeTextTask
from engine.tuning.tasks.passages import context_passage, loses_golden, with_golden, without_golden
from engine.tuning.training.examples import EncodedExample
from engine.values import Message, Passage

# A training row is searched for so many more passages than it shows, to replace golden ones.
SPARE_PASSAGES = 3


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """Which passages a question is shown: none, the row's own context (gold), or `num` retrieved ones.

    `share_without` of the training rows with retrieved passages are shown no golden one; `seed` draws them.
    """

    kind: Context = "none"
    num: int = 3
    share_without: float = 0.2
    seed: int = 0


class QaTask(FreeTextTask[QuestionRow]):
    """For questions."""

    name = "qa"

    def __init__(
        self,
        encoder: PromptEncoder,
        options: ContextOptions,
        *,
        num_judged: int,
        found: Mapping[str, Sequence[Passage]] | None = None,
    ) -> None:
        """`found` are the passages of each question by rank, where the context is "retrieved"."""
        super().__init__(encoder, num_judged=num_judged)
        self.context = options.kind
        self._options = options
        self._found = found or {}

    def asked(self, row: QuestionRow) -> tuple[tuple[Message, ...], tuple[Passage, ...]]:
        """See FreeTextTask. Retrieved passages are those that a request would get."""
        messages = (Message("user", row.question),)
        if self.context == "gold":
            return messages, (context_passage(row),)
        return messages, tuple(self._found[row.question][: self._options.num]) if self.context == "retrieved" else ()

    def example(self, row: QuestionRow) -> EncodedExample:
        """See TuningTask. A share of the rows with retrieved passages is shown no golden one."""
        without = loses_golden(row, self._options.share_without, self._options.seed)
        return self._with_passages(row, without=without)

    def held_out_example(self, row: QuestionRow) -> EncodedExample:
        """See TuningTask. Always with the golden passage, where there is one."""
        return self._with_passages(row, without=False)

    def targets(self, row: QuestionRow) -> tuple[str, ...]:
        """See TuningTask. Of an unanswerable question: that the documents do not say."""
        return row.answers or (NOT_IN_DOCUMENTS,)

    def knows(self, row: QuestionRow, text: str) -> bool:
        """See FreeTextTask. An answer within a longer one shows that too."""
        said = f" {plain_answer(text)} "
        return any(f" {plain_answer(target)} " in said for target in self.targets(row))

    def metrics(self, rows: Sequence[QuestionRow], answers: Sequence[Answer]) -> Metrics:
        """See TuningTask."""
        num = len(answers)
        matches = [exact_match(answer.text, self.targets(row)) for row, answer in zip(rows, answers, strict=True)]
        return {
            "f1": sum(answer.quality for answer in answers) / num,
            "exact_match": sum(matches) / num,
            "not_in_documents": sum(exact_match(answer.text, [NOT_IN_DOCUMENTS]) for answer in answers) / num,
            "loss": sum(answer.loss or 0.0 for answer in answers) / num,
        }

    def _with_passages(self, row: QuestionRow, *, without: bool) -> EncodedExample:
        messages, passages = self.asked(row)
        target = self.targets(row)[0]
        if self.context == "retrieved" and row.answers:
            found, num = self._found[row.question], self._options.num
            golden = None if without else with_golden(row, found, num, self._options.seed)
            passages = without_golden(row, found, num) if golden is None else golden
            target = NOT_IN_DOCUMENTS if golden is None else target
        return self.encoder.example(row.line, messages, passages, target)
