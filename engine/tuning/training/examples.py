"""What training reads: tokens, and how many of them are the prompt."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from engine.errors import TrainingError


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One example as the model sees it. The loss is on `tokens[num_prompt:]`, each predicted from those before it.

    Raises: ValueError when the prompt or the completion has no token.
    """

    tokens: tuple[int, ...]
    num_prompt: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_prompt < len(self.tokens):
            raise ValueError(
                f"num_prompt={self.num_prompt} of {len(self.tokens)} tokens: "
                "prompt and completion need at least one token each"
            )

    @property
    def num_completion(self) -> int:
        """Tokens that the loss is on."""
        return len(self.tokens) - self.num_prompt


def examples_digest(examples: Sequence[EncodedExample]) -> str:
    """SHA-256 (hex) of the examples in their order."""
    digest = sha256()
    for example in examples:
        digest.update(array("q", (len(example.tokens), example.num_prompt, *example.tokens)).tobytes())
    return digest.hexdigest()


def check_fit(examples: Sequence[EncodedExample], max_tokens: int, vocabulary: int) -> None:
    """Raises: TrainingError naming the first example that is longer than the context or of another tokenizer."""
    for number, example in enumerate(examples, start=1):
        if len(example.tokens) > max_tokens:
            raise TrainingError(
                f"example {number} has {len(example.tokens)} tokens, the model's context holds {max_tokens}. "
                "Shorten or leave out what is longer."
            )
        if not 0 <= min(example.tokens) <= max(example.tokens) < vocabulary:
            raise TrainingError(
                f"example {number} has tokens from {min(example.tokens)} to {max(example.tokens)}, the model's are "
                f"below {vocabulary}. Encode the examples with this model's tokenizer."
            )
