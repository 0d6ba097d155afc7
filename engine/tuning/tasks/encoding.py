"""Rows' messages to tokens, by the builder that serving uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import InvalidRequest, TrainingError
from engine.generation.decoder.spec import read_spec
from engine.generation.model_files import eos_token_ids, load_tokenizer
from engine.generation.prompt import PromptBuilder
from engine.tuning.training.examples import EncodedExample
from engine.values import GenerationRequest, Message, Passage, SamplingParams

# What serving keeps free for an answer unless a request says otherwise; passages are cut to make room for it.
ANSWER_TOKENS = SamplingParams().max_tokens

Tokens = tuple[int, ...]


def like_lengths(prompts: Sequence[Tokens], *, most: int, most_tokens: int) -> Iterator[list[int]]:
    """Batches of places of prompts of like lengths, up to `most` and, padded to the longest, up to `most_tokens`."""
    batch: list[int] = []
    for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row])):
        if batch and (len(batch) == most or (len(batch) + 1) * len(prompts[row]) > most_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class PromptEncoder:
    """Prompts and completions of one model under one system prompt.

    `end_token` follows each completion, as serving's scores add it; `end_tokens` are all that end an answer.
    """

    def __init__(self, model: Path, *, max_model_len: int, instruction: str) -> None:
        """`max_model_len` counts prompt and answer; the model's own limit holds too. Raises: ModelSourceError."""
        self._tokenizer = load_tokenizer(model)
        self.max_model_len = min(max_model_len, read_spec(model).max_positions)
        self.instruction = instruction
        self.end_tokens = eos_token_ids(model, self._tokenizer)
        self.end_token: int = (
            self._tokenizer.eos_token_id if self._tokenizer.eos_token_id is not None else min(self.end_tokens)
        )
        self._prompts = PromptBuilder(self._tokenizer, max_model_len=self.max_model_len, system_prompt=instruction)

    def prompt(self, messages: Sequence[Message], passages: Sequence[Passage] = (), *, max_tokens: int) -> Tokens:
        """What serving reads for such a request. Raises: InvalidRequest, PromptTooLong."""
        request = GenerationRequest(
            "", tuple(messages), tuple(passages), sampling=SamplingParams(max_tokens=max_tokens)
        )
        return tuple(self._prompts.build(request).token_ids)

    def completion(self, text: str) -> Tokens:
        """The tokens of a whole answer, its end included."""
        return (*self._prompts.text_tokens(text), self.end_token)

    def example(self, line: int, messages: Sequence[Message], passages: Sequence[Passage], text: str) -> EncodedExample:
        """The row of `line` for training. Raises: TrainingError naming the line, where it cannot be encoded."""
        completion = self.completion(text)
        if len(completion) < 2:
            raise TrainingError(f"line {line}: the answer {text!r} has no tokens. Correct it, or leave the row out.")
        # Passages leave as much room as in serving, where the length of the answer is not known.
        room = max(len(completion), ANSWER_TOKENS) if passages else len(completion)
        try:
            prompt = self.prompt(messages, passages, max_tokens=room)
        except InvalidRequest as error:
            raise TrainingError(f"line {line}: {error} Or leave the row out.") from None
        return EncodedExample((*prompt, *completion), len(prompt))

    def text(self, tokens: Sequence[int]) -> str:
        """An answer's text, without white space around it."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
