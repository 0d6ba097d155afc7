"""Where an answer stands in its grammar, and which tokens may follow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

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

    def forbidden(self, matchers: Sequence[Matcher], drafts: Sequence[Sequence[int]] | None = None) -> Tensor:
        """[R, V] bool on the CPU: the tokens that may not follow, in the order of `matchers`.

        1 + len(drafts[i]) rows of matcher i: where it stands, and behind each beginning of its draft. Behind a token
        that may not follow nobody will stand, so everything is allowed there. Changes no matcher.
        """
        drafts = drafts or [()] * len(matchers)
        firsts = [0, *accumulate(1 + len(draft) for draft in drafts)]
        bits: NDArray[np.uint32] = np.zeros((firsts[-1], self._words), dtype=np.uint32)
        sound = [
            (matcher._matcher, row, list(draft))
            for matcher, row, draft in zip(matchers, firsts, drafts, strict=False)
            if matcher.failure is None
        ]
        plain = [(each, row) for each, row, draft in sound if not draft]
        if drafted := [target for target in sound if target[2]]:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(
                drafted, bits.ctypes.data, 4 * self._words, len(bits)
            )
        if len(plain) >= _MIN_PARALLEL:
            self._executor.unsafe_compute_mask_ptr(plain, bits.ctypes.data, 4 * self._words, len(bits))
        else:
            for each, row in plain:
                each.unsafe_compute_mask_ptr(bits[row].ctypes.data, 4 * self._words)
        for matcher, first, stop in zip(matchers, firsts, firsts[1:], strict=False):
            matcher._note_failure()
            if matcher.failure is None and not bits[first].any():
                matcher.failure = "no token can follow"
            if matcher.failure is not None:
                bits[first:stop] = 0xFFFFFFFF
        bits[~bits.any(axis=1)] = 0xFFFFFFFF
        flags = np.unpackbits((~bits).view(np.uint8), axis=1, count=self._vocab_size, bitorder="little")
        return torch.from_numpy(flags.view(np.bool_))
