"""Low-rank additions of several adapters to the output of one linear, each row with its own adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.lora_add.reference import LoraParts
from kernels.lora_add.torch_op import lora_add_torch, slot_mask
from kernels.native import DTYPES, function

RANK_MULTIPLE = 8
# Runs of at most so many rows share one product over all slots; longer ones have products of their own.
_MAX_SHORT_RUN = 16
# Rows of a run that a program of Triton's has.
_TILE_ROWS = 32
# On a GPU a product of its own costs two launches, and rows of other slots hardly anything.
_MAX_SHORT_RUN_GPU = 256


@dataclass(frozen=True, slots=True)
class LoraSlots:
    """A and B of one linear for S adapters of rank up to R. `parts` are the outputs of each fused weight (q, k, v)."""

    parts: tuple[int, ...]
    in_features: int
    rank: int
    a: Tensor  # [S, P * R, in], or [S, P, R / 8, in, 8] where native
    b: Tensor  # [S, P * R, out], zero off the blocks of a part, or [S, out / 8, R, 8] where native
    widths: Tensor  # `parts` as int64
    is_native: bool

    @property
    def num_slots(self) -> int:
        """S."""
        return self.a.shape[0]

    @property
    def out_features(self) -> int:
        """Outputs of all parts."""
        return sum(self.parts)


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """Which rows of a step use which slot: what all linears share."""

    runs: tuple[tuple[int, int, int, int], ...]  # start, stop, slot, rank
    table: Tensor  # `runs` as int64
    mask: Tensor | None  # [T', S], for torch
    num_short: int  # runs that `mask` covers
    slots: Tensor | None = None  # [T] int32, for Triton
    tiles: Tensor | None = None  # [n, 3] int32, for Triton: first row, rows and slot


def padded_rank(rank: int) -> int:
    """The rank as the slots keep it: a multiple of 8."""
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE


def empty_slots(
    parts: Sequence[int],
    in_features: int,
    *,
    num_slots: int,
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend = "auto",
) -> LoraSlots:
    """Slots that add nothing. `rank` must be a multiple of 8.

    Raises: ValueError for another rank; RuntimeError when "native" was asked for and cannot be.
    """
    if rank % RANK_MULTIPLE or rank <= 0:
        raise ValueError(f"empty_slots: rank {rank} is no multiple of {RANK_MULTIPLE}")
    odd = [width for width in parts if width % RANK_MULTIPLE]
    if odd and backend == "native":
        raise RuntimeError(f"lora_add: backend 'native' is absent: it takes panels of 8 outputs, a part has {odd[0]}")
    is_native = not odd and dtype in DTYPES and choose_backend("lora_add", backend, device) == "native"
    outputs, count = sum(parts), len(parts)
    if is_native:
        a_shape: tuple[int, ...] = (num_slots, count, rank // 8, in_features, 8)
        b_shape: tuple[int, ...] = (num_slots, outputs // 8, rank, 8)
    else:
        a_shape, b_shape = (num_slots, count * rank, in_features), (num_slots, count * rank, outputs)
    a, b = (torch.zeros(shape, dtype=dtype, device=device) for shape in (a_shape, b_shape))
    return LoraSlots(tuple(parts), in_features, rank, a, b, torch.tensor(list(parts)), is_native)


def pack_lora(slots: LoraSlots, slot: int, adapter: LoraParts) -> None:
    """Write an adapter into an empty slot, whose rank is at least its own.

    Args:
        adapter: of each part A [r, in] and B [out, r] with its scaling, or None.
    Raises: ValueError when a shape does not fit.
    """
    column = 0
    for part, (width, pair) in enumerate(zip(slots.parts, adapter, strict=True)):
        if pair is not None:
            a, b = pair
            rank = a.shape[0]
            if a.shape != (rank, slots.in_features) or b.shape != (width, rank) or rank > slots.rank:
                expected = f"[r, {slots.in_features}] and [{width}, r], r up to {slots.rank}"
                raise ValueError(f"pack_lora: A {tuple(a.shape)} and B {tuple(b.shape)}; {expected} was expected")
            if slots.is_native:
                # [panels, in, 8] seen as [panels, 8, in], and [panels, R, 8] as [panels, 8, R].
                rows = slots.a[slot, part].transpose(1, 2)
                for panel in range(-(-rank // 8)):
                    chunk = a[panel * 8 : panel * 8 + 8]
                    rows[panel, : len(chunk)] = chunk
                columns = slots.b[slot, column // 8 : (column + width) // 8].transpose(1, 2)
                columns[:, :, :rank] = b.view(width // 8, 8, rank)
            else:
                first = part * slots.rank
                slots.a[slot, first : first + rank] = a
                slots.b[slot, first : first + rank, column : column + width] = b.T
        column += width


def copy_slot(target: LoraSlots, slot: int, source: LoraSlots, source_slot: int) -> None:
    """Copy an adapter to a slot of the same linear; neither rank is below the adapter's. The rest becomes zero."""
    a, b = target.a[slot], target.b[slot]
    from_a, from_b = source.a[source_slot], source.b[source_slot]
    rank = min(target.rank, source.rank)
    if target.rank > rank:
        clear_slot(target, slot)
    if target.is_native:
        a[:, : rank // 8] = from_a[:, : rank // 8]
        b[:, :rank] = from_b[:, :rank]
        return
    count = len(target.parts)
    for to, from_ in ((a, from_a), (b, from_b)):
        to.view(count, target.rank, -1)[:, :rank] = from_.view(count, source.rank, -1)[:, :rank]


def clear_slot(target: LoraSlots, slot: int) -> None:
    """Make a slot add nothing."""
    target.a[slot].zero_()
    target.b[slot].zero_()


def plan_lora(
    runs: Sequence[tuple[int, int, int]],
    ranks: Sequence[int],
    *,
    num_slots: int,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend = "auto",
) -> LoraPlan:
    """What the linears of one step share.

    Args:
        runs: start, stop and slot of rows in a row that use an adapter, ascending; rows in none of them use none.
        ranks: of the adapter in each slot, multiples of 8; the native kernel computes no more.
        backend: "triton" computes all runs in two launches, for slots that are not native; "auto" leaves them to the
            slots' own, native or torch: which is faster on a GPU is not measured.
    Raises: RuntimeError when "triton" was asked for and is absent.
    """
    table = tuple((start, stop, slot, ranks[slot]) for start, stop, slot in runs)
    if backend == "triton":
        choose_backend("lora_add of runs", backend, device, has_triton=True)
        tiles = [
            (first, min(_TILE_ROWS, stop - first), slot)
            for start, stop, slot in runs
            for first in range(start, stop, _TILE_ROWS)
        ]
        on_device = torch.tensor(tiles, dtype=torch.int32).view(-1, 3).to(device)
        return LoraPlan(table, torch.tensor(table, dtype=torch.int64), None, 0, tiles=on_device)
    # On a CPU with native kernels nobody reads the mask, and it is small.
    longest = _MAX_SHORT_RUN if device.type == "cpu" else _MAX_SHORT_RUN_GPU
    num_short = next((i for i, run in enumerate(table) if run[1] - run[0] > longest), len(table))
    mask = slot_mask(table[:num_short], num_slots, dtype, str(device)) if num_short else None
    return LoraPlan(table, torch.tensor(table, dtype=torch.int64), mask, num_short)


def fixed_lora(slots: Tensor, *, num_slots: int, dtype: torch.dtype, backend: Backend = "auto") -> LoraPlan:
    """A plan of rows whose slots [T] int32, -1 for none, lie on the device. Not for slots of the native kernel."""
    table = torch.empty((0, 4), dtype=torch.int64)
    chosen = choose_backend("lora_add of recorded steps", backend, slots.device, has_triton=True, has_native=False)
    if chosen == "triton":
        return LoraPlan((), table, None, 0, slots)
    mask = slots[:, None] == torch.arange(num_slots, device=slots.device, dtype=slots.dtype)
    return LoraPlan((), table, mask.to(dtype), 0)


def lora_add(out: Tensor, x: Tensor, slots: LoraSlots, plan: LoraPlan) -> None:
    """Add to each row what its adapter adds: out[t] += B[slot] (A[slot] x[t]), in place. Other rows stay as they are.

    Args:
        out: [T, out] contiguous, the linear's own output; float32, bfloat16 or float16.
        x: [T, in] contiguous, of the same dtype and device.
        slots: the linear's adapters, of the same dtype and device; B holds alpha / rank.
        plan: of the step, from `plan_lora` or `fixed_lora`.
    Summed in float32 where native or Triton; torch rounds A's product to the dtype.
    Raises: ValueError when shapes or dtypes disagree.
    Source: Punica's BGMV and SGMV, arXiv:2310.18547.
    """
    rows = (out.shape[0], x.shape[0], max((run[1] for run in plan.runs), default=0))
    if (
        (out.shape[1], x.shape[1]) != (slots.out_features, slots.in_features)
        or rows[0] != rows[1]
        or rows[2] > rows[0]
        or not (out.dtype == x.dtype == slots.a.dtype)
        or not (out.is_contiguous() and x.is_contiguous())
    ):
        raise ValueError(
            f"lora_add: out {tuple(out.shape)} {out.dtype}, x {tuple(x.shape)} {x.dtype}, slots "
            f"({slots.out_features}, {slots.in_features}) {slots.a.dtype}, rows up to {rows[2]}"
        )
    if plan.tiles is not None:
        if slots.is_native:
            raise ValueError("lora_add: the plan is Triton's, the slots are native; make them with backend='torch'")
        from kernels.lora_add.triton_op import lora_add_runs_triton

        lora_add_runs_triton(out, x, slots.a, slots.b, plan.tiles, _TILE_ROWS)
        return
    if plan.slots is not None:
        from kernels.lora_add.triton_op import lora_add_triton

        lora_add_triton(out, x, slots.a, slots.b, plan.slots)
        return
    if not slots.is_native:
        lora_add_torch(out, x, slots.a, slots.b, plan.mask, plan.runs[plan.num_short :])
        return
    _native()(
        *(out.data_ptr(), x.data_ptr(), slots.a.data_ptr(), slots.b.data_ptr(), plan.table.data_ptr()),
        *(len(plan.runs), slots.widths.data_ptr(), len(slots.parts), slots.in_features, slots.out_features),
        *(slots.rank, DTYPES[x.dtype]),
    )


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_lora_add", "pppppipiiiii")
