"""A Runner whose operations all ranks carry out: the first says what comes, then every one computes its part."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from engine.errors import RankLost
from engine.generation.adapters.store import PackedAdapter
from engine.generation.parallel.adapters import SplitAdapter
from engine.generation.parallel.group import RankGroup
from engine.generation.parallel.messages import (
    AdapterPlace,
    Operation,
    encode,
    encode_copy,
    encode_put,
    encode_step,
)
from engine.generation.runner import Runner
from engine.generation.step_inputs import StepInputs

# So often an idle engine asks the other ranks whether they are there.
BEAT_S = 5.0


class ParallelRunner(Runner):
    """The first rank's. An operation that fails on any rank is the last one: the ranks are no longer in step.

    Every operation raises RankLost then, with the cause.
    """

    idle_s = BEAT_S

    def __init__(self, ranks: RankGroup, *parts: Any) -> None:
        """`parts` are those of a Runner, computed with by this rank."""
        super().__init__(*parts)
        self._ranks = ranks
        self._is_in_step = True

    @torch.inference_mode()
    def compute(self, inputs: StepInputs) -> Tensor:
        with self._together():
            self._ranks.send(encode_step(inputs))
            return super().compute(inputs)

    @torch.inference_mode()
    def copy_blocks(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        with self._together():
            self._ranks.send(encode_copy(pairs))
            super().copy_blocks(pairs)

    def beat(self) -> None:
        with self._together():
            self._ranks.send(encode(Operation.BEAT))
            self._ranks.wait_for_all()

    def close(self) -> None:
        if self._is_in_step:  # else they wait for something else, and end when they are left alone
            with suppress(RankLost):
                self._ranks.send(encode(Operation.STOP))
        self._ranks.close()

    def place(self, slot: int, adapter: PackedAdapter) -> None:
        assert isinstance(adapter, SplitAdapter)
        with self._together():
            self._ranks.send(encode_put(AdapterPlace(slot, adapter.rank, tuple(adapter.linears))))
            for other, content in enumerate(adapter.others, 1):
                self._ranks.send_to(other, content)
            super().place(slot, adapter)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RankLost:
            self._is_in_step = False
            raise
        except Exception as error:
            self._is_in_step = False
            raise RankLost(
                f"a step failed on one of the generator's processes: {type(error).__name__}: {error}"
            ) from error
