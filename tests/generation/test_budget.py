"""How many prompt tokens may join a step."""

from __future__ import annotations

import pytest

from engine.generation.budget import StepBudget

# 10 ms whatever the size, and 0.1 ms a token.
TABLE = {1: 0.0101, 8: 0.0108, 32: 0.0132, 128: 0.0228, 512: 0.0612}


def budget(max_stretch: float = 3.0) -> StepBudget:
    return StepBudget(TABLE, max_batched_tokens=512, max_stretch=max_stretch)


def test_prompts_alone_take_the_whole_step():
    assert budget().prefill_tokens(0) == 512


def test_chunk_keeps_the_step_within_the_stretch_and_to_whole_blocks():
    tokens = budget().prefill_tokens(8)
    assert tokens % 16 == 0
    table_s = budget().table_s
    assert table_s(8 + tokens) <= 3 * table_s(8) < table_s(8 + tokens + 32)


def test_prompts_always_advance_by_a_block():
    assert budget(max_stretch=1.0).prefill_tokens(8) == 16
    assert budget().prefill_tokens(600) == 16


def test_stretch_of_zero_leaves_the_size_of_the_step_alone():
    assert budget(max_stretch=0).prefill_tokens(12) == 500


def test_one_slow_step_shrinks_the_chunks_at_once_and_quick_ones_let_them_grow_slowly():
    each = budget()
    before = each.prefill_tokens(8)
    each.observe(8, 0, 96, 0.0108 + 96 * 0.0004)
    small = each.prefill_tokens(8)
    assert small <= before / 2
    each.observe(8, 0, 48, 0.0108 + 48 * 0.0001)
    assert small <= each.prefill_tokens(8) < before
    for _ in range(100):
        each.observe(8, 0, 48, 0.0108 + 48 * 0.0001)
    assert each.prefill_tokens(8) >= before - 16


def test_decodes_that_got_slower_allow_more():
    each = budget()
    before = each.prefill_tokens(8)
    for _ in range(50):
        each.observe(8, 0, 0, 0.03)
    assert each.prefill_tokens(8) > before


def test_table_is_read_between_and_beyond_its_sizes_and_never_falls():
    each = StepBudget({1: 0.02, 8: 0.01, 16: 0.03}, max_batched_tokens=64, max_stretch=2)
    assert each.table_s(8) == each.table_s(4) == 0.02
    assert each.table_s(12) == 0.025
    assert abs(each.table_s(32) - 0.05) < 1e-9
    assert StepBudget({4: 0.1}, max_batched_tokens=64, max_stretch=2).table_s(99) == 0.1


def with_quick_answers() -> StepBudget:
    """Answers alone take 1 ms; a step with prompt tokens 10 ms and 0.01 ms for each of them."""
    table = {1: 0.001, 64: 0.001, 128: 0.0113, 512: 0.0151}
    return StepBudget(table, max_batched_tokens=2048, max_stretch=2.5, least_chunk_s=0.01)


def test_chunk_stretches_what_the_smallest_one_takes_where_answers_alone_are_quicker():
    tokens = with_quick_answers().prefill_tokens(8)
    assert 1000 <= tokens <= 1504 and tokens % 16 == 0  # 15 ms of them


def test_steps_that_took_long_for_other_reasons_do_not_keep_such_chunks_small():
    each = with_quick_answers()
    before = each.prefill_tokens(8)
    each.observe(8, 0, 1000, 2.0)
    for _ in range(20):
        each.observe(8, 0, 16, 0.06)
    assert each.prefill_tokens(8) == before


def test_drafts_beside_quick_answers_cost_what_answers_do():
    assert with_quick_answers().draft_step_s(8, 2) == [0.001] * 3


def test_drafts_that_cost_more_than_the_table_says_are_found_out_while_answers_keep_their_own_cost():
    each = budget()
    promised = [cost - each.draft_step_s(8, 24)[0] for cost in each.draft_step_s(8, 24)]
    for drafts in [0, 8, 24, 16] * 150:
        each.observe(8, drafts, 0, 0.0108 + 4 * promised[drafts])
    found = each.draft_step_s(8, 24)
    assert found[0] == pytest.approx(0.0108, rel=0.05)
    assert [cost - found[0] for cost in found] == pytest.approx([4 * cost for cost in promised], rel=0.1)


def test_context_that_grows_beside_drafts_is_no_fault_of_theirs():
    each = budget()
    added = each.draft_step_s(1, 4)[4] - each.draft_step_s(1, 4)[0]
    for _ in range(100):
        each.observe(1, 4, 0, 2 * 0.0101 + added)
    costs = each.draft_step_s(1, 4)
    assert costs[0] == pytest.approx(2 * 0.0101, rel=0.05)
    assert costs[4] - costs[0] < 2 * added
