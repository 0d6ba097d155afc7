"""Low-rank additions against float32: ranks, parts, runs of rows, and slots that change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import BACKENDS, DTYPES, NEEDS_TRITON, assert_earned, poison
from torch import Tensor

from kernels.lora_add import LoraSlots, copy_slot, empty_slots, fixed_lora, lora_add, pack_lora, padded_rank, plan_lora
from kernels.lora_add.reference import LoraParts, lora_add_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
CPU = torch.device("cpu")
# Rows of a step: one, a prime, whole tiles and a remainder; gaps are rows without an adapter.
RUNS = {
    "one row": [(0, 1, 0)],
    "decodes": [(0, 2, 2), (2, 3, 0), (5, 12, 1)],
    "prompts": [(1, 2, 1), (3, 32, 0), (32, 130, 2)],
    "other order": [(2, 40, 1), (41, 42, 0)],
}
NUM_ROWS = 131


def drawn_adapter(rank: int, parts: tuple[int, ...], inputs: int, dtype: torch.dtype, skip: int = -1) -> LoraParts:
    return [
        None
        if part == skip
        else ((torch.randn(rank, inputs) / inputs**0.5).to(dtype), torch.randn(width, rank).to(dtype))
        for part, width in enumerate(parts)
    ]


def filled(
    adapters: list[LoraParts], ranks: list[int], parts: tuple[int, ...], inputs: int, **how: object
) -> LoraSlots:
    slots = empty_slots(parts, inputs, num_slots=len(adapters), rank=padded_rank(max(ranks)), device=CPU, **how)  # type: ignore[arg-type]
    for slot, adapter in enumerate(adapters):
        pack_lora(slots, slot, adapter)
    return slots


def add(out: Tensor, x: Tensor, slots: LoraSlots, runs: list[tuple[int, int, int]], ranks: list[int]) -> Tensor:
    result = out.clone()
    plan = plan_lora(runs, [padded_rank(rank) for rank in ranks], num_slots=slots.num_slots, dtype=x.dtype, device=CPU)
    lora_add(result, x, slots, plan)
    return result


def eager(out: Tensor, x: Tensor, adapters: list[LoraParts], parts: tuple[int, ...], runs: object) -> Tensor:
    result = out.clone()
    for start, stop, slot in runs:  # type: ignore[attr-defined]
        column = 0
        for width, pair in zip(parts, adapters[slot], strict=True):
            if pair is not None:
                result[start:stop, column : column + width] += x[start:stop] @ pair[0].T @ pair[1].T
            column += width
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize(("parts", "inputs"), [((64, 32, 32), 64), ((24,), 37), ((264, 264), 30), ((576,), 1536)])
def test_lora_add_equals_float32(backend, dtype, runs, parts, inputs):
    torch.manual_seed(0)
    ranks = [16, 4, 33]
    adapters = [drawn_adapter(rank, parts, inputs, dtype, skip=slot - 1) for slot, rank in enumerate(ranks)]
    slots = filled(adapters, ranks, parts, inputs, dtype=dtype, backend=backend)
    out, x = torch.randn(NUM_ROWS, sum(parts)).to(dtype), torch.randn(NUM_ROWS, inputs).to(dtype)
    result = add(out, x, slots, RUNS[runs], ranks)
    exact = lora_add_reference(out, x, adapters, parts, RUNS[runs])
    assert_earned(result, exact, eager(out, x, adapters, parts, RUNS[runs]))
    covered = torch.zeros(NUM_ROWS, dtype=torch.bool)
    for start, stop, _ in RUNS[runs]:
        covered[start:stop] = True
    assert torch.equal(result[~covered], out[~covered])
    assert not torch.equal(result[covered], out[covered])


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_that_no_row_uses_are_not_read(backend):
    torch.manual_seed(0)
    parts, ranks = (16, 8), [8, 8]
    adapters = [drawn_adapter(8, parts, 16, torch.float32) for _ in ranks]
    slots = filled(adapters, ranks, parts, 16, dtype=torch.float32, backend=backend)
    out, x = torch.randn(40, 24), torch.randn(40, 16)
    poison(slots.a[1], slots.b[1])
    runs = [(0, 40, 0)]  # torch multiplies short runs by every slot, so a long one
    torch.testing.assert_close(add(out, x, slots, runs, ranks), lora_add_reference(out, x, adapters, parts, runs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_slot_is_replaced_by_an_adapter_of_smaller_rank(backend):
    torch.manual_seed(0)
    parts = (16, 8)
    large, small = (drawn_adapter(rank, parts, 24, torch.float32) for rank in (24, 5))
    slots = filled([large, large], [24, 24], parts, 24, dtype=torch.float32, backend=backend)
    source = filled([small], [5], parts, 24, dtype=torch.float32, backend=backend)
    copy_slot(slots, 1, source, 0)
    out, x = torch.randn(7, 24), torch.randn(7, 24)
    runs = [(0, 3, 0), (3, 7, 1)]
    for ranks in ([24, 5], [24, 24]):  # as its own rank and as the padding says
        exact = lora_add_reference(out, x, [large, small], parts, runs)
        torch.testing.assert_close(add(out, x, slots, runs, ranks), exact)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rank 12 is no multiple of 8"):
        empty_slots((8,), 8, num_slots=1, rank=12, dtype=torch.float32, device=CPU)
    with pytest.raises(RuntimeError, match="panels of 8 outputs, a part has 12"):
        empty_slots((8, 12), 8, num_slots=1, rank=8, dtype=torch.float32, device=CPU, backend="native")
    slots = empty_slots((8,), 8, num_slots=1, rank=8, dtype=torch.float32, device=CPU)
    with pytest.raises(ValueError, match=r"pack_lora: A \(16, 8\)"):
        pack_lora(slots, 0, [(torch.zeros(16, 8), torch.zeros(8, 16))])
    plan = plan_lora([(0, 3, 0)], [8], num_slots=1, dtype=torch.float32, device=CPU)
    with pytest.raises(ValueError, match="rows up to 3"):
        lora_add(torch.zeros(2, 8), torch.zeros(2, 8), slots, plan)
    with pytest.raises(ValueError, match="bfloat16"):
        lora_add(torch.zeros(3, 8).bfloat16(), torch.zeros(3, 8).bfloat16(), slots, plan)


def test_parts_of_any_width_run_on_torch():
    torch.manual_seed(0)
    parts = (12, 3)
    adapter = drawn_adapter(8, parts, 8, torch.float32)
    slots = filled([adapter], [8], parts, 8, dtype=torch.float32)
    assert not slots.is_native
    out, x = torch.randn(5, 15), torch.randn(5, 8)
    runs = [(1, 5, 0)]
    torch.testing.assert_close(add(out, x, slots, runs, [8]), lora_add_reference(out, x, [adapter], parts, runs))


def test_rows_whose_slots_lie_on_the_device_get_the_same():
    torch.manual_seed(0)
    parts, inputs, ranks = (24, 8), 40, [8, 16, 4]
    adapters = [drawn_adapter(rank, parts, inputs, torch.float32) for rank in ranks]
    slots = filled(adapters, ranks, parts, inputs, dtype=torch.float32, backend="torch")
    out, x = torch.randn(12, 32), torch.randn(12, inputs)
    runs = RUNS["decodes"]
    of_row = torch.full((12,), -1, dtype=torch.int32)
    for start, stop, slot in runs:
        of_row[start:stop] = slot
    result = out.clone()
    lora_add(result, x, slots, fixed_lora(of_row, num_slots=3, dtype=torch.float32))
    torch.testing.assert_close(result, lora_add_reference(out, x, adapters, parts, runs))
    assert torch.equal(result[3:5], out[3:5])  # rows without one


@NEEDS_TRITON
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # Triton's interpreter has no bfloat16
@pytest.mark.parametrize(
    ("parts", "inputs", "ranks"), [((24, 8), 40, [8, 16, 4]), ((264,), 520, [24, 8, 8]), ((33,), 17, [128, 64, 8])]
)
def test_triton_gives_each_row_its_own_adapter_and_leaves_the_others(dtype, parts, inputs, ranks):
    from kernels.lora_add.triton_op import lora_add_triton

    torch.manual_seed(0)
    adapters = [drawn_adapter(rank, parts, inputs, dtype, skip=rank % 3) for rank in ranks]
    slots = filled(adapters, ranks, parts, inputs, dtype=dtype, backend="torch")
    out, x = torch.randn(13, sum(parts)).to(dtype), torch.randn(13, inputs).to(dtype)
    runs = RUNS["decodes"]
    of_row = torch.full((13,), -1, dtype=torch.int32)
    for start, stop, slot in runs:
        of_row[start:stop] = slot
    result = out.clone()
    lora_add_triton(result, x, slots.a, slots.b, of_row)
    exact = lora_add_reference(out, x, adapters, parts, runs)
    assert_earned(result, exact, eager(out, x, adapters, parts, runs))
    assert torch.equal(result[3:5], out[3:5]) and torch.equal(result[12:], out[12:])
    poison(x)
    lora_add_triton(out, x, slots.a, slots.b, torch.full((13,), -1, dtype=torch.int32))
    assert out.isfinite().all()


@NEEDS_TRITON
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_triton_gives_runs_of_rows_their_adapter_in_one_launch_and_reads_no_other(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    parts = data.draw(st.sampled_from([(24, 8), (65,), (1, 2, 3)]))
    inputs, ranks = data.draw(st.sampled_from([1, 37, 64])), [data.draw(st.sampled_from([8, 13, 64, 128])), 16, 8]
    lengths = data.draw(st.lists(st.sampled_from([1, 7, 32, 45]), min_size=1, max_size=4))
    runs, start = [], 0
    for length in lengths:
        gap = data.draw(st.sampled_from([0, 3]))
        runs.append((start + gap, start + gap + length, data.draw(st.sampled_from([0, 1]))))
        start += gap + length
    adapters = [drawn_adapter(rank, parts, inputs, dtype) for rank in ranks]
    slots = filled(adapters, ranks, parts, inputs, dtype=dtype, backend="torch")
    poison(slots.a[2], slots.b[2])
    out, x = torch.randn(start + 2, sum(parts)).to(dtype), torch.randn(start + 2, inputs).to(dtype)
    covered = torch.zeros(start + 2, dtype=torch.bool)
    for first, stop, _ in runs:
        covered[first:stop] = True
    x[~covered] = float("nan")
    plan = plan_lora(runs, ranks, num_slots=3, dtype=dtype, device=CPU, backend="triton")
    result = out.clone()
    lora_add(result, x, slots, plan)
    exact = lora_add_reference(out, x, adapters, parts, runs)
    assert_earned(result[covered], exact[covered], eager(out, x, adapters, parts, runs)[covered])
    assert torch.equal(result[~covered], out[~covered])


@NEEDS_TRITON
@pytest.mark.parametrize("is_in_runs", [False, True])
@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_triton_adds_every_rank_in_any_shape_and_rows_without_an_adapter_stay(is_in_runs, rank, data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    parts, inputs = data.draw(st.sampled_from([(1,), (24, 8, 8), (67,)])), data.draw(st.sampled_from([1, 37, 128]))
    of_row = data.draw(st.lists(st.sampled_from([-1, 0, 1]), max_size=9))  # none at all is one of them
    ranks = [rank, 8]
    adapters = [drawn_adapter(each, parts, inputs, dtype) for each in ranks]
    slots = filled(adapters, ranks, parts, inputs, dtype=dtype, backend="torch")
    out, x = torch.randn(len(of_row), sum(parts)).to(dtype), torch.randn(len(of_row), inputs).to(dtype)
    x[torch.tensor(of_row, dtype=torch.long) < 0] = float("nan")
    runs = [(row, row + 1, slot) for row, slot in enumerate(of_row) if slot >= 0]
    if is_in_runs:
        plan = plan_lora(runs, ranks, num_slots=2, dtype=dtype, device=CPU, backend="triton")
    else:
        on_device = torch.tensor(of_row, dtype=torch.int32)
        plan = fixed_lora(on_device, num_slots=2, dtype=dtype, backend="triton")
    result = out.clone()
    lora_add(result, x, slots, plan)
    has_one = torch.tensor(of_row, dtype=torch.long) >= 0
    assert torch.equal(result[~has_one], out[~has_one])
    if runs:
        exact = lora_add_reference(out, x, adapters, parts, runs)
        assert_earned(result[has_one], exact[has_one], eager(out, x, adapters, parts, runs)[has_one])


@NEEDS_TRITON
def test_step_without_an_adapter_and_slots_of_another_kind():
    plan = plan_lora([], [8], num_slots=1, dtype=torch.float32, device=CPU, backend="triton")
    slots = empty_slots((8,), 8, num_slots=1, rank=8, dtype=torch.float32, device=CPU, backend="torch")
    out = torch.ones(3, 8)
    lora_add(out, torch.ones(3, 8), slots, plan)
    assert torch.equal(out, torch.ones(3, 8))
    native = replace(slots, is_native=True)
    with pytest.raises(ValueError, match="the plan is Triton's, the slots are native"):
        lora_add(out, torch.ones(3, 8), native, plan)


def test_prompts_of_a_few_hundred_rows_share_one_product_on_a_gpu():
    runs = [(0, 1, 0), (1, 200, 1), (200, 500, 0)]
    shared = {
        device: plan_lora(runs, [8, 8], num_slots=2, dtype=torch.float32, device=torch.device(device)).num_short
        for device in ("cpu", "meta")
    }
    assert shared == {"cpu": 1, "meta": 2}  # meta: like a GPU, no CPU
