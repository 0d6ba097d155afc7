"""What the first rank tells the others, as int32 numbers: an operation, counts, and what they count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from engine.generation.adapters.store import FUSED, Fused
from engine.generation.attention.base import FlatBatch
from engine.generation.sequence import num_blocks_for
from engine.generation.step_inputs import StepInputs

_FUSED: tuple[Fused, ...] = tuple(FUSED)


class Operation(IntEnum):
    """The first number of a message."""

    STEP = 1  # compute a step
    COPY = 2  # copy KV blocks
    PUT = 3  # put an adapter, whose weights follow, into a slot
    BEAT = 4  # say that you are there
    STOP = 5


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """An adapter on its way into a slot: its padded rank, and the linears (layer, which) that it changes, in order."""

    slot: int
    rank: int
    linears: tuple[tuple[int, Fused], ...]


def encode_step(inputs: StepInputs) -> Tensor:
    """A step's message."""
    batch = inputs.batch
    # A table may have blocks for tokens to come.
    tables = [table[: num_blocks_for(n)] for n, table in zip(batch.contexts, batch.block_tables, strict=True)]
    counts = (len(batch.num_new), len(inputs.token_ids), len(inputs.rows), len(inputs.runs), batch.num_padding)
    runs = [number for run in inputs.runs for number in run]
    blocks = [block for table in tables for block in table]
    lists = (batch.num_new, batch.contexts, inputs.token_ids, inputs.rows, runs, blocks)
    return _message(Operation.STEP, counts, *lists)


def decode_step(message: Tensor) -> StepInputs:
    """The step of a message."""
    numbers = _Numbers(message)
    num_sequences, num_tokens, num_rows, num_runs, num_padding = numbers.take(5)
    num_new, contexts = numbers.take(num_sequences), numbers.take(num_sequences)
    token_ids, rows = numbers.take(num_tokens), numbers.take(num_rows)
    runs = numbers.take(3 * num_runs)
    tables = [numbers.take(num_blocks_for(context)) for context in contexts]
    return StepInputs(
        token_ids,
        FlatBatch(num_new, contexts, tables, num_padding),
        rows,
        [(runs[i], runs[i + 1], runs[i + 2]) for i in range(0, len(runs), 3)],
    )


def encode_copy(pairs: Sequence[tuple[int, int]]) -> Tensor:
    """The message to copy KV blocks, (from, to)."""
    return _message(Operation.COPY, [len(pairs)], [number for pair in pairs for number in pair])


def decode_copy(message: Tensor) -> list[tuple[int, int]]:
    """The pairs of a message."""
    numbers = _Numbers(message)
    flat = numbers.take(2 * numbers.take(1)[0])
    return list(zip(flat[::2], flat[1::2], strict=True))


def encode_put(place: AdapterPlace) -> Tensor:
    """The message that an adapter's weights come next."""
    linears = [number for layer, fused in place.linears for number in (layer, _FUSED.index(fused))]
    return _message(Operation.PUT, (place.slot, place.rank, len(place.linears)), linears)


def decode_put(message: Tensor) -> AdapterPlace:
    """Where to put it."""
    numbers = _Numbers(message)
    slot, rank, count = numbers.take(3)
    flat = numbers.take(2 * count)
    linears = tuple((layer, _FUSED[index]) for layer, index in zip(flat[::2], flat[1::2], strict=True))
    return AdapterPlace(slot, rank, linears)


def encode(operation: Operation) -> Tensor:
    """The message of an operation that needs nothing else."""
    return _message(operation)


def operation_of(message: Tensor) -> Operation:
    """What a message asks for."""
    return Operation(int(message[0]))


def _message(operation: Operation, *lists: Iterable[int]) -> Tensor:
    numbers = [int(operation)]
    for each in lists:
        numbers += each
    return torch.from_numpy(np.array(numbers, dtype=np.int32))


class _Numbers:
    """A message behind its operation, read from front to back."""

    def __init__(self, message: Tensor) -> None:
        self._numbers: list[int] = message.tolist()
        self._next = 1

    def take(self, count: int) -> list[int]:
        """The next `count`."""
        start, self._next = self._next, self._next + count
        return self._numbers[start : self._next]
