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
from kernels.native import absence, function, library

# Inputs that share a step, and how long a block of them may become as integers; native_integers.cpp says why.
_BLOCK, _LONGEST, _LARGEST = 64, 46300, 32767


@dataclass(frozen=True, slots=True)
class FloatWeight:
    """A weight [out, in] and its bias, ready to be multiplied by. P columns make a panel."""

    out_features: int
    in_features: int
    bias: Tensor  # [out], or [P * panels] where `is_packed`
    data: Tensor  # [out, in]; where `is_packed` [panels, in, P], or int16 [panels, in / 2, P, 2] with `steps`
    steps: Tensor | None  # [P * panels] what 1 stands for in each output; None: float32
    is_packed: bool


def integer_products_absence() -> str | None:
    """Why weights are not multiplied as integers here, or None where they are."""
    if absence() is not None:
        return absence()
    return None if _integer_panel() else "this processor has no AVX2, or multiplies float32 in vectors of 512 bits"


def pack_float_linear(weight: Tensor, bias: Tensor, *, is_exact: bool = True, backend: Backend = "auto") -> FloatWeight:
    """Lay out a weight for `float_linear`.

    Args:
        weight: [out, in] float32.
        bias: [out] float32.
        is_exact: False lets the native kernel round weight and x to integers of 16 bits, of which AVX2 multiplies two
            in the time of one float32; with AVX512 nothing is rounded. Of normally distributed numbers the error is
            below 1e-4 of the result, both as root mean squares.
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
        return FloatWeight(outputs, inputs, bias, weight, None, is_packed=False)
    has_integers = not is_exact and integer_products_absence() is None
    panel = _integer_panel() if has_integers else int(library().switchyard_float_panel())
    padded = functional.pad(weight, (0, 0, 0, -outputs % panel))
    full_bias = functional.pad(bias, (0, -outputs % panel))
    if has_integers:
        codes, steps = _round(padded)
        panels = codes.view(-1, panel, codes.shape[1] // 2, 2).transpose(1, 2).contiguous()
        return FloatWeight(outputs, inputs, full_bias, panels, steps, is_packed=True)
    panels = padded.view(-1, panel, inputs).transpose(1, 2).contiguous()
    return FloatWeight(outputs, inputs, full_bias, panels, None, is_packed=True)


def float_linear(x: Tensor, weight: FloatWeight, *, gelu: bool = False) -> Tensor:
    """x @ weight.T + bias, through the exact GELU if asked.

    A row depends on no other row. One with NaN or infinity is NaN throughout where the weight was rounded.

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
    sizes = (x.shape[0], weight.in_features, weight.out_features, gelu)
    pointers = (out.data_ptr(), x.data_ptr(), weight.data.data_ptr())
    if weight.steps is None:
        _native()(*pointers, weight.bias.data_ptr(), *sizes)
    else:
        _native_integers()(*pointers, weight.steps.data_ptr(), weight.bias.data_ptr(), *sizes)
    return out


def _round(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int16 [out, in up to whole blocks] and what 1 stands for, float32 [out]; NaN for a weight that is not finite."""
    blocks = functional.pad(weight, (0, -weight.shape[1] % _BLOCK)).double().view(weight.shape[0], -1, _BLOCK)
    lengths = torch.linalg.vector_norm(blocks, dim=-1).amax(-1) / _LONGEST
    steps = torch.maximum(lengths, blocks.abs().amax((-1, -2)) / _LARGEST).float()
    rounded = (blocks / steps[:, None, None]).round().nan_to_num(0)  # 0 / 0 of weights that are all 0
    return rounded.to(torch.int16).view(weight.shape[0], -1), steps


@lru_cache(maxsize=1)
def _integer_panel() -> int:
    return int(library().switchyard_integer_panel())


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_float_linear", "ppppiiii")


@lru_cache(maxsize=1)
def _native_integers() -> Any:
    return function("switchyard_integer_linear", "pppppiiii")
