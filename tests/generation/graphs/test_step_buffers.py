"""What a recorded step reads: every step's numbers at the same place, rows of nobody harmless."""

from __future__ import annotations

import pytest
import torch

from engine.generation.attention.base import FlatBatch
from engine.generation.graphs.buffers import StepBuffers, StepView

CPU = torch.device("cpu")


@pytest.fixture
def buffers() -> StepBuffers:
    return StepBuffers(16, 100, 2, CPU)


def rows(view: StepView) -> list[tuple[int, ...]]:
    """Token, position, slot of keys and values, adapter and request of each row."""
    columns = (view.token_ids, view.attention.positions, view.kv_slots, view.adapters, view.attention.requests)
    return [tuple(row) for row in torch.stack(columns, 1).tolist()]


NOBODY = (0, -1, -1, -1, 0)
NO_TILES = [[0, row, 1, -1] for row in range(16)]


def test_each_row_has_its_token_position_slot_adapter_and_request(buffers: StepBuffers):
    view = buffers.view(8)
    buffers.write([7, 8, 9, 10], FlatBatch([1, 3], [20, 18], [[5, 3], [4, 6]]), [(1, 4, 2)], 8)
    assert rows(view) == [
        (7, 19, 3 * 16 + 3, -1, 0),
        (8, 15, 4 * 16 + 15, 2, 1),
        (9, 16, 6 * 16, 2, 1),
        (10, 17, 6 * 16 + 1, 2, 1),
        *[NOBODY] * 4,
    ]
    assert view.attention.tables[:2, :2].tolist() == [[5, 3], [4, 6]]
    # Request, first row, tokens and position of the first, two tokens to a tile.
    assert view.attention.tiles.tolist() == [[0, 0, 1, 19], [1, 1, 2, 15], [1, 3, 1, 17], *NO_TILES[4:8], [0] * 4]
    assert view.attention.longest == 100


def test_nothing_of_a_larger_step_before_is_left_in_a_smaller_one(buffers: StepBuffers):
    view = buffers.view(8)
    wide = FlatBatch([2] * 4, [30] * 4, [[2 * i, 2 * i + 1] for i in range(4)])
    buffers.write(list(range(8)), wide, [(0, 8, 1)], 8)
    buffers.write([5], FlatBatch([1], [1], [[9]]), [], 8)
    assert rows(view) == [(5, 0, 9 * 16, -1, 0), *[NOBODY] * 7]
    assert view.attention.tiles.tolist() == [[0, 0, 1, 0], *NO_TILES[1:8]]


def test_table_is_brought_over_again_whenever_its_request_or_its_blocks_change(buffers: StepBuffers):
    tables = buffers.view(4).attention.tables
    growing = [3]
    for step, table in enumerate((growing, growing, [3, 4], [8, 4], [8])):
        buffers.write([1], FlatBatch([1], [1], [table]), [], 1)
        assert tables[0, : len(table)].tolist() == table, step
    growing[0] = 6  # the scheduler's list, changed in place
    buffers.write([1], FlatBatch([1], [1], [growing]), [], 1)
    growing[0] = 7
    buffers.write([1], FlatBatch([1], [1], [growing]), [], 1)
    assert tables[0, 0] == 7


def test_table_that_changed_in_a_wide_step_is_right_in_a_narrow_one_and_back(buffers: StepBuffers):
    tables = buffers.view(4).attention.tables
    buffers.write([1, 2, 3], FlatBatch([1] * 3, [1] * 3, [[1], [2], [3]]), [], 4)
    buffers.write([1], FlatBatch([1], [1], [[5]]), [], 1)
    buffers.write([1, 2, 3], FlatBatch([1] * 3, [1] * 3, [[5], [2], [6]]), [], 4)
    assert tables[:3, 0].tolist() == [5, 2, 6]


def test_columns_begin_where_sixteen_bytes_are_read_at_once():
    view = StepBuffers(3, 40, 1, CPU).view(3)
    for tensor in (
        view.token_ids,
        view.attention.positions,
        view.kv_slots,
        view.attention.tiles,
        view.attention.tables,
    ):
        assert (tensor.storage_offset() * tensor.element_size()) % 16 == 0
