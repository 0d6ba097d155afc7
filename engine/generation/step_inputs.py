"""What a forward is given: numbers alone, so that they can be recorded, repeated and sent to other processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.generation.attention.base import FlatBatch


@dataclass(frozen=True, slots=True)
class StepInputs:
    """`token_ids` are the new tokens of `batch`, one after another; logits are wanted after those at `rows`.

    `runs` are start, stop and adapter slot of tokens in a row that use an adapter, ascending.
    """

    token_ids: list[int]
    batch: FlatBatch
    rows: list[int]
    runs: Sequence[tuple[int, int, int]] = ()
