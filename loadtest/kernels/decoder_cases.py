"""Operations of a decoder's step, in the shapes of a small model on a CPU and of an 8B model on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels.chunk_attention import chunk_attention
from kernels.kv_write import kv_write
from kernels.linear import linear, pack_linear
from kernels.lora_add import empty_slots, fixed_lora, lora_add, pack_lora, plan_lora
from kernels.lora_add.reference import LoraParts, lora_add_reference
from kernels.paged_attention import PagedPlan, paged_attention, plan_paged
from kernels.paged_attention.reference import paged_attention_reference
from kernels.rms_norm import rms_norm
from kernels.silu_mul import silu_mul
from loadtest.bench_format import OURS
from loadtest.kernels.case import Case, Draw, Results
from loadtest.kernels.choice_cases import TORCH, choice_cases

FLASH, NOT_SHARED = "flash-attention", "switchyard, shared blocks read for each"
# Of all runs of rows in two launches, whatever the number of adapters.
RUNS = "switchyard, runs by Triton"
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a decoder: hidden size, query and KV heads, head dimensions, inner size, vocabulary."""

    hidden: int
    heads: int
    kv_heads: int
    dim: int
    inner: int
    vocabulary: int


SMALL = Sizes(576, 9, 3, 64, 1536, 49_152)  # SmolLM2-135M
LARGE = Sizes(4096, 32, 8, 128, 14_336, 128_256)  # Llama-3.1-8B
TINY = Sizes(64, 4, 2, 16, 96, 512)
# Tokens of a step; requests x context of decodes; new tokens after a context.
TOKENS = (1, 32, 512)
DECODES = ((1, 1200), (8, 1200), (32, 512))
PROMPTS = ((512, 0), (512, 1024))
_NUM_ADAPTERS, _RANK = 8, 16


def decoder_cases(device: str, dtype: torch.dtype, sizes: Sizes, *, is_short: bool) -> Iterator[Case]:
    """One after the other, so that one's tensors are gone before the next one's come."""
    draw = Draw(device, dtype)
    for tokens in TOKENS[:2] if is_short else TOKENS:
        yield _norm(draw, tokens, sizes)
        yield _activation(draw, tokens, sizes)
        yield _write(draw, tokens, sizes)
        if device == "cpu":  # on a GPU it is torch's own
            yield _linear(draw, tokens, sizes)
        yield _lora(draw, tokens, sizes)
    for requests, context in DECODES[:2] if is_short else DECODES:
        yield _attention(draw, f"decode {requests}x{context}", [1] * requests, [context] * requests, sizes)
    for new, before in PROMPTS[:1] if is_short else PROMPTS:
        yield _attention(draw, f"prompt {before}+{new}", [new], [before + new], sizes)
    if not is_short:
        yield _attention(draw, "decode 32x1200, 1024 shared", [1] * 32, [1200] * 32, sizes, num_shared=64)
    yield from choice_cases(draw, sizes.vocabulary)


def _norm(draw: Draw, tokens: int, sizes: Sizes) -> Case:
    x, residual, weight = draw(tokens, sizes.hidden), draw(tokens, sizes.hidden), draw(sizes.hidden)

    def by_torch(stream: Tensor) -> Tensor:
        return functional.rms_norm(stream.add_(x), (sizes.hidden,), weight, _EPS)

    def results() -> Results:
        exact = functional.rms_norm((residual + x).float(), (sizes.hidden,), weight.float(), _EPS)
        return Results(rms_norm(x, weight, _EPS, residual=residual.clone()), by_torch(residual.clone()), exact)

    # Timed calls add x again and again, to streams of their own.
    ours, theirs = residual.clone(), residual.clone()
    return Case(
        *("rms_norm", f"{tokens}x{sizes.hidden} residual"),
        {OURS: lambda: rms_norm(x, weight, _EPS, residual=ours), TORCH: lambda: by_torch(theirs)},
        results,
        num_bytes=4 * _bytes(x),
        flops=5 * x.numel(),
    )


def _activation(draw: Draw, tokens: int, sizes: Sizes) -> Case:
    gate_up = draw(tokens, 2 * sizes.inner)

    def by_torch(x: Tensor = gate_up) -> Tensor:
        gate, up = x.chunk(2, -1)
        return functional.silu(gate) * up

    return Case(
        *("silu_mul", f"{tokens}x{sizes.inner}"),
        {OURS: lambda: silu_mul(gate_up), TORCH: by_torch},
        lambda: Results(silu_mul(gate_up), by_torch(), by_torch(gate_up.float())),
        *(_bytes(gate_up) * 3 // 2, 5 * tokens * sizes.inner),
    )


def _write(draw: Draw, tokens: int, sizes: Sizes) -> Case:
    heads, kv_heads, dim = sizes.heads, sizes.kv_heads, sizes.dim
    qkv = draw(tokens, (heads + 2 * kv_heads) * dim)
    angle = Draw("cpu", torch.float32)(tokens, dim // 2).to(draw.device)
    cos, sin = angle.cos(), angle.sin()
    num_blocks = -(-tokens // 16)
    slots = torch.randperm(num_blocks * 16, generator=torch.Generator().manual_seed(1))[:tokens].to(draw.device)

    def caches(dtype: torch.dtype) -> list[Tensor]:
        return [torch.zeros(num_blocks, 16, kv_heads, dim, dtype=dtype, device=draw.device) for _ in range(2)]

    def by_torch(x: Tensor, held: list[Tensor]) -> Tensor:
        """As a model in plain torch does it: rotate both halves, then scatter."""
        query, key, value = torch.split(x.view(tokens, -1, dim), [heads, kv_heads, kv_heads], 1)
        turned = []
        for each in (query, key):
            low, high = each.chunk(2, -1)
            c, s = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
            turned.append(torch.cat([low * c - high * s, high * c + low * s], -1))
        held[0].flatten(0, 1).index_copy_(0, slots, turned[1])
        held[1].flatten(0, 1).index_copy_(0, slots, value)
        return turned[0]

    def ours(held: list[Tensor]) -> Tensor:
        return kv_write(qkv, cos, sin, slots, *held, num_heads=heads, eps=_EPS)

    def flat(query: Tensor, held: list[Tensor]) -> Tensor:
        return torch.cat([each.flatten().float() for each in (query, *held)])

    def results() -> Results:
        mine, theirs, exact = caches(qkv.dtype), caches(qkv.dtype), caches(torch.float32)
        return Results(
            flat(ours(mine), mine), flat(by_torch(qkv, theirs), theirs), flat(by_torch(qkv.float(), exact), exact)
        )

    mine, theirs = caches(qkv.dtype), caches(qkv.dtype)
    return Case(
        *("kv_write", f"{tokens} tokens {heads}/{kv_heads}x{dim}"),
        {OURS: lambda: ours(mine), TORCH: lambda: by_torch(qkv, theirs)},
        results,
        num_bytes=2 * _bytes(qkv) + 2 * _bytes(cos),
        flops=3 * tokens * (heads + kv_heads) * dim,
    )


def _linear(draw: Draw, tokens: int, sizes: Sizes) -> Case:
    x, weight = draw(tokens, sizes.hidden), draw(2 * sizes.inner, sizes.hidden) / sizes.hidden**0.5
    packed = pack_linear(weight)

    def by_torch(dtype: torch.dtype = x.dtype) -> Tensor:
        return functional.linear(x.to(dtype), weight.to(dtype))

    return Case(
        *("linear", f"{tokens}x{sizes.hidden}x{2 * sizes.inner}"),
        {OURS: lambda: linear(x, packed), TORCH: by_torch},
        lambda: Results(linear(x, packed), by_torch(), by_torch(torch.float32)),
        _bytes(x) + _bytes(weight) + tokens * 2 * sizes.inner * x.element_size(),
        2 * tokens * weight.numel(),
    )


def _lora(draw: Draw, tokens: int, sizes: Sizes) -> Case:
    """Query, key and value of eight adapters in turn for decodes; a prompt of one adapter for many tokens."""
    parts = tuple(heads * sizes.dim for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads))
    adapters: list[LoraParts] = [
        [(draw(_RANK, sizes.hidden) / sizes.hidden**0.5, draw(width, _RANK)) for width in parts]
        for _ in range(_NUM_ADAPTERS)
    ]
    options: dict[str, Any] = {"dtype": draw.dtype, "device": draw.device}
    slots = empty_slots(
        parts,
        sizes.hidden,
        num_slots=_NUM_ADAPTERS,
        rank=_RANK,
        backend="auto" if draw.device.type == "cpu" else "torch",
        **options,
    )
    for slot, adapter in enumerate(adapters):
        pack_lora(slots, slot, adapter)
    is_prompt = tokens > 32
    runs = [(0, tokens, 3)] if is_prompt else [(row, row + 1, row % _NUM_ADAPTERS) for row in range(tokens)]
    plan = plan_lora(runs, [_RANK] * _NUM_ADAPTERS, num_slots=_NUM_ADAPTERS, **options)
    if draw.device.type == "cuda" and not is_prompt:  # as recorded steps have it
        of_row = torch.tensor([slot for _, _, slot in runs], dtype=torch.int32, device=draw.device)
        plan = fixed_lora(of_row, num_slots=_NUM_ADAPTERS, dtype=draw.dtype)
    x, out = draw(tokens, sizes.hidden), draw(tokens, sum(parts))
    others: dict[str, Callable[[], object]] = {}
    if draw.device.type == "cuda":
        launched = plan_lora(runs, [_RANK] * _NUM_ADAPTERS, num_slots=_NUM_ADAPTERS, backend="triton", **options)
        changed = out.clone()
        others[RUNS] = lambda: lora_add(changed, x, slots, launched)

    def ours(held: Tensor) -> Tensor:
        lora_add(held, x, slots, plan)
        return held

    def by_torch(held: Tensor) -> Tensor:
        """As PEFT does it, adapter by adapter and linear by linear."""
        for start, stop, slot in runs:
            for part, pair in zip(torch.split(held[start:stop], list(parts), 1), adapters[slot], strict=True):
                assert pair is not None
                part += x[start:stop] @ pair[0].T @ pair[1].T
        return held

    used = {slot for _, _, slot in runs}
    weights = len(used) * _RANK * (3 * sizes.hidden + sum(parts)) * x.element_size()
    mine, theirs = out.clone(), out.clone()
    return Case(
        *("lora_add", f"{tokens} tokens {len(used)} adapters rank {_RANK}"),
        {OURS: lambda: ours(mine), TORCH: lambda: by_torch(theirs), **others},
        lambda: Results(ours(out.clone()), by_torch(out.clone()), lora_add_reference(out, x, adapters, parts, runs)),
        _bytes(x) + 2 * _bytes(out) + weights,
        2 * tokens * _RANK * (3 * sizes.hidden + sum(parts)),
    )


def _attention(
    draw: Draw, words: str, num_new: list[int], contexts: list[int], sizes: Sizes, *, num_shared: int = 0
) -> Case:
    """Peers read keys and values that already lie in one piece, which is less work than blocks are.

    The first `num_shared` blocks are the same for all requests; `NOT_SHARED` is our kernel that does not know it.
    """
    heads, kv_heads, dim = sizes.heads, sizes.kv_heads, sizes.dim
    requests, new, context = len(contexts), num_new[0], contexts[0]
    each = -(-context // 16)
    shuffled = torch.randperm(requests * each, generator=torch.Generator().manual_seed(2)).view(requests, each)
    shuffled[:, :num_shared] = shuffled[0, :num_shared]
    alone = plan_paged(num_new, contexts, shuffled.tolist(), device=draw.device)
    plan = replace(alone, min_shared_blocks=1) if num_shared else alone
    keys, values = (draw(requests * each, 16, kv_heads, dim) for _ in range(2))
    query = draw(requests * new, heads, dim)
    blocks = shuffled.to(draw.device)
    key, value = (cache[blocks].flatten(1, 2)[:, :context].contiguous() for cache in (keys, values))  # [S, L, KV, D]
    asked = query.view(requests, new, heads, dim)
    position = torch.arange(context - new, context, device=draw.device)[:, None]
    visible = position >= torch.arange(context, device=draw.device)

    def by_torch() -> Tensor:
        mask = visible if 1 < new < context else None
        attended: Tensor = functional.scaled_dot_product_attention(
            *(asked.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask),
            is_causal=new == context > 1,
            enable_gqa=True,
        )
        return attended.transpose(1, 2).reshape(query.shape)

    def ours(plan: PagedPlan = plan) -> Tensor:
        if draw.device.type == "cpu" and new > 1:  # as the engine does
            return chunk_attention(query, keys, values, shuffled[0].int().numpy(), context, scale=dim**-0.5)
        return paged_attention(query, keys, values, plan, scale=dim**-0.5)

    def results() -> Results:
        exact = paged_attention_reference(query.float(), keys.float(), values.float(), plan, scale=dim**-0.5)
        return Results(ours(), by_torch(), exact)

    systems: dict[str, Callable[[], object]] = {OURS: ours, TORCH: by_torch}
    if num_shared:
        systems[NOT_SHARED] = partial(ours, alone)
    missing = {}
    flash = _flash(draw.device)
    if isinstance(flash, str):
        missing[FLASH] = flash
    else:
        lengths = torch.tensor(contexts, dtype=torch.int32, device=draw.device)
        systems[FLASH] = lambda: flash.flash_attn_with_kvcache(asked, key, value, cache_seqlens=lengths, causal=True)
    op = "chunk_attention" if draw.device.type == "cpu" and new > 1 else "paged_attention"
    num_keys = sum(contexts) - (requests - 1) * num_shared * 16
    pairs = sum(n * (c - n) + n * (n + 1) // 2 for n, c in zip(num_new, contexts, strict=True))
    return Case(
        *(op, f"{words} {heads}/{kv_heads}x{dim}", systems, results),
        2 * _bytes(query) + 2 * num_keys * kv_heads * dim * query.element_size(),
        *(4 * pairs * heads * dim, missing),
    )


def _flash(device: torch.device) -> Any:
    """The module, or why it takes no part."""
    if device.type != "cuda":
        return "it runs on a GPU"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed: pip install flash-attn"
    return importlib.import_module("flash_attn")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
