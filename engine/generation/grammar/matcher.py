"""Where an answer stands in its grammar, and which tokens may follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray
from torch import Tensor

# Below this many masks at once, threads cost more than they bring.
_MIN_PARALLEL = 8


class Matcher:
    """The state of one answer. It knows tokens only: what becomes of their keys and values does not matter to it.

    No method raises: what goes wrong (a limit of the library at an unlucky place of a large grammar) is in `failure`,
    and every token is allowed from then on.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        """`matcher` is at its start and belongs to this object."""
        self._matcher = matcher
        self.failure: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the text matches and nothing could follow, so that the answer ends here."""
        return self.failure is None and self._matcher.is_stopped()

    @property
    def may_end(self) -> bool:
        """Whether the text matches as it is, so that an end token is allowed."""
        return self.failure is None and self._matcher.is_accepting()

    def accept(self, token_id: int) -> None:
        """Append an allowed token."""
        if self.failure is None and not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)
            self._note_failure()

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens may follow, one after another. Changes nothing, and costs far less than a mask."""
        if self.failure is not None:
            return len(token_ids)
        num_allowed = int(self._matcher.validate_tokens(list(token_ids)))
        self._note_failure()
        return num_allowed

    def roll_back(self, num_tokens: int) -> None:
        """Take back the latest accepted tokens."""
        if self.failure is None and num_tokens:
            self._matcher.rollback(num_tokens)
            self._note_failure()

    def _note_failure(self) -> None:
        if self._matcher.is_error():
            self.failure = self._matcher.get_error().splitlines()[0]


class MaskFiller:
    """Computes masks, in parallel where there are many. One thread calls it."""

    def __init__(self, vocab_size: int, mask_size: int) -> None:
        """`vocab_size` is the width of the logits, `mask_size` that of the library's masks, never smaller."""
        self._vocab_size = vocab_size
        self._words = -(-mask_size // 32)
        self._executor = LLExecutor()

    def forbidden(self, matchers: Sequence[Matcher]) -> Tensor:
        """[N, V] bool on the CPU: the tokens that may not follow, in the order of `matchers`."""
        bits: NDArray[np.uint32] = np.zeros((len(matchers), self._words), dtype=np.uint32)
        sound = [(row, matcher) for row, matcher in enumerate(matchers) if matcher.failure is None]
        if len(sound) >= _MIN_PARALLEL:
            targets = [(matcher._matcher, row) for row, matcher in sound]
            self._executor.unsafe_compute_mask_ptr(targets, bits.ctypes.data, 4 * self._words, len(matchers))
        else:
            for row, matcher in sound:
                matcher._matcher.unsafe_compute_mask_ptr(bits[row].ctypes.data, 4 * self._words)
        for row, matcher in enumerate(matchers):
            matcher._note_failure()
            if matcher.failure is None and not bits[row].any():
                matcher.failure = "no token can follow"
            if matcher.failure is not None:
                bits[row] = 0xFFFFFFFF
        flags = np.unpackbits((~bits).view(np.uint8), axis=1, count=self._vocab_size, bitorder="little")
        return torch.from_numpy(flags.view(np.bool_))
