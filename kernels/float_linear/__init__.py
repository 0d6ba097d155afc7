"""Linear layers of encoders: float32 weights laid out once, the activation done before the result leaves the cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels.dispatch import Backend, choose_backend
from kernels.float_linear.reference import float_linear_reference
from kernels.native import function, library


@dataclass(frozen=True, slots=True)
class FloatWeight:
    """A weight [out, in] and its bias, ready to be multiplied by."""

    out_features: int
    in_features: int
    bias: Tensor  # [out], or [P * panels] where `is_packed`; P columns make a panel
    data: Tensor  # [out, in], or [panels, in, P] where `is_packed`
    is_packed: bool


def pack_float_linear(weight: Tensor, bias: Tensor, *, backend: Backend = "auto") -> FloatWeight:
    """Lay out a weight for `float_linear`.

    Args:
        weight: [out, in] float32.
        bias: [out] float32.
        backend: "auto" takes the native layout on a CPU and torch's otherwise.
    Raises: ValueError when shapes or dtypes disagree; RuntimeError when "native" was asked for and is absent.
    """
    is_float = weight.dtype == bias.dtype == torch.float32
    if weight.dim() != 2 or bias.shape != weight.shape[:1] or not is_float:
        raise ValueError(
            f"pack_float_linear: weight {tuple(weight.shape)} {weight.dtype}, bias {tuple(bias.shape)} {bias.dtype}; "
            "it takes [out, in] and [out] float32"
        )
    outputs, inputs = weight.shape
    if choose_backend("float_linear", backend, weight.device) == "torch":
        return FloatWeight(outputs, inputs, bias, weight, is_packed=False)
    panel = int(library().switchyard_float_panel())
    padded = functional.pad(weight, (0, 0, 0, -outputs % panel))
    panels = padded.view(-1, panel, inputs).transpose(1, 2).contiguous()
    return FloatWeight(outputs, inputs, functional.pad(bias, (0, -outputs % panel)), panels, is_packed=True)


def float_linear(x: Tensor, weight: FloatWeight, *, gelu: bool = False) -> Tensor:
    """x @ weight.T + bias, through the exact GELU if asked.

    Args:
        x: [T, in] float32, contiguous.
        weight: what `pack_float_linear` made.
        gelu: 0.5 * y * (1 + erf(y / sqrt(2))) of the result y.
    Returns: [T, out] float32.
    Raises: ValueError when shapes or dtypes disagree, or x is not contiguous.
    Source: the blocking of Goto and van de Geijn, doi:10.1145/1356052.1356053; GELU, arXiv:1606.08415.
    """
    if x.dim() != 2 or x.shape[1] != weight.in_features or x.dtype != torch.float32 or not x.is_contiguous():
        raise ValueError(
            f"float_linear: x {tuple(x.shape)} {x.dtype} (contiguous: {x.is_contiguous()}), "
            f"weight {(weight.out_features, weight.in_features)} float32"
        )
    if not weight.is_packed:
        return float_linear_reference(x, weight.data, weight.bias, gelu=gelu)
    out = torch.empty((x.shape[0], weight.out_features))
    _native()(
        *(out.data_ptr(), x.data_ptr(), weight.data.data_ptr(), weight.bias.data_ptr()),
        *(x.shape[0], weight.in_features, weight.out_features, gelu),
    )
    return out


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_float_linear", "ppppiiii")
