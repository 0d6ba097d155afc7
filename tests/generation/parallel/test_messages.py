"""What the first rank says is what the others hear."""

from __future__ import annotations

import torch

from engine.generation.attention.base import FlatBatch
from engine.generation.parallel.messages import (
    AdapterPlace,
    Operation,
    decode_copy,
    decode_put,
    decode_step,
    encode,
    encode_copy,
    encode_put,
    encode_step,
    operation_of,
)
from engine.generation.step_inputs import StepInputs


def test_tensor_parallel_step_arrives_as_it_was_without_blocks_for_tokens_to_come():
    batch = FlatBatch([1, 3], [17, 3], [[4, 9, 11], [2]], num_padding=2)
    message = encode_step(StepInputs([7, 1, 2, 3], batch, [0, 3], [(0, 1, 5), (1, 4, 2)]))
    assert message.dtype == torch.int32 and operation_of(message) is Operation.STEP
    heard = decode_step(message)
    assert heard == StepInputs(
        [7, 1, 2, 3], FlatBatch([1, 3], [17, 3], [[4, 9], [2]], num_padding=2), [0, 3], [(0, 1, 5), (1, 4, 2)]
    )


def test_tensor_parallel_step_without_logits_or_adapters_arrives():
    inputs = StepInputs([5], FlatBatch([1], [1], [[0]]), [], [])
    assert decode_step(encode_step(inputs)) == inputs


def test_tensor_parallel_copies_and_adapters_arrive():
    message = encode_copy([(1, 2), (3, 4)])
    assert operation_of(message) is Operation.COPY and decode_copy(message) == [(1, 2), (3, 4)]
    place = AdapterPlace(3, 16, ((0, "qkv"), (0, "down"), (11, "gate_up")))
    message = encode_put(place)
    assert operation_of(message) is Operation.PUT and decode_put(message) == place
    assert operation_of(encode(Operation.STOP)) is Operation.STOP
