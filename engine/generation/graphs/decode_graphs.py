"""Steps in which every token's logits are wanted (answers and their drafts), recorded for each size.

A recording is made with adapters or without: the two small products of every linear cost nothing where nobody has one.
And with a draw of each token or with the best ones alone, which greedy answers ask for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import NamedTuple

import torch
from torch import Tensor

from engine.generation.adapters.store import AdapterStore
from engine.generation.attention.base import FlatBatch
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.graphs.buffers import StepBuffers
from engine.generation.graphs.capture import Capture
from engine.generation.graphs.draws import Draw, DrawBuffers
from engine.generation.graphs.readback import Readback
from engine.generation.graphs.sizes import size_for
from kernels.paged_attention import decode_rows

# Of recording before the first request, and of all recordings' memory: what is not recorded runs as it is.
_PREPARE_S = 20.0
MAX_BYTES = 2 << 30

_log = logging.getLogger(__name__)


class _Kind(NamedTuple):
    size: int
    has_adapters: bool
    is_drawn: bool


class DecodeGraphs:
    """The recordings of one decoder. One thread uses it."""

    def __init__(
        self,
        decoder: Decoder,
        attention: GpuAttention,
        store: AdapterStore | None,
        capture: Capture,
        *,
        sizes: tuple[int, ...],
        max_model_len: int,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`sizes` ascending, in tokens."""
        spec, device = decoder.spec, decoder.device
        self._decoder, self._attention, self._store, self._capture = decoder, attention, store, capture
        self._sizes = sizes
        self._max_model_len = max_model_len
        self._max_bytes = max_bytes
        group = spec.num_heads // spec.num_kv_heads
        self._buffers = StepBuffers(sizes[-1], max_model_len, decode_rows(group) // group, device)
        self._rows = torch.arange(sizes[-1], device=device)
        self._logits = torch.empty((sizes[-1], spec.vocab_size), dtype=decoder.dtype, device=device)
        self._chosen = torch.empty(sizes[-1], dtype=torch.int64, device=device)
        self._draws = DrawBuffers(sizes[-1], spec.vocab_size, device)
        self._readback = Readback(sizes[-1], device)
        self._recorded: dict[_Kind, Callable[[], None]] = {}
        self._layout = 0  # of the adapters' tensors that the recordings read
        self._is_off = self._is_drawing_off = False

    @property
    def max_tokens(self) -> int:
        """Of the largest step that is recorded; 0 once recording has failed."""
        return 0 if self._is_off else self._sizes[-1]

    @property
    def num_recorded(self) -> int:
        """Recordings that can be repeated."""
        return len(self._recorded)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Record all sizes without adapters, the largest first, whose memory the others then share."""
        started = monotonic()
        for size in reversed(self._sizes):
            if monotonic() - started > _PREPARE_S or self._is_off:
                break
            self._recording(_Kind(size, has_adapters=False, is_drawn=False))
        _log.info("%d sizes of step recorded in %.1f s", len(self._recorded), monotonic() - started)

    @torch.inference_mode()
    def run(
        self, token_ids: Sequence[int], batch: FlatBatch, runs: Sequence[tuple[int, int, int]]
    ) -> tuple[Tensor, Tensor] | None:
        """Logits [T, V] and the best token [T] int64 of each row, -1 where its logit is no number; None: not recorded.

        Both are overwritten by the next step. `runs` are start, stop and slot of rows that use an adapter.
        """
        found = self._find(len(token_ids), has_adapters=bool(runs))
        if found is None or max(batch.contexts) > self._max_model_len:
            return None
        size, repeat = found
        self._buffers.write(token_ids, batch, runs, size)
        repeat()
        return self._logits[: len(token_ids)], self._chosen[: len(token_ids)]

    @torch.inference_mode()
    def launch(
        self,
        tokens: Sequence[int],
        batch: FlatBatch,
        runs: Sequence[tuple[int, int, int]],
        draws: Sequence[Draw] = (),
        *,
        is_ahead: bool = False,
    ) -> Callable[[], list[int]] | None:
        """Begin the same without waiting. What is returned waits for the token of each row, and is called before the
        second launch after this one.

        `draws` say how each row's token is drawn; empty: the best ones. `is_ahead`: `tokens` are rows of the step
        launched before, and stand for its tokens. None: not recorded, or only by overwriting those.
        """
        found = self._find(len(tokens), has_adapters=bool(runs), is_drawn=bool(draws), may_record=not is_ahead)
        if found is None or max(batch.contexts) > self._max_model_len:
            return None
        size, repeat = found
        self._buffers.write(tokens, batch, runs, size)
        if draws:
            self._draws.write(draws, size)
        if is_ahead:
            column = self._buffers.view(size).token_ids[: len(tokens)]
            # No -1 reaches the embeddings: that step will be thrown away, and must not take the device with it.
            column.copy_(self._chosen.index_select(0, column).clamp_(min=0))
        repeat()
        return self._readback.begin(self._chosen[: len(tokens)])

    def _find(
        self, num_tokens: int, *, has_adapters: bool, is_drawn: bool = False, may_record: bool = True
    ) -> tuple[int, Callable[[], None]] | None:
        """The smallest recording that holds such a step, made now where that may be."""
        size = size_for(num_tokens, self._sizes)
        if size is None or self._is_off or (is_drawn and self._is_drawing_off):
            return None
        wanted = _Kind(size, has_adapters, is_drawn)
        repeat = self._recording(wanted, may_record=may_record)
        if repeat is not None:
            return size, repeat
        larger = sorted(known for known in self._recorded if known.size > size and known[1:] == wanted[1:])
        return (larger[0].size, self._recorded[larger[0]]) if larger else None

    def _recording(self, kind: _Kind, *, may_record: bool = True) -> Callable[[], None] | None:
        if self._store is not None and self._store.layout != self._layout:
            # They would read tensors that are no longer the adapters'.
            self._layout = self._store.layout
            self._recorded = {known: repeat for known, repeat in self._recorded.items() if not known.has_adapters}
        if kind not in self._recorded:
            if not may_record or self._capture.num_bytes >= self._max_bytes:
                return None
            self._buffers.write([], FlatBatch([], [], []), [], kind.size)  # nobody's: recording it changes nothing
            self._draws.write([], kind.size)
            try:
                self._recorded[kind] = self._capture.record(partial(self._compute, kind))
            except Exception as error:
                self._give_up(kind, error)
                return None
        return self._recorded[kind]

    def _give_up(self, kind: _Kind, error: Exception) -> None:
        """A recording failed: no further one is tried, and those that drawing has no part in stay if it is at fault."""
        if kind.is_drawn:
            _log.warning("draws cannot be recorded; sampled answers are read step by step", exc_info=error)
            self._is_drawing_off = True
            self._recorded = {known: repeat for known, repeat in self._recorded.items() if not known.is_drawn}
            return
        _log.warning("steps cannot be recorded and are launched one by one", exc_info=error)
        self._is_off = True
        self._recorded.clear()

    def _compute(self, kind: _Kind) -> None:
        size = kind.size
        step = self._buffers.view(size)
        plan = self._attention.fixed_plan(step.attention, step.kv_slots)
        adapters = None
        if kind.has_adapters:
            assert self._store is not None
            adapters = self._store.fixed_plan(step.adapters)
        logits = self._decoder.forward(step.token_ids, self._attention, plan, self._rows[:size], adapters)
        if kind.is_drawn:
            self._chosen[:size] = self._draws.sample(logits)
            return
        self._logits[:size] = logits
        best, ids = logits.max(-1)
        self._chosen[:size] = ids.masked_fill(~best.isfinite(), -1)
