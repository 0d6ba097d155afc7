"""What all layers of a step share: who attends to which blocks, and how the work is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK_TOKENS = 16
# Items a thread should find in the list, so that unequal ones even out; and blocks below which cutting costs more.
_ITEMS_PER_THREAD = 4
_MIN_ITEM_BLOCKS = 4

# Of a piece on a GPU: 512 tokens. And what asks for no sharing.
_GPU_ITEM_BLOCKS = 32
_NEVER = 1 << 30

Int32s = NDArray[np.int32]
# Of a matrix product on a GPU.
LEAST_ROWS = 16


def decode_rows(group: int) -> int:
    """Rows of a tile for a few tokens: the `group` query heads of a KV head for each of `rows // group` tokens."""
    return max(1 << (group - 1).bit_length(), LEAST_ROWS)


@dataclass(frozen=True, slots=True)
class FixedPlan:
    """A step whose numbers lie on the device alone: what is launched for one serves all of the same number of tokens.

    A token of nobody has position -1, in `positions` and in a tile of its own; its row becomes 0.
    """

    tables: Tensor  # [S, blocks of the longest context] int32
    tiles: Tensor  # [T, 4] int32 as `PagedPlan.tiles` of `decode_rows(group) // group` tokens; 0 tokens: no tile
    requests: Tensor  # [T] int32, whose token it is: a row of `tables`
    positions: Tensor  # [T] int32
    longest: int  # context that there can be


@dataclass(frozen=True, slots=True)
class Item:
    """Blocks [first, last) of request `table`'s table, attended to by all query tokens of `requests`."""

    table: int
    first: int
    last: int
    requests: tuple[int, ...]


class Cascade(NamedTuple):
    """Items cut into tiles of query tokens, int32 on one device. A pair is an item and a row of the flat batch."""

    tiles: Tensor  # [n, 5]: row of the tables, first and last block, first pair, pairs
    rows: Tensor  # [P], of each pair
    starts: Tensor  # [T + 1], where the pairs of each row begin in `by_row`
    by_row: Tensor  # [P]
    positions: Tensor  # [T]


@dataclass(frozen=True)
class PagedPlan:
    """Request i brings `num_new[i]` query tokens, the last of `contexts[i]`; `tables` [S, max blocks] int32.

    A request may bring none; its blocks are then read for nobody.
    """

    num_new: tuple[int, ...]
    contexts: tuple[int, ...]
    tables: Tensor
    min_shared_blocks: int
    _tiles: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)
    _cascades: dict[int, Cascade] = field(default_factory=dict, compare=False, repr=False)

    def tiles(self, num_tokens: int) -> Tensor:
        """Each request's new tokens in pieces of at most `num_tokens`: [n, 4] int32 on the tables' device.

        Columns: request, first row of the flat batch, tokens, position of the first.
        """
        if num_tokens not in self._tiles:
            starts = np.cumsum((0, *self.num_new))
            found = [
                (request, starts[request] + first, min(num_tokens, new - first), context - new + first)
                for request, (new, context) in enumerate(zip(self.num_new, self.contexts, strict=True))
                for first in range(0, new, num_tokens)
            ]
            self._tiles[num_tokens] = torch.tensor(np.array(found, np.int32), device=self.tables.device)
        return self._tiles[num_tokens]

    @cached_property
    def is_shared(self) -> bool:
        """Whether blocks of several requests are to be read once."""
        return self.min_shared_blocks < _NEVER and any(len(item.requests) > 1 for item in self.items)

    def cascade(self, num_tokens: int) -> Cascade:
        """`items` for a GPU, with at most `num_tokens` query tokens in a tile, on the tables' device."""
        if num_tokens not in self._cascades:
            tables, firsts, lasts, pairs, rows, starts, by_row, positions = self.arrays
            tiles = [
                (table, first, last, pair, min(num_tokens, stop - pair))
                for table, first, last, begin, stop in zip(tables, firsts, lasts, pairs, pairs[1:], strict=False)
                for pair in range(int(begin), int(stop), num_tokens)
            ]
            arrays = (np.array(tiles, np.int32), rows, starts, by_row, positions)
            self._cascades[num_tokens] = Cascade(*(torch.from_numpy(each).to(self.tables.device) for each in arrays))
        return self._cascades[num_tokens]

    @cached_property
    def items(self) -> list[Item]:
        """The work, shared blocks apart, in pieces of like size."""
        table = self.tables.cpu().numpy()
        ends = [-(-context // BLOCK_TOKENS) for context in self.contexts]
        # Only blocks before everybody's new tokens can be shared: those are full, and visible to every query.
        settled = [(c - n) // BLOCK_TOKENS for c, n in zip(self.contexts, self.num_new, strict=True)]
        asking = [request for request, new in enumerate(self.num_new) if new]
        runs = list(_runs(table, settled, ends, asking, 0, self.min_shared_blocks))
        total = sum(run.last - run.first for run in runs)
        longest = max(-(-total // (_ITEMS_PER_THREAD * torch.get_num_threads())), _MIN_ITEM_BLOCKS)
        if self.tables.is_cuda:
            longest = _GPU_ITEM_BLOCKS
        return [
            Item(run.table, first, min(first + longest, run.last), run.requests)
            for run in runs
            for first in range(run.first, run.last, longest)
        ]

    @cached_property
    def arrays(self) -> tuple[Int32s, ...]:
        """For the native kernel: table, first and last block and first pair of each item; row of each pair;
        first pair and pairs of each row; position of each row.
        """
        starts = np.concatenate(([0], np.cumsum(self.num_new)))
        rows_of = [range(int(starts[i]), int(starts[i + 1])) for i in range(len(self.num_new))]
        rows = [[row for request in item.requests for row in rows_of[request]] for item in self.items]
        pair_rows = np.array([row for part in rows for row in part], dtype=np.int32)
        by_row = np.argsort(pair_rows, kind="stable").astype(np.int32)
        counts = np.bincount(pair_rows, minlength=int(starts[-1]))
        positions = [c - n + i for c, n in zip(self.contexts, self.num_new, strict=True) for i in range(n)]
        return (
            np.array([item.table for item in self.items], dtype=np.int32),
            np.array([item.first for item in self.items], dtype=np.int32),
            np.array([item.last for item in self.items], dtype=np.int32),
            np.cumsum([0, *(len(part) for part in rows)]).astype(np.int32),
            pair_rows,
            np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
            by_row,
            np.array(positions, dtype=np.int32),
        )

    @cached_property
    def pointers(self) -> tuple[int, ...]:
        """Addresses of `arrays` and of the tables; they live as long as the plan."""
        return (*(array.ctypes.data for array in self.arrays), self.tables.data_ptr())


def plan_paged(
    num_new: Sequence[int],
    contexts: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    *,
    device: torch.device,
    min_shared_blocks: int = _NEVER,
) -> PagedPlan:
    """Plan a step. Blocks that requests have in common are read once where at least `min_shared_blocks` reads are
    saved; the default shares nothing.

    Raises: ValueError when the lengths disagree, a context is shorter than its new tokens, or a table too short.
    """
    for new, context, table in zip(num_new, contexts, block_tables, strict=True):
        if not 0 <= new <= context or len(table) * BLOCK_TOKENS < context:
            raise ValueError(f"plan_paged: {new} new tokens of {context}, in {len(table)} blocks of {BLOCK_TOKENS}")
    width = max(-(-context // BLOCK_TOKENS) for context in contexts)
    padded = np.zeros((len(contexts), width), dtype=np.int32)
    for row, table in enumerate(block_tables):
        used = min(len(table), width)
        padded[row, :used] = table[:used]
    tables = torch.from_numpy(padded).to(device)
    return PagedPlan(tuple(num_new), tuple(contexts), tables, min_shared_blocks)


def _runs(
    table: Int32s, settled: Sequence[int], ends: Sequence[int], requests: Sequence[int], start: int, min_shared: int
) -> Iterable[Item]:
    """Items that cover all blocks from `start` on of requests whose blocks before `start` are the same."""
    groups: dict[int, list[int]] = {}
    alone: list[int] = []
    for request in requests:
        if start < settled[request] and len(requests) > 1:
            groups.setdefault(int(table[request, start]), []).append(request)
        else:
            alone.append(request)
    for group in groups.values():
        shared = _common(table, min(settled[request] for request in group), group, start) if len(group) > 1 else start
        if (len(group) - 1) * (shared - start) >= min_shared:
            yield Item(group[0], start, shared, tuple(group))
            yield from _runs(table, settled, ends, group, shared, min_shared)
        else:
            alone += group
    for request in alone:
        if start < ends[request]:
            yield Item(request, start, ends[request], (request,))


def _common(table: Int32s, stop: int, group: Sequence[int], start: int) -> int:
    """First block from `start` on, up to `stop`, where the tables of `group` differ."""
    part = table[list(group), start:stop]
    differs = np.flatnonzero((part != part[0]).any(0))
    return start + int(differs[0]) if len(differs) else stop
