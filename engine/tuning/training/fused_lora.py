"""PEFT's linear layer with LoRA as one autograd operation: the same values, fewer passes over memory.

PEFT computes `base(x) + B(A(x)) * scaling` as separate operations, each of which writes and keeps a tensor as large
as the layer's output. Here the low-rank products accumulate into the base's result, and into its gradient.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn.functional import linear


def fuse_lora(model: torch.nn.Module) -> None:
    """Replace the forward of each LoRA layer of a PEFT model, in place. Layers with dropout or merged stay PEFT's."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.forward = partial(_forward, module, module.forward)


def _forward(module: Any, original: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    (name,) = module.active_adapters
    if module.disable_adapters or module.merged or args or kwargs or module.training:
        result: Tensor = original(x, *args, **kwargs)
        return result
    base = module.base_layer
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    fused: Tensor = _LoraLinear.apply(x, base.weight, base.bias, a, b, module.scaling[name])  # type: ignore[no-untyped-call]
    return fused


class _LoraLinear(torch.autograd.Function):
    """x [..., in], weight [out, in] frozen, a [R, in] and b [out, R] trained in float32, computed in x's dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        a, b = a.to(x.dtype), b.to(x.dtype)
        inner = rows @ a.T  # [T, R]
        result = linear(rows, weight, bias).addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, a, b = ctx.saved_tensors
        gradient = upstream[0].flatten(0, -2)
        of_inner = (gradient @ b).mul_(ctx.scaling)  # [T, R]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_inner, a).view(ctx.shape)
        of_a = (of_inner.T @ rows).float()
        of_b = (gradient.T @ inner).float().mul_(ctx.scaling)
        return of_x, None, None, of_a, of_b, None
