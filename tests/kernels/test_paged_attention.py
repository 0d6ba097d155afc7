"""Paged attention against float32, over shapes, windows and shared blocks."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_checks import BACKENDS, DTYPES, NEEDS_TRITON, WITH_TRITON, WITH_TRITON_AND_DTYPE, assert_earned, poison

from kernels.paged_attention import FixedPlan, PagedPlan, decode_rows, merge_attention, paged_attention, plan_paged
from kernels.paged_attention.reference import paged_attention_reference
from kernels.paged_attention.torch_op import paged_attention_torch

pytestmark = pytest.mark.usefixtures("poisoned_memory")
CPU = torch.device("cpu")
NUM_BLOCKS = 64


def caches(kv_heads: int, dim: int, dtype: torch.dtype, plan: PagedPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Random keys and values; slots beyond every context hold NaN, as memory that nobody wrote may."""
    keys, values = (torch.randn(NUM_BLOCKS, 16, kv_heads, dim).to(dtype) for _ in range(2))
    written = torch.zeros(NUM_BLOCKS * 16, dtype=torch.bool)
    for context, table in zip(plan.contexts, plan.tables, strict=True):
        for position in range(context):
            written[int(table[position // 16]) * 16 + position % 16] = True
    for cache in (keys, values):
        cache.flatten(0, 1)[~written] = float("nan")
    return keys, values


def check(
    plan: PagedPlan,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    window: int,
    backend: str,
    *,
    has_lse: bool = False,
) -> None:
    torch.manual_seed(0)
    keys, values = caches(kv_heads, dim, dtype, plan)
    query = torch.randn(sum(plan.num_new), heads, dim).to(dtype)
    options = {"scale": dim**-0.5, "window": window}
    exact = paged_attention_reference(query, keys.nan_to_num(), values.nan_to_num(), plan, **options)
    eager = paged_attention_torch(query, keys, values, plan, **options)
    if not has_lse:
        assert_earned(paged_attention(query, keys, values, plan, backend=backend, **options), exact, eager)
        return
    lse, exact_lse = (torch.empty(query.shape[:2]) for _ in range(2))
    poison(lse)
    found = paged_attention(query, keys, values, plan, backend=backend, lse=lse, **options)
    assert_earned(found, exact, eager)
    paged_attention_reference(query, keys.nan_to_num(), values.nan_to_num(), plan, lse=exact_lse, **options)
    torch.testing.assert_close(lse, exact_lse, rtol=0, atol=2e-3 if dtype != torch.float32 else 1e-5)


def tables_for(contexts: list[int], num_shared: int = 0, seed: int = 0) -> list[list[int]]:
    """Block tables of distinct blocks in no order; the first `num_shared` blocks are everybody's."""
    free = random.Random(seed).sample(range(NUM_BLOCKS), NUM_BLOCKS)
    shared = [free.pop() for _ in range(num_shared)]
    return [[*shared, *(free.pop() for _ in range(max(-(-c // 16) - num_shared, 0)))] for c in contexts]


@pytest.mark.parametrize(("backend", "dtype"), WITH_TRITON_AND_DTYPE)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (8, 2, 128), (4, 4, 80), (7, 1, 16), (5, 5, 64)])
@pytest.mark.parametrize("window", [0, 20])
def test_decodes_and_drafts_equal_float32(backend, dtype, heads, kv_heads, dim, window):
    contexts = [1, 15, 16, 17, 70, 33, 40]
    plan = plan_paged([1, 1, 1, 1, 1, 3, 8], contexts, tables_for(contexts), device=CPU)
    check(plan, heads, kv_heads, dim, dtype, window, backend)


@pytest.mark.parametrize(("backend", "dtype"), WITH_TRITON_AND_DTYPE)
@pytest.mark.parametrize("window", [0, 20])
def test_shared_blocks_read_once_give_the_same(backend, dtype, window):
    contexts = [70, 81, 64, 100]
    tables = tables_for(contexts, num_shared=3)
    tables[1][3] = tables[0][3]  # two of them share one more
    plan = plan_paged([1, 1, 2, 1], contexts, tables, device=CPU, min_shared_blocks=1)
    assert any(len(item.requests) == 4 for item in plan.items) and any(len(item.requests) == 2 for item in plan.items)
    check(plan, 9, 3, 64, dtype, window, backend)


@NEEDS_TRITON
@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("contexts", [[1, 17, 70, 33, 300], [300, 290]])  # whole, and split among programs
def test_logarithms_of_the_sums_equal_float32(contexts, dtype, window):
    for backend in ("torch", "triton"):
        plan = plan_paged([1] * len(contexts), contexts, tables_for(contexts), device=CPU)
        check(plan, 4, 2, 16, dtype, window, backend, has_lse=True)


@NEEDS_TRITON
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_blocks_shared_by_any_requests_and_read_once_give_the_same(data):
    count, num_shared = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 3))
    contexts = [num_shared * 16 + data.draw(st.integers(1, 60)) for _ in range(count)]
    num_new = sorted(min(data.draw(st.integers(1, 20)), context - num_shared * 16) for context in contexts)
    # Sorting may give a request more new tokens than lie behind the shared blocks.
    assume(all(c - n >= 16 * num_shared for c, n in zip(contexts, num_new, strict=True)))
    plan = plan_paged(num_new, contexts, tables_for(contexts, num_shared), device=CPU, min_shared_blocks=1)
    assert plan.is_shared
    kv_heads, group = data.draw(st.sampled_from([(1, 3), (2, 2), (1, 1)]))
    dtype, window = data.draw(st.sampled_from([torch.float32, torch.float16])), data.draw(st.sampled_from([0, 1, 33]))
    dim, has_lse = data.draw(st.sampled_from([16, 24])), data.draw(st.booleans())
    check(plan, kv_heads * group, kv_heads, dim, dtype, window, "triton", has_lse=has_lse)


@NEEDS_TRITON
def test_cascade_reads_a_shared_block_in_one_tile_and_its_tokens_merge_all_pairs():
    contexts = [70, 81, 64]
    plan = plan_paged([1, 2, 1], contexts, tables_for(contexts, 3), device=CPU, min_shared_blocks=1)
    work = plan.cascade(16)
    shared = [tile for tile in work.tiles.tolist() if tile[1] == 0]
    assert [tile[4] for tile in shared] == [4]  # one tile for the four tokens of all three
    assert work.starts.tolist()[-1] == len(work.rows) == len(set(work.by_row.tolist()))
    assert work.positions.tolist() == [69, 79, 80, 63]
    assert [tile[4] for tile in plan.cascade(3).tiles.tolist() if tile[1] == 0] == [3, 1]


def test_plan_that_shares_nothing_needs_no_items_to_say_so():
    contexts = [70, 81]
    plan = plan_paged([1, 1], contexts, tables_for(contexts, 3), device=CPU)
    assert not plan.is_shared and "items" not in vars(plan)


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=NEEDS_TRITON)])
def test_attention_to_parts_of_the_keys_merges_to_attention_to_all(backend):
    torch.manual_seed(0)
    contexts, before = [70, 41], 32
    tables = tables_for(contexts)
    keys, values = (torch.randn(NUM_BLOCKS, 16, 2, 16) for _ in range(2))
    query = torch.randn(2, 4, 16)
    whole = plan_paged([1, 1], contexts, tables, device=CPU)
    first = plan_paged([1, 1], [before] * 2, [table[:2] for table in tables], device=CPU)
    rest = plan_paged([1, 1], [c - before for c in contexts], [table[2:] for table in tables], device=CPU)
    outs, lses = [], []
    for plan in (first, rest, whole):
        lse = torch.empty(2, 4)
        outs.append(paged_attention(query, keys, values, plan, scale=0.25, lse=lse, backend=backend))
        lses.append(lse)
    nothing = torch.full((2, 4, 16), float("nan"))  # a part without keys
    merged, lse = merge_attention(
        torch.stack([*outs[:2], nothing]), torch.stack([*lses[:2], torch.full((2, 4), float("-inf"))])
    )
    torch.testing.assert_close(merged, outs[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, lses[2], rtol=1e-5, atol=1e-6)
    merged, lse = merge_attention(nothing[None], torch.full((1, 2, 4), float("-inf")))
    assert not merged.any() and (lse == float("-inf")).all()
    with pytest.raises(ValueError, match=r"merge_attention: outs \(2, 4, 16\)"):
        merge_attention(nothing, lse)


def test_logarithms_are_refused_where_they_do_not_fit_or_no_kernel_gives_them():
    plan = plan_paged([1], [1], [[0]], device=CPU)
    cache, query = torch.zeros(1, 16, 1, 8), torch.zeros(1, 1, 8)
    with pytest.raises(ValueError, match=r"lse \(\(1, 2\), torch.float32\)"):
        paged_attention(query, cache, cache, plan, scale=1.0, lse=torch.empty(1, 2))
    with pytest.raises(RuntimeError, match="'native' is absent where lse is asked for"):
        paged_attention(query, cache, cache, plan, scale=1.0, lse=torch.empty(1, 1), backend="native")
    with pytest.raises(RuntimeError, match="'torch' is absent where a FixedPlan's lse"):
        paged_attention(query, cache, cache, fixed(plan, 1, 1, 16), scale=1.0, lse=torch.empty(1, 1), backend="torch")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_batch_equals_float32(backend, data):
    count = data.draw(st.integers(1, 5))
    num_shared = data.draw(st.integers(0, 2))
    contexts = [num_shared * 16 + data.draw(st.integers(1, 100)) for _ in range(count)]
    num_new = sorted(min(data.draw(st.integers(1, 9)), c - num_shared * 16) for c in contexts)
    num_new = [min(n, c) for n, c in zip(num_new, contexts, strict=True)]
    minimum = data.draw(st.sampled_from([1, 2, 1 << 30]))
    plan = plan_paged(num_new, contexts, tables_for(contexts, num_shared), device=CPU, min_shared_blocks=minimum)
    kv_heads = data.draw(st.integers(1, 3))
    heads = kv_heads * data.draw(st.sampled_from([1, 2, 3, 5]))
    dim = data.draw(st.sampled_from([16, 24, 64, 128]))
    dtype = data.draw(st.sampled_from(DTYPES))
    check(plan, heads, kv_heads, dim, dtype, data.draw(st.sampled_from([0, 1, 7, 33])), backend)


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("group", range(1, 9))
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_any_new_tokens_after_any_prefix_equal_float32_in_every_group(backend, group, data):
    prefixes = data.draw(st.lists(st.sampled_from([0, 1, 15, 16, 17, 61]), min_size=1, max_size=3))
    num_new = [data.draw(st.sampled_from([0, 1, 2, 7])) for _ in prefixes]
    contexts = [max(prefix + new, 1) for prefix, new in zip(prefixes, num_new, strict=True)]
    assume(sum(num_new))
    kv_heads, dim = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([16, 24]))
    dtype, window = data.draw(st.sampled_from([torch.float32, torch.float16])), data.draw(st.sampled_from([0, 1, 20]))
    has_lse = backend != "native" and data.draw(st.booleans())
    plan = plan_paged(num_new, contexts, tables_for(contexts), device=CPU)
    check(plan, kv_heads * group, kv_heads, dim, dtype, window, backend, has_lse=has_lse)


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("minimum", [1, 1 << 30])
def test_request_without_new_tokens_gets_nothing_and_takes_nothing_from_the_others(backend, minimum):
    contexts, num_new = [70, 81, 64, 50], [1, 0, 0, 2]
    tables = tables_for(contexts, num_shared=3)
    plan = plan_paged(num_new, contexts, tables, device=CPU, min_shared_blocks=minimum)
    assert {request for item in plan.items for request in item.requests} == {0, 3}
    check(plan, 4, 2, 16, torch.float32, 0, backend)
    nobody = plan_paged([0, 0], [16, 5], [[0], [1]], device=CPU)
    cache = torch.zeros(2, 16, 2, 16)
    assert paged_attention(torch.empty(0, 4, 16), cache, cache, nobody, scale=1.0, backend=backend).shape == (0, 4, 16)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_work_covers_each_block_of_each_request_once(data):
    contexts = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=6))
    tables = [data.draw(st.lists(st.integers(0, 2), min_size=6, max_size=6)) for _ in contexts]
    minimum = data.draw(st.sampled_from([1, 2, 1 << 30]))
    plan = plan_paged([1] * len(contexts), contexts, tables, device=CPU, min_shared_blocks=minimum)
    seen = [
        (request, block) for item in plan.items for request in item.requests for block in range(item.first, item.last)
    ]
    assert sorted(seen) == [(r, b) for r, context in enumerate(contexts) for b in range(-(-context // 16))]
    for item in plan.items:
        for request in item.requests:
            assert tables[request][item.first : item.last] == tables[item.table][item.first : item.last]


def test_plans_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"5 new tokens of 4"):
        plan_paged([5], [4], [[0]], device=CPU)
    with pytest.raises(ValueError, match=r"1 new tokens of 17, in 1 blocks"):
        plan_paged([1], [17], [[0]], device=CPU)
    plan = plan_paged([1], [1], [[0]], device=CPU)
    cache = torch.zeros(1, 16, 2, 8)
    with pytest.raises(ValueError, match=r"paged_attention: query \(1, 3, 8\)"):
        paged_attention(torch.zeros(1, 3, 8), cache, cache, plan, scale=1.0)
    poison(cache)


@NEEDS_TRITON
@pytest.mark.parametrize("window", [0, 150])
def test_long_contexts_are_split_among_programs_and_prompts_into_tiles(window):
    from kernels.paged_attention.triton_op import _num_splits

    contexts = [300, 17, 290, 40]
    plan = plan_paged([1, 1, 40, 40], contexts, tables_for(contexts), device=CPU)
    assert _num_splits(len(plan.tiles(16)) * 2, max(contexts)) == 2
    assert _num_splits(4, 700) == 5
    assert [tile.tolist()[2] for tile in plan.tiles(16)] == [1, 1, 16, 16, 8, 16, 16, 8]
    check(plan, 8, 2, 32, torch.float32, window, "triton")


def fixed(plan: PagedPlan, num_rows: int, group: int, longest: int) -> FixedPlan:
    """The same step as numbers on the device, among `num_rows` rows and in tables wide enough for `longest`."""
    total = sum(plan.num_new)
    each = zip(plan.num_new, plan.contexts, strict=True)
    positions = [position for new, context in each for position in range(context - new, context)]
    requests = [request for request, new in enumerate(plan.num_new) for _ in range(new)]
    tables = torch.full((num_rows, -(-longest // 16)), NUM_BLOCKS - 1, dtype=torch.int32)
    tables[: len(plan.tables), : plan.tables.shape[1]] = plan.tables
    found = [*plan.tiles(decode_rows(group) // group).tolist(), *([0, row, 1, -1] for row in range(total, num_rows))]
    tiles = torch.zeros((num_rows, 4), dtype=torch.int32)
    tiles[: len(found)] = torch.tensor(found)
    padding = num_rows - total
    return FixedPlan(
        *(tables, tiles),
        torch.tensor([*requests, *[0] * padding], dtype=torch.int32),
        torch.tensor([*positions, *[-1] * padding], dtype=torch.int32),
        longest,
    )


@pytest.mark.parametrize("backend", ["auto", "torch", pytest.param("triton", marks=NEEDS_TRITON)])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "window"), [(9, 3, 16, 0), (4, 2, 24, 20)])
@pytest.mark.parametrize("longest", [112, 900])  # for one, no splits; for the other, more than there are keys
def test_step_of_numbers_on_the_device_gives_what_its_plan_does(backend, heads, kv_heads, dim, window, longest):
    torch.manual_seed(0)
    contexts = [1, 15, 16, 17, 70, 33, 40]
    plan = plan_paged([1, 1, 1, 1, 1, 3, 8], contexts, tables_for(contexts), device=CPU)
    keys, values = caches(kv_heads, dim, torch.float32, plan)
    rows = 24
    query = torch.randn(rows, heads, dim)
    options = {"scale": dim**-0.5, "window": window}
    exact = paged_attention_reference(query[:16], keys.nan_to_num(), values.nan_to_num(), plan, **options)
    eager = paged_attention_torch(query[:16], keys, values, plan, **options)
    found = paged_attention(
        query, keys, values, fixed(plan, rows, heads // kv_heads, longest), backend=backend, **options
    )
    assert_earned(found[:16], exact, eager)
    assert found[16:].shape[0] == 8 and not found[16:].any()  # nobody's


def test_native_kernel_is_absent_for_numbers_on_the_device():
    plan = fixed(plan_paged([1], [1], [[0]], device=CPU), 2, 1, 16)
    cache = torch.zeros(1, 16, 1, 8)
    with pytest.raises(RuntimeError, match="'native' is absent for a FixedPlan"):
        paged_attention(torch.zeros(2, 1, 8), cache, cache, plan, scale=1.0, backend="native")


@pytest.mark.parametrize(("group", "rows"), [(1, 16), (3, 16), (16, 16), (17, 32), (64, 64)])
def test_tile_of_a_few_tokens_has_room_for_a_group_and_a_matrix_product(group, rows):
    assert decode_rows(group) == rows
