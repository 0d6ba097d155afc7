"""The numbers of a step where a recorded one looks for them: written on the host, brought over by one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.generation.attention.base import FlatBatch
from engine.generation.sequence import BLOCK_TOKENS, num_blocks_for
from kernels.paged_attention import FixedPlan

_TOKENS, _POSITIONS, _SLOTS, _ADAPTERS, _REQUESTS, _TILES, _COLUMNS = 0, 1, 2, 3, 4, 5, 9
# So that every column begins where a GPU reads 16 bytes at once.
_ROW_MULTIPLE = 8
# Token, position, slot of keys and values, adapter and request of a row that belongs to nobody: harmless.
_NOBODY = (0, -1, -1, -1, 0)


@dataclass(frozen=True, slots=True)
class StepView:
    """The first T rows, int32 on the device. `kv_slots` and `adapters` are -1 in rows without one."""

    token_ids: Tensor
    kv_slots: Tensor
    adapters: Tensor
    attention: FixedPlan


class StepBuffers:
    """Room for steps of up to `max_tokens` tokens, each of a context of up to `max_len`. One thread uses it."""

    def __init__(self, max_tokens: int, max_len: int, tile_tokens: int, device: torch.device) -> None:
        """`tile_tokens`: of the attention's tiles, see FixedPlan."""
        self._rows = -(-max_tokens // _ROW_MULTIPLE) * _ROW_MULTIPLE
        self._max_len = max_len
        self._tile_tokens = tile_tokens
        self._width = num_blocks_for(max_len)
        self._table_start = _COLUMNS * self._rows
        size = self._table_start + self._rows * self._width
        is_cuda = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=is_cuda)
        self._device = torch.zeros(size, dtype=torch.int32, device=device)
        numbers = self._host.numpy()
        self._columns = numbers[: _TILES * self._rows].reshape(_TILES, self._rows)
        self._tiles = numbers[_TILES * self._rows : self._table_start].reshape(self._rows, 4)
        self._tables = numbers[self._table_start :].reshape(self._rows, self._width)
        self._known: list[list[int]] = [[] for _ in range(self._rows)]  # what each row of the tables says
        new_event: Any = torch.cuda.Event
        self._copied: Any = new_event() if is_cuda else None
        self.write([], FlatBatch([], [], []), [], self._rows)

    def view(self, size: int) -> StepView:
        """What a recorded step of `size` tokens reads."""
        columns = self._device[: _TILES * self._rows].view(_TILES, self._rows)[:, :size]
        tiles = self._device[_TILES * self._rows : self._table_start].view(self._rows, 4)[:size]
        tables = self._device[self._table_start :].view(self._rows, self._width)
        attention = FixedPlan(tables, tiles, columns[_REQUESTS], columns[_POSITIONS], self._max_len)
        return StepView(columns[_TOKENS], columns[_SLOTS], columns[_ADAPTERS], attention)

    def write(
        self, token_ids: Sequence[int], batch: FlatBatch, runs: Sequence[tuple[int, int, int]], size: int
    ) -> None:
        """Bring a step over: `runs` are start, stop and slot of rows that use an adapter; the rest up to `size` is
        nobody's.
        """
        if self._copied is not None:
            self._copied.synchronize()  # of the step before, so it has long been
        positions: list[int] = []
        kv_slots: list[int] = []
        requests: list[int] = []
        tiles: list[tuple[int, int, int, int]] = []
        num_known = 0  # rows of the tables up to the last that is new
        for request, (num_new, context, table) in enumerate(
            zip(batch.num_new, batch.contexts, batch.block_tables, strict=True)
        ):
            for first in range(0, num_new, self._tile_tokens):
                count = min(self._tile_tokens, num_new - first)
                tiles.append((request, len(positions) + first, count, context - num_new + first))
            for position in range(context - num_new, context):
                positions.append(position)
                kv_slots.append(table[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS)
                requests.append(request)
            if self._known[request] != table:
                used = min(len(table), self._width)
                self._tables[request, :used] = table[:used]
                self._known[request] = list(table)
                num_known = request + 1
        count = len(token_ids)
        for column, values in enumerate((token_ids, positions, kv_slots, None, requests)):
            if values is not None:
                self._columns[column, :count] = values
            self._columns[column, count:size] = _NOBODY[column]
        self._columns[_ADAPTERS, :count] = -1
        for start, stop, slot in runs:
            self._columns[_ADAPTERS, start:stop] = slot
        tiles += [(0, row, 1, -1) for row in range(count, size)]
        if tiles:
            self._tiles[: len(tiles)] = tiles
        self._tiles[len(tiles) : size] = 0
        stop = self._table_start + num_known * self._width
        self._device[:stop].copy_(self._host[:stop], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
