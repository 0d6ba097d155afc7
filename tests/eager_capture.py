"""Recorded steps without a GPU: what was recorded is done again on the same tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.generation.adapters.store import AdapterStore
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.graphs.decode_graphs import DecodeGraphs


class EagerCapture:
    """A Capture. `num_repeats` counts steps that were repeated; each recording is said to hold `each` bytes."""

    def __init__(self, each: int = 0) -> None:
        self.num_bytes = 0
        self.num_recorded = 0
        self.num_repeats = 0
        self._each = each

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        self.num_recorded += 1
        self.num_bytes += self._each

        def repeat() -> None:
            self.num_repeats += 1
            with torch.inference_mode():
                work()

        return repeat


def eager_graphs(
    decoder: Decoder,
    attention: GpuAttention,
    store: AdapterStore | None = None,
    *,
    capture: EagerCapture | None = None,
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32),
    max_model_len: int = 512,
    max_bytes: int = 1,
) -> DecodeGraphs:
    return DecodeGraphs(
        decoder,
        attention,
        store,
        capture or EagerCapture(),
        sizes=sizes,
        max_model_len=max_model_len,
        max_bytes=max_bytes,
    )
