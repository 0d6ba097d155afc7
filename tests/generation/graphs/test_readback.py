"""Ids of two steps on their way at once."""

from __future__ import annotations

import torch

from engine.generation.graphs.readback import Readback


def test_ids_of_two_steps_are_kept_though_the_tensor_they_came_from_is_overwritten():
    readback = Readback(3, torch.device("cpu"))
    ids = torch.tensor([1, 2, 3])
    first = readback.begin(ids)
    ids += 10
    second = readback.begin(ids[:2])
    ids += 10
    assert first() == [1, 2, 3] and second() == [11, 12]
    third = readback.begin(ids)
    assert third() == [21, 22, 23]
