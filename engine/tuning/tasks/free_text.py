"""Tasks whose answers are generated: what `qa` and `chat` have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from engine.metrics.text import token_f1
from engine.tuning.outcome import Answer
from engine.tuning.tasks.encoding import ANSWER_TOKENS, PromptEncoder, Tokens
from engine.tuning.tasks.generate import generate
from engine.tuning.tasks.task import R, TuningTask
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.model import AdapterModel
from engine.values import Message, Passage

# Room for an answer beyond the longest one trained on.
_SPARE_TOKENS = 12


class FreeTextTask(TuningTask[R]):
    """A task whose answers are judged by their words."""

    num_watched = 64

    def __init__(self, encoder: PromptEncoder, *, num_judged: int) -> None:
        """`num_judged` rows of each evaluation are asked."""
        self.encoder = encoder
        self.num_judged = num_judged
        self._max_tokens = ANSWER_TOKENS

    def limit_answers(self, rows: Sequence[R]) -> None:
        """Generate no more than answers to these rows need: the base model would go on and on."""
        longest = max(len(self.encoder.completion(target)) for row in rows for target in self.targets(row))
        self._max_tokens = min(ANSWER_TOKENS, longest + _SPARE_TOKENS)

    @abstractmethod
    def asked(self, row: R) -> tuple[tuple[Message, ...], tuple[Passage, ...]]:
        """The messages and passages that serving would make the prompt from."""

    @abstractmethod
    def knows(self, row: R, text: str) -> bool:
        """Whether the answer `text` shows that the model can do the row."""

    def known(self, model: AdapterModel, rows: Sequence[R]) -> list[bool]:
        """See TuningTask."""
        return [self.knows(row, text) for row, text in zip(rows, self._texts(model, rows), strict=True)]

    def example(self, row: R) -> EncodedExample:
        """See TuningTask."""
        messages, passages = self.asked(row)
        return self.encoder.example(row.line, messages, passages, self.targets(row)[0])

    def quality(self, model: AdapterModel, rows: Sequence[R]) -> float:
        """See TuningTask. The mean token F1."""
        texts = self._texts(model, rows)
        return sum(token_f1(text, self.targets(row)) for text, row in zip(texts, rows, strict=True)) / len(rows)

    def answers(self, model: AdapterModel, rows: Sequence[R]) -> list[Answer]:
        """See TuningTask. The loss is per token of the first target."""
        examples = [self.held_out_example(row) for row in rows]
        losses = model.example_losses(examples)
        return [
            Answer(text, token_f1(text, self.targets(row)), loss / example.num_completion)
            for row, text, loss, example in zip(rows, self._texts(model, rows), losses, examples, strict=True)
        ]

    def _texts(self, model: AdapterModel, rows: Sequence[R]) -> list[str]:
        end_tokens = self.encoder.end_tokens
        said = generate(model, [self._prompt(row) for row in rows], max_tokens=self._max_tokens, end_tokens=end_tokens)
        return [self.encoder.text(tokens) for tokens in said]

    def _prompt(self, row: R) -> Tokens:
        messages, passages = self.asked(row)
        return self.encoder.prompt(messages, passages, max_tokens=ANSWER_TOKENS if passages else self._max_tokens)
