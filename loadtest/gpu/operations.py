"""Every operation of a step on the device against float32, held to the error that the same dtype has on a CPU.

Where there is no GPU, Triton's interpreter stands for it: `INTERPRETER` instead of a torch device, smaller shapes, and
no bfloat16, in which it does not compute.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.retrieval.index.products import best_products
from kernels.dispatch import Backend
from kernels.kv_write import kv_write
from kernels.linear import linear, pack_linear
from kernels.lora_add import empty_slots, fixed_lora, lora_add, pack_lora, plan_lora
from kernels.masked_topk import masked_topk, pack_mask
from kernels.masked_topk.reference import masked_topk_reference
from kernels.paged_attention import paged_attention, plan_paged
from kernels.rms_norm import rms_norm
from kernels.silu_mul import silu_mul
from loadtest.gpu.choosing import check_choosing
from loadtest.gpu.record import Record

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETER = "interpreter"
# Sums in another order, as a share of the largest result.
_ORDER = 1e-5
# (device, dtype, whether in float32 from numbers rounded to dtype) to the result on the CPU.
Operation = Callable[[str, torch.dtype, bool], Tensor]


def check_operations(record: Record, device: str) -> None:
    """All of them in every dtype; each that is wrong is named."""
    for name, operation in (INTERPRETED if device == INTERPRETER else OPERATIONS).items():
        wrong = []
        worst = 0.0
        for dtype in _dtypes(device):
            error, allowed = errors(operation, device, dtype)
            worst = max(worst, error / allowed)
            if not error <= allowed:  # NaN is wrong too
                wrong.append(f"{dtype}: error {error:.3g}, allowed {allowed:.3g}")
        words = "; ".join(wrong) or f"at most {worst:.2f} of the error allowed"
        record.check(f"operation {name}", is_right=not wrong, words=words)
    record.attempt("operation masked_topk", lambda: _check_masked(record, device))
    if device == INTERPRETER:
        check_choosing(record, _place(device), "triton", vocabulary=300)
        return
    check_choosing(record, device, "auto", vocabulary=5000)
    record.attempt("operation vector rows", lambda: _check_rows(record, device))


def errors(operation: Operation, device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Largest error on the device against float32 on the CPU, and what is allowed: twice that of dtype on the CPU."""
    exact = operation("cpu", dtype, True)
    result, eager = (operation(where, dtype, False) for where in (device, "cpu"))
    allowed = 2 * (eager - exact).abs().max() + _ORDER * exact.abs().max()
    return float((result - exact).abs().max()), float(allowed)


def _backend(device: str) -> Backend:
    """What the engine uses on a GPU; torch on a CPU, which it is compared with."""
    if device == INTERPRETER:
        return "triton"
    return "torch" if device == "cpu" else "auto"


def _place(device: str) -> str:
    """Where its tensors lie."""
    return "cpu" if device == INTERPRETER else device


def _dtypes(device: str) -> tuple[torch.dtype, ...]:
    return (torch.float32, torch.float16) if device == INTERPRETER else DTYPES


class _Inputs:
    """Random tensors, the same on every device."""

    def __init__(self, device: str, dtype: torch.dtype, is_exact: bool) -> None:
        self._random = torch.Generator().manual_seed(0)
        self.device, self._rounded = torch.device(_place(device)), dtype
        self.dtype = torch.float32 if is_exact else dtype

    def __call__(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self._random).to(self._rounded)
        return drawn.to(self.device, self.dtype)


def _linear(device: str, dtype: torch.dtype, is_exact: bool) -> Tensor:
    inputs = _Inputs(device, dtype, is_exact)
    weight = pack_linear(inputs(515, 1026), inputs(515), backend="torch")
    return linear(inputs(29, 1026), weight).float().cpu()


def _rms_norm(device: str, dtype: torch.dtype, is_exact: bool) -> Tensor:
    inputs = _Inputs(device, dtype, is_exact)
    residual = inputs(33, 1024)
    normed = rms_norm(inputs(33, 1024), inputs(1024), 1e-6, residual=residual, backend=_backend(device))
    return torch.cat([normed, residual]).float().cpu()


def _silu_mul(device: str, dtype: torch.dtype, is_exact: bool) -> Tensor:
    return silu_mul(8 * _Inputs(device, dtype, is_exact)(33, 2 * 1537), backend=_backend(device)).float().cpu()


def _lora(
    rows: int, runs: Sequence[tuple[int, int, int]], *, is_recorded: bool, is_launched_once: bool = False
) -> Operation:
    """Rows of two adapters, of which one lacks a part, and rows without; of recorded steps, slots lie on the device.

    `is_launched_once` takes Triton's kernel for all runs where there is one.
    """

    def operation(device: str, dtype: torch.dtype, is_exact: bool) -> Tensor:
        inputs = _Inputs(device, dtype, is_exact)
        parts, ranks = (512, 128, 128), (16, 8)
        slots = empty_slots(parts, 256, num_slots=2, rank=16, dtype=inputs.dtype, device=inputs.device, backend="torch")
        for slot, rank in enumerate(ranks):
            pairs = [(inputs(rank, 256) / 16, inputs(width, rank)) for width in parts]
            pack_lora(slots, slot, [None if (slot, part) == (1, 1) else pair for part, pair in enumerate(pairs)])
        backend: Backend = "triton" if is_launched_once and device != "cpu" else "auto"
        plan = plan_lora(runs, ranks, num_slots=2, dtype=inputs.dtype, device=inputs.device, backend=backend)
        if is_recorded:
            of_row = torch.full((rows,), -1, dtype=torch.int32)
            for start, stop, slot in runs:
                of_row[start:stop] = slot
            on_device = of_row.to(inputs.device)
            plan = fixed_lora(on_device, num_slots=2, dtype=inputs.dtype, backend=_backend(device))
        out = inputs(rows, sum(parts))
        lora_add(out, inputs(rows, 256), slots, plan)
        return out.float().cpu()

    return operation


def _kv_write(device: str, dtype: torch.dtype, is_exact: bool) -> Tensor:
    inputs = _Inputs(device, dtype, is_exact)
    heads, kv_heads, dim, tokens = 16, 8, 128, 7
    angle = torch.randn(tokens, dim // 2, generator=torch.Generator().manual_seed(1)).to(inputs.device)
    slots = torch.tensor([0, 17, -1, 5, 47, -1, 31], device=inputs.device)
    keys, values = (torch.zeros(3, 16, kv_heads, dim, dtype=inputs.dtype, device=inputs.device) for _ in range(2))
    query = kv_write(
        *(inputs(tokens, (heads + 2 * kv_heads) * dim), angle.cos(), angle.sin(), slots, keys, values),
        num_heads=heads,
        q_norm=inputs(dim),
        k_norm=inputs(dim),
        eps=1e-6,
        backend=_backend(device),
    )
    return torch.cat([tensor.flatten() for tensor in (query, keys, values)]).float().cpu()


def _paged(
    window: int,
    contexts: Sequence[int] = (1, 15, 16, 17, 700, 33, 40, 300),
    num_new: Sequence[int] = (1, 1, 1, 1, 1, 3, 8, 200),
    num_shared: int = 0,
    heads: tuple[int, int] = (16, 8),
) -> Operation:
    """Decodes, drafts and a prompt; slots that nobody wrote hold NaN. Their first `num_shared` blocks are the same.

    `heads` are query and KV heads.
    """

    def run(device: str, dtype: torch.dtype, is_exact: bool) -> Tensor:
        inputs = _Inputs(device, dtype, is_exact)
        free = random.Random(0).sample(range(128), 128)
        shared = [free.pop() for _ in range(num_shared)]
        tables = [[*shared, *(free.pop() for _ in range(-(-context // 16) - num_shared))] for context in contexts]
        keys, values = inputs(128, 16, heads[1], 128), inputs(128, 16, heads[1], 128)
        written = torch.zeros(128 * 16, dtype=torch.bool)
        for context, table in zip(contexts, tables, strict=True):
            written[[table[position // 16] * 16 + position % 16 for position in range(context)]] = True
        for cache in (keys, values):
            cache.flatten(0, 1)[~written.to(inputs.device)] = float("nan")
        options = {"min_shared_blocks": 1} if num_shared else {}
        plan = plan_paged(num_new, contexts, tables, device=inputs.device, **options)
        query = inputs(sum(num_new), heads[0], 128)
        return (
            paged_attention(query, keys, values, plan, scale=128**-0.5, window=window, backend=_backend(device))
            .float()
            .cpu()
        )

    return run


OPERATIONS: dict[str, Operation] = {
    "linear": _linear,
    "rms_norm": _rms_norm,
    "silu_mul": _silu_mul,
    "lora_add": _lora(411, [(0, 2, 1), (2, 3, 0), (5, 12, 1), (20, 400, 0)], is_recorded=False),
    "lora_add, recorded": _lora(13, [(0, 2, 1), (2, 3, 0), (5, 12, 1)], is_recorded=True),
    "lora_add, runs": _lora(
        411, [(0, 2, 1), (2, 3, 0), (5, 12, 1), (20, 400, 0)], is_recorded=False, is_launched_once=True
    ),
    "kv_write": _kv_write,
    "paged_attention": _paged(0),
    "paged_attention, window": _paged(20),
    "paged_attention, shared": _paged(0, (300, 333, 280, 310), (1, 3, 8, 40), num_shared=16),
    "paged_attention, shared window": _paged(100, (300, 333, 280, 310), (1, 3, 8, 40), num_shared=16),
}
# Those with a Triton kernel; the interpreter needs milliseconds where a GPU needs nanoseconds.
INTERPRETED: dict[str, Operation] = {
    **{name: OPERATIONS[name] for name in ("rms_norm", "silu_mul", "lora_add, recorded", "kv_write")},
    "lora_add, runs": _lora(50, [(0, 2, 1), (5, 45, 0)], is_recorded=False, is_launched_once=True),
    "paged_attention": _paged(0, (1, 17, 270), (1, 1, 3), heads=(3, 1)),
    "paged_attention, window": _paged(20, (33, 40), (1, 40), heads=(3, 1)),
    "paged_attention, shared": _paged(0, (70, 81, 49), (1, 8, 1), num_shared=3, heads=(3, 1)),
}


def _check_masked(record: Record, device: str) -> None:
    """Scores and ids to the last bit: of small whole numbers, whose sums have no rounding, so that many tie."""
    drawn = torch.Generator().manual_seed(0)
    num_rows, batches = (1_003, (1, 33)) if _place(device) == "cpu" else (60_011, (1, 7, 33, 512))
    rows = torch.randint(-2, 3, (num_rows, 384), generator=drawn)
    queries = torch.randint(-2, 3, (batches[-1], 384), generator=drawn)
    allowed = torch.rand(num_rows, generator=drawn) < 0.3
    allowed[256:512] = False  # blocks that are not read
    mask = pack_mask(allowed).to(_place(device))
    wrong = []
    best = masked_topk_reference(queries, rows, 2048, allowed)
    for k in (1, 10, 2048):
        for dtype in _dtypes(device):
            stored = rows.to(dtype).masked_fill(~allowed[:, None], float("nan")).to(_place(device))
            for batch in batches:
                asked = queries[:batch].to(_place(device), dtype)
                found = masked_topk(asked, stored, k, mask, backend=_backend(device))
                if not all(torch.equal(mine.cpu(), right[:batch, :k]) for mine, right in zip(found, best, strict=True)):
                    wrong.append(f"{dtype} batch {batch} k {k}")
    words = "; ".join(wrong) or f"scores and ids of {num_rows} rows equal to the definition"
    record.check("operation masked_topk", is_right=not wrong, words=words)


def _check_rows(record: Record, device: str) -> None:
    """Scores of the best rows in half precision, among more rows than a tile holds."""
    drawn = torch.Generator().manual_seed(0)
    rows, queries = (torch.randn(n, 384, generator=drawn).half() for n in (150_000, 16))
    exact = (queries.float() @ rows.float().T).topk(10).values
    scores, found = best_products(queries.to(device), rows.to(device), 10)
    own = torch.einsum("qke,qe->qk", rows[found.cpu()].float(), queries.float())
    error = float(torch.maximum((scores.cpu() - exact).abs(), (own - exact).abs()).max())
    limit = _ORDER * float(exact.abs().max())
    record.check("operation vector rows", is_right=error <= limit, words=f"error {error:.3g}, allowed {limit:.3g}")
