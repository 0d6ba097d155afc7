"""Matrix products with weights that never change: laid out once for the processor, multiplied in every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels.dispatch import Backend, choose_backend
from kernels.linear.reference import linear_reference
from kernels.native import bf16_panel, bf16_products_absence, function


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A weight [out, in] ready to be multiplied by."""

    out_features: int
    in_features: int
    bias: Tensor | None  # [out], or [P * panels] float32 where `is_packed`; P is bf16_panel()
    data: Tensor  # [out, in], or [ceil(out / P), in / 2, P, 2] where `is_packed`
    is_packed: bool


def pack_linear(weight: Tensor, bias: Tensor | None = None, *, backend: Backend = "auto") -> LinearWeight:
    """Lay out a weight for `linear`.

    Args:
        weight: [out, in]; bfloat16 on a CPU with AVX512-bf16 or AVX2 is copied into the native kernel's panels: drop
            yours. Anything else is kept as it is.
        bias: [out], of the weight's dtype.
        backend: "auto" takes the native layout where it is supported and torch's otherwise.
    Raises: ValueError when shapes or dtypes disagree; RuntimeError when "native" was asked for and cannot be.
    """
    if weight.dim() != 2 or (bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype)):
        found = None if bias is None else (tuple(bias.shape), bias.dtype)
        raise ValueError(f"pack_linear: weight {tuple(weight.shape)} {weight.dtype}, bias {found}")
    outputs, inputs = weight.shape
    missing = _why_not_native(weight)
    if backend == "native" and missing is not None:
        raise RuntimeError(f"linear: backend 'native' is absent: {missing}")
    # Anything but bfloat16 is left to torch without a word: that is no missing kernel.
    if missing is not None or choose_backend("linear", backend, weight.device) == "torch":
        return LinearWeight(outputs, inputs, bias, weight, is_packed=False)
    # Padding copies, even by nothing, and this may be the largest tensor of the model.
    panel = bf16_panel()
    padded = functional.pad(weight, (0, 0, 0, -outputs % panel)) if outputs % panel else weight
    panels = padded.view(-1, panel, inputs // 2, 2).transpose(1, 2).contiguous()
    # The kernel reads a bias for every column of its panels, in float32 as it sums.
    full = torch.zeros(padded.shape[0])
    if bias is not None:
        full[:outputs] = bias
    return LinearWeight(outputs, inputs, full, panels, is_packed=True)


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: [T, in] contiguous, dtype and device of the weight.
        weight: what `pack_linear` made.
    Returns: [T, out] of x's dtype, summed in float32 and rounded once.
    Raises: ValueError when shapes or dtypes disagree, or x is not contiguous.
    Source: the register blocking of Goto and van de Geijn, doi:10.1145/1356052.1356053.
    """
    if x.dim() != 2 or x.shape[1] != weight.in_features or x.dtype != weight.data.dtype or not x.is_contiguous():
        shape = (weight.out_features, weight.in_features)
        raise ValueError(
            f"linear: x {tuple(x.shape)} {x.dtype} (contiguous: {x.is_contiguous()}), "
            f"weight {shape} {weight.data.dtype}"
        )
    if not weight.is_packed:
        return linear_reference(x, weight.data, weight.bias)
    assert weight.bias is not None
    out = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype)
    _native()(
        *(out.data_ptr(), x.data_ptr(), weight.data.data_ptr(), weight.bias.data_ptr()),
        *(x.shape[0], weight.in_features, weight.out_features),
    )
    return out


def _why_not_native(weight: Tensor) -> str | None:
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return f"it multiplies bfloat16 on a CPU, this weight is {weight.dtype} on {weight.device}"
    if weight.shape[1] % 2:
        return f"it takes pairs of inputs, this weight has {weight.shape[1]}"
    return bf16_products_absence()


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_linear", "ppppiii")
