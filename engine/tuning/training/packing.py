"""Examples end to end in one row, a prompt that all begin with only once, and where each of them lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from engine.tuning.training.examples import EncodedExample


@dataclass(frozen=True, slots=True)
class Packing:
    """Where N examples lie among T tokens, for an attention that needs them side by side.

    The first `num_shared` tokens begin every example; behind them lies what is each one's own, at most `longest`
    tokens. `pad` [N * longest] is the token of each slot, counted from `num_shared`; a slot after an example's end
    repeats its last token. `unpad` [T - num_shared] is the slot of each token. Both are int64, and None where all
    examples have one length.
    """

    num_examples: int
    num_shared: int
    longest: int
    pad: Tensor | None
    unpad: Tensor | None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """N examples as one row of T tokens, C of which are predicted.

    `input_ids` and `position_ids` are [1, T]; positions are those within each example. `predicting` [C] are the
    places whose logits matter, `targets` [C] the tokens that follow them, `owners` [C] the example of each, always on
    the CPU. All int64.
    """

    input_ids: Tensor
    position_ids: Tensor
    predicting: Tensor
    targets: Tensor
    owners: Tensor
    packing: Packing


def pack(examples: Sequence[EncodedExample], device: str | torch.device = "cpu") -> PackedBatch:
    """Lay `examples` end to end, tokens that all of them begin with once.

    What comes first in a causal model does not depend on what follows, so a shared beginning (a template's, or an
    instruction) has the same hidden states in each example, and its gradient is the sum of theirs. The last token of
    an example is predicted but predicts nothing, so it is no input.

    Raises: ValueError when there is no example.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    shared = num_shared_tokens(examples)
    lengths = [len(example.tokens) - 1 - shared for example in examples]
    starts = list(accumulate(lengths, initial=shared))[:-1]
    places = [
        range(start + example.num_prompt - 1 - shared, start + length)
        for start, length, example in zip(starts, lengths, examples, strict=True)
    ]

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)

    own_ids = [token for example in examples for token in example.tokens[shared:-1]]
    own_positions = [position for length in lengths for position in range(shared, shared + length)]
    return PackedBatch(
        input_ids=tensor([*examples[0].tokens[:shared], *own_ids])[None],
        position_ids=tensor([*range(shared), *own_positions])[None],
        predicting=tensor([place for run in places for place in run]),
        targets=tensor([token for example in examples for token in example.tokens[example.num_prompt :]]),
        owners=torch.tensor([owner for owner, run in enumerate(places) for _ in run]),
        packing=_packing(lengths, shared, device),
    )


def num_shared_tokens(examples: Sequence[EncodedExample]) -> int:
    """Tokens that every example begins with, up to the first that predicts; 0 for a single example."""
    if len(examples) == 1:
        return 0
    most = min(example.num_prompt for example in examples) - 1
    # Whatever the least and the greatest in order begin with, all between them do too.
    first, last = min(example.tokens for example in examples), max(example.tokens for example in examples)
    return next((place for place in range(most) if first[place] != last[place]), most)


def _packing(lengths: Sequence[int], shared: int, device: str | torch.device) -> Packing:
    longest, num_examples = max(lengths), len(lengths)
    if min(lengths) == longest:
        return Packing(num_examples, shared, longest, None, None)
    sizes = torch.tensor(lengths)
    slots = torch.arange(longest)
    starts = sizes.cumsum(0) - sizes
    pad = starts[:, None] + torch.minimum(slots, sizes[:, None] - 1)  # [N, longest]
    unpad = torch.arange(num_examples * longest).view(num_examples, longest)[slots < sizes[:, None]]
    return Packing(num_examples, shared, longest, pad.flatten().to(device), unpad.to(device))
