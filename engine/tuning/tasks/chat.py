"""`chat`: conversations as they are; what is learned is the assistant's last turn."""

from __future__ import annotations

from collections.abc import Sequence

from engine.metrics.text import plain_answer, rouge_l
from engine.tuning.data.rows import ChatRow, CompletionRow
from engine.tuning.outcome import Answer, Metrics
from engine.tuning.tasks.free_text import FreeTextTask
from engine.values import Message, Passage

Conversation = ChatRow | CompletionRow


class ChatTask(FreeTextTask[Conversation]):
    """For conversations, and for prompts with completions."""

    name = "chat"
    num_watched = 32

    def asked(self, row: Conversation) -> tuple[tuple[Message, ...], tuple[Passage, ...]]:
        """See FreeTextTask."""
        return (row.messages[:-1] if isinstance(row, ChatRow) else (Message("user", row.prompt),)), ()

    def targets(self, row: Conversation) -> tuple[str, ...]:
        """See TuningTask."""
        return (row.target,)

    def knows(self, row: Conversation, text: str) -> bool:
        """See FreeTextTask. Word for word, but for punctuation."""
        return plain_answer(text) == plain_answer(row.target)

    def metrics(self, rows: Sequence[Conversation], answers: Sequence[Answer]) -> Metrics:
        """See TuningTask."""
        num = len(answers)
        return {
            "f1": sum(answer.quality for answer in answers) / num,
            "rouge_l": sum(rouge_l(a.text, self.targets(row)) for row, a in zip(rows, answers, strict=True)) / num,
            "loss": sum(answer.loss or 0.0 for answer in answers) / num,
        }
