"""Recorded steps without a GPU: what was recorded is done again on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from engine.generation import engine as engine_module
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


def repeat_in_engines(monkeypatch: pytest.MonkeyPatch) -> EagerCapture:
    """Engines have a GPU's attention from now on, and repeat steps by what is returned."""
    capture = EagerCapture()

    def graphs(
        decoder: Decoder, attention: Any, store: AdapterStore, *others: object, max_model_len: int
    ) -> DecodeGraphs:
        return eager_graphs(decoder, attention, store, capture=capture, max_model_len=max_model_len)

    monkeypatch.setattr(engine_module, "build_attention", GpuAttention)
    monkeypatch.setattr(engine_module, "AdapterStore", partial(AdapterStore, backend="torch"))
    monkeypatch.setattr(engine_module, "build_graphs", graphs)
    return capture
