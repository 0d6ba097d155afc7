"""From a ScoreRequest to prompts and trees of tokens, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import InvalidRequest, PromptTooLong, ScoredTextTooLong
from engine.generation.scoring.trie import Node, Tokens, build_tree
from engine.values import ScoreItem, ScoreRequest

MAX_CONTINUATIONS = 1_024
MAX_CONTINUATION_TOKENS = 256
MAX_TOTAL_TOKENS = 262_144


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A prompt, the tree of its continuations, and how many tokens each of those has."""

    tokens: Tokens
    tree: Node
    lengths: tuple[int, ...]


class Preparation:
    """Turns one request into tokens. Continuations that several prompts share are read once."""

    def __init__(
        self,
        prompt_tokens: Callable[[ScoreItem, str], list[int]],
        text_tokens: Callable[[str], list[int]],
        *,
        end_token: int,
        vocab_size: int,
        max_model_len: int,
    ) -> None:
        """`prompt_tokens` (given a system prompt, or none) and `text_tokens` are the model's tokenizer; `end_token`
        ends an answer.
        """
        self._prompt_tokens = prompt_tokens
        self._text_tokens = text_tokens
        self._end_token = end_token
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len

    def prepare(self, request: ScoreRequest, *, system_prompt: str = "") -> list[ScoredPrompt]:
        """`system_prompt`, unless empty, stands for the generator's.

        Raises: InvalidRequest naming the bound, ScoredTextTooLong where a continuation does not fit.
        """
        if not request.items:
            raise InvalidRequest("items is empty; send at least one prompt.", param="input")
        known: dict[tuple[str | Tokens, ...], tuple[Node, tuple[int, ...]]] = {}
        prompts = []
        num_tokens = 0
        for index, item in enumerate(request.items):
            if item.continuations not in known:
                known[item.continuations] = self._tree(item.continuations, with_end=request.with_end)
            tree, lengths = known[item.continuations]
            try:
                tokens = tuple(self._prompt_tokens(item, system_prompt))
            except PromptTooLong as error:
                size = error.num_prompt_tokens
                raise ScoredTextTooLong(index, size, max(lengths), self._max_model_len) from None
            if len(tokens) + max(lengths) > self._max_model_len:
                raise ScoredTextTooLong(index, len(tokens), max(lengths), self._max_model_len)
            num_tokens += tree.num_tokens
            if num_tokens > MAX_TOTAL_TOKENS:
                raise InvalidRequest(
                    f"the continuations have more than {MAX_TOTAL_TOKENS} tokens in all; score fewer at once.",
                    param="input",
                )
            prompts.append(ScoredPrompt(tokens, tree, lengths))
        return prompts

    def _tree(self, continuations: tuple[str | Tokens, ...], *, with_end: bool) -> tuple[Node, tuple[int, ...]]:
        if not 1 <= len(continuations) <= MAX_CONTINUATIONS:
            raise InvalidRequest(
                f"a prompt has {len(continuations)} continuations; from 1 to {MAX_CONTINUATIONS} are allowed.",
                param="continuations",
            )
        end = (self._end_token,) if with_end else ()
        tokens = [self._tokens(continuation) + end for continuation in continuations]
        return build_tree(tokens), tuple(map(len, tokens))

    def _tokens(self, continuation: str | Tokens) -> Tokens:
        tokens = tuple(self._text_tokens(continuation)) if isinstance(continuation, str) else continuation
        if not 1 <= len(tokens) <= MAX_CONTINUATION_TOKENS:
            raise InvalidRequest(
                f"a continuation has {len(tokens)} tokens; from 1 to {MAX_CONTINUATION_TOKENS} are allowed.",
                param="continuations",
            )
        if not all(0 <= token < self._vocab_size for token in tokens):
            raise InvalidRequest(f"token ids must be from 0 to {self._vocab_size - 1}.", param="continuations")
        return tokens
