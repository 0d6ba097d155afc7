"""Examples end to end in one row, and where each of them lies."""

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

    `pad` [N * longest] is the token of each slot; a slot after an example's end repeats its last token. `unpad` [T] is
    the slot of each token. Both are int64, and None where all examples have one length.
    """

    num_examples: int
    longest: int
    pad: Tensor | None
    unpad: Tensor | None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """N examples as one row of T tokens, C of which are predicted.

    `input_ids` and `position_ids` are [1, T]; positions count from 0 in each example. `predicting` [C] are the places
    whose logits matter, `targets` [C] the tokens that follow them, `owners` [C] the example of each. All int64.
    """

    input_ids: Tensor
    position_ids: Tensor
    predicting: Tensor
    targets: Tensor
    owners: Tensor
    packing: Packing


def pack(examples: Sequence[EncodedExample], device: str | torch.device = "cpu") -> PackedBatch:
    """Lay `examples` end to end. An example's last token is predicted, but never predicts: nothing follows it.

    Raises: ValueError when there is no example.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    # The last token of an example is a target only, so it is no input.
    lengths = [len(example.tokens) - 1 for example in examples]
    starts = list(accumulate(lengths, initial=0))[:-1]
    rows = list(zip(starts, examples, strict=True))
    places = [
        range(start + example.num_prompt - 1, start + len(example.tokens) - 1) for start, example in rows
    ]

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)

    return PackedBatch(
        input_ids=tensor([token for example in examples for token in example.tokens[:-1]])[None],
        position_ids=tensor([position for length in lengths for position in range(length)])[None],
        predicting=tensor([place for run in places for place in run]),
        targets=tensor([token for example in examples for token in example.tokens[example.num_prompt :]]),
        owners=tensor([owner for owner, run in enumerate(places) for _ in run]),
        packing=packing_of(lengths, device),
    )


def packing_of(lengths: Sequence[int], device: str | torch.device = "cpu") -> Packing:
    """The packing of examples of these lengths, each at least 1."""
    longest, num_examples = max(lengths), len(lengths)
    if min(lengths) == longest:
        return Packing(num_examples, longest, None, None)
    sizes = torch.tensor(lengths)
    slots = torch.arange(longest)
    starts = sizes.cumsum(0) - sizes
    pad = starts[:, None] + torch.minimum(slots, sizes[:, None] - 1)  # [N, longest]
    unpad = torch.arange(num_examples * longest).view(num_examples, longest)[slots < sizes[:, None]]
    return Packing(num_examples, longest, pad.flatten().to(device), unpad.to(device))
