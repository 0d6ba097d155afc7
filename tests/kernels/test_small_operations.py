"""RMS norm, the gated activation, rotation and the write to the cache, against float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import WITH_TRITON, WITH_TRITON_AND_DTYPE, assert_earned, poison
from torch.nn.functional import silu

from kernels.kv_write import kv_write
from kernels.kv_write.reference import kv_write_reference
from kernels.rms_norm import rms_norm
from kernels.rms_norm.reference import rms_norm_reference
from kernels.rope import rope
from kernels.silu_mul import silu_mul

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize(("backend", "dtype"), WITH_TRITON_AND_DTYPE)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (7, 61), (33, 576)])
@pytest.mark.parametrize("has_residual", [False, True])
def test_rms_norm_equals_float32_and_adds_to_the_residual(backend, dtype, rows, width, has_residual):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, width).to(dtype), torch.randn(width).to(dtype)
    residual = torch.randn(rows, width).to(dtype) if has_residual else None
    stream = x if residual is None else residual + x
    exact = stream.float() * torch.rsqrt(stream.float().square().mean(-1, keepdim=True) + 1e-5) * weight.float()
    eager = rms_norm_reference(stream, weight, 1e-5)
    result = rms_norm(x, weight, 1e-5, residual=residual, backend=backend)
    assert_earned(result, exact, eager)
    if residual is not None:
        torch.testing.assert_close(residual, stream, rtol=0, atol=0)


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_not_a_number_goes_through_instead_of_vanishing(backend):
    x = torch.ones(2, 32)
    x[1, 3] = float("nan")
    normed = rms_norm(x, torch.ones(32), 1e-5, backend=backend)
    assert normed[0].isfinite().all() and normed[1].isnan().all()
    assert silu_mul(x, backend=backend).isnan().sum() == 1


@pytest.mark.parametrize(("backend", "dtype"), WITH_TRITON_AND_DTYPE)
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 61), (33, 1536)])
def test_silu_mul_equals_float32(backend, dtype, rows, width):
    torch.manual_seed(0)
    gate_up = (torch.randn(rows, 2 * width) * 8).to(dtype)
    gate, up = gate_up.chunk(2, -1)
    exact = silu(gate.float()) * up.float()
    assert_earned(silu_mul(gate_up, backend=backend), exact, silu(gate) * up)


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_silu_mul_of_extreme_values_is_finite(backend):
    gate_up = torch.tensor([[-1000.0, 1000.0, 0.0, 1.0, 1.0, 1.0]])
    assert silu_mul(gate_up, backend=backend)[0].tolist() == pytest.approx([0.0, 1000.0, 0.0], abs=1e-30)


def test_rope_turns_pairs_of_dimensions_by_the_angle_of_their_token():
    x = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])  # [2, 1, 2]
    angle = torch.tensor([[0.0], [torch.pi / 2]])
    turned = rope(x, angle.cos(), angle.sin())
    torch.testing.assert_close(turned, torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"rope: x \(2, 1, 2\)"):
        rope(x, angle[:1].cos(), angle[:1].sin())


@pytest.mark.parametrize(("backend", "dtype"), WITH_TRITON_AND_DTYPE)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 80), (7, 1, 16), (8, 2, 128)])
@pytest.mark.parametrize("has_norm", [False, True])
def test_kv_write_rotates_and_scatters_and_leaves_other_slots_alone(backend, dtype, heads, kv_heads, dim, has_norm):
    torch.manual_seed(0)
    tokens = 7
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    angle = torch.randn(tokens, dim // 2)
    norms = (torch.rand(dim).to(dtype) + 0.5, torch.rand(dim).to(dtype) + 0.5) if has_norm else (None, None)
    slots = torch.tensor([0, 17, -1, 5, 47, -1, 31])
    results = []
    for kind, run in (("exact", torch.float32), ("ours", dtype)):
        keys, values = (torch.empty(3, 16, kv_heads, dim, dtype=run) for _ in range(2))
        poison(keys, values)
        weights = tuple(None if norm is None else norm.to(run) for norm in norms)
        if kind == "exact":
            query = kv_write_reference(
                qkv.float(), angle.cos(), angle.sin(), slots, keys, values, heads, *weights, 1e-6
            )
        else:
            query = kv_write(
                *(qkv, angle.cos(), angle.sin(), slots, keys, values),
                num_heads=heads,
                q_norm=weights[0],
                k_norm=weights[1],
                eps=1e-6,
                backend=backend,
            )
        written = slots[slots >= 0]
        assert keys.flatten(0, 1)[written].isfinite().all()
        untouched = [slot for slot in range(48) if slot not in written.tolist()]
        assert keys.flatten(0, 1)[untouched].isnan().all() and values.flatten(0, 1)[untouched].isnan().all()
        results.append((query, keys.flatten(0, 1)[written], values.flatten(0, 1)[written]))
    (exact_query, exact_keys, exact_values), (query, keys_, values_) = results
    # One rounding of the result, and with a norm two more on the way.
    step = torch.finfo(dtype).eps * (4 if has_norm else 1)
    for ours, exact in ((query, exact_query), (keys_, exact_keys), (values_, exact_values)):
        assert (ours.float() - exact).abs().max() <= max(step, 1e-6) * exact.abs().max()


@pytest.mark.parametrize("backend", WITH_TRITON)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_number_of_rows_and_columns_is_written_whole_no_rows_included(backend, data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    rows, width = data.draw(st.sampled_from([0, 1, 3, 17])), data.draw(st.sampled_from([1, 2, 31, 64, 129]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    x, weight, residual = (torch.randn(shape).to(dtype) for shape in ((rows, width), (width,), (rows, width)))
    stream = residual + x
    exact = rms_norm_reference(stream.float(), weight.float(), 1e-5)
    gate_up = torch.randn(rows, 2 * width).to(dtype)
    gate, up = gate_up.chunk(2, -1)
    found = rms_norm(x, weight, 1e-5, residual=residual, backend=backend), silu_mul(gate_up, backend=backend)
    assert [each.shape for each in found] == [(rows, width)] * 2 and torch.equal(residual, stream)
    if rows:
        assert_earned(found[0], exact, rms_norm_reference(stream, weight, 1e-5))
        assert_earned(found[1], silu(gate.float()) * up.float(), silu(gate) * up)


@pytest.mark.parametrize("backend", WITH_TRITON)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_tokens_and_heads_are_rotated_and_stored_where_their_slots_say(backend, data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    kv_heads, dim = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([2, 16, 24, 80]))
    heads = kv_heads * data.draw(st.integers(1, 8))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    chosen = data.draw(st.lists(st.integers(0, 47), max_size=7, unique=True))
    slots = torch.tensor([-1 if slot % 5 == 0 else slot for slot in chosen], dtype=torch.long)
    qkv, angle = torch.randn(len(slots), (heads + 2 * kv_heads) * dim).to(dtype), torch.randn(len(slots), dim // 2)
    keys, values = (torch.empty(3, 16, kv_heads, dim, dtype=dtype) for _ in range(2))
    query = kv_write(qkv, angle.cos(), angle.sin(), slots, keys, values, num_heads=heads, backend=backend)
    turned = rope(qkv.float().view(len(slots), heads + 2 * kv_heads, dim), angle.cos(), angle.sin())
    stored = slots >= 0
    step = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(query.float(), turned[:, :heads], rtol=step, atol=step)
    torch.testing.assert_close(
        keys.flatten(0, 1)[slots[stored]].float(), turned[stored, heads : heads + kv_heads], rtol=step, atol=step
    )
    own = qkv.view(len(slots), heads + 2 * kv_heads, dim)[stored, heads + kv_heads :]
    assert torch.equal(values.flatten(0, 1)[slots[stored]], own)
    assert values.isnan().sum() == values.numel() - int(stored.sum()) * kv_heads * dim  # nothing else was written


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_step_without_tokens_writes_nothing_to_the_cache(backend):
    keys, values = (torch.empty(2, 16, 2, 8) for _ in range(2))
    empty, slots = torch.empty(0, 4), torch.empty(0, dtype=torch.long)
    query = kv_write(torch.empty(0, 64), empty, empty, slots, keys, values, num_heads=4, backend=backend)
    assert query.shape == (0, 4, 8) and keys.isnan().all() and values.isnan().all()


def test_operations_name_both_sides_of_a_mismatch():
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"x \(2, 8\) torch.float32 and weight \(7,\)"):
        rms_norm(x, torch.zeros(7), 1e-5)
    with pytest.raises(ValueError, match=r"residual \(3, 8\)"):
        rms_norm(x, torch.zeros(8), 1e-5, residual=torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"gate_up \(2, 7\)"):
        silu_mul(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="kv_write: qkv"):
        kv_write(x, x, x, torch.zeros(2, dtype=torch.long), *[torch.zeros(1, 16, 1, 2)] * 2, num_heads=9)
