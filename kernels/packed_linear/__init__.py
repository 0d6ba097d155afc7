"""Matrix products with weights of 4 or 8 bits in blocks, for steps that wait for the memory: few rows, many weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from kernels.dispatch import Backend, choose_backend
from kernels.native import absence, function, library
from kernels.packed_linear.reference import BLOCK, dequantise, packed_linear_reference

Bits = Literal[4, 8]


@dataclass(frozen=True, slots=True)
class BlockCodes:
    """A weight [out, in] in blocks of 32 inputs, as GGUF's Q4_1 and Q8_0 have them.

    8 bits: codes int8 [out, in], weight = scale * code. 4 bits: codes uint8 [out, in / 2], weight = scale * code + min
    with codes 0 to 15; byte 16 * b + j of a row holds input 32 * b + j in its low half and 32 * b + 16 + j in its high.
    """

    codes: Tensor
    scales: Tensor  # float16 [out, in / 32]
    mins: Tensor | None  # float16 [out, in / 32]; None: 8 bits

    @property
    def bits(self) -> Bits:
        """Of a code."""
        return 8 if self.mins is None else 4

    def dequantised(self) -> Tensor:
        """float32 [out, in]."""
        return dequantise(self.codes, self.scales, self.mins)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out, in] ready to be multiplied by."""

    out_features: int
    in_features: int
    bits: Bits
    bias: Tensor | None  # [out], or [16 * panels] float32 where `is_packed`
    data: Tensor  # float32 [out, in], or uint8 [panels, in / 32, bytes of 16 outputs' block] where `is_packed`
    is_packed: bool


def quantise(weight: Tensor, bits: Bits) -> BlockCodes:
    """The codes nearest to a weight: 4 bits between the extremes of each block, or 8 symmetric ones.

    Args:
        weight: [out, in], any float dtype; `in` a multiple of 32.
    Raises: ValueError for another number of inputs.
    Source: quantize_row_q4_1_ref and quantize_row_q8_0_ref of ggml.
    """
    if weight.dim() != 2 or weight.shape[1] % BLOCK:
        raise ValueError(f"quantise: weight {tuple(weight.shape)}; its inputs must be a multiple of {BLOCK}")
    rows = weight.shape[0]
    blocks = weight.float().reshape(rows, -1, BLOCK)
    if bits == 8:
        scales = (blocks.abs().amax(-1) / 127).half()
        codes = torch.round(blocks * _inverse(scales)).clamp(-127, 127).to(torch.int8)
        return BlockCodes(codes.reshape(rows, -1), scales, None)
    mins = blocks.amin(-1).half()
    scales = ((blocks.amax(-1) - mins.float()) / 15).half()
    nibbles = torch.round((blocks - mins.float().unsqueeze(-1)) * _inverse(scales)).clamp(0, 15).to(torch.uint8)
    low, high = nibbles[..., : BLOCK // 2], nibbles[..., BLOCK // 2 :]
    return BlockCodes((low | high << 4).reshape(rows, -1), scales, mins)


def stack_codes(parts: list[BlockCodes]) -> BlockCodes:
    """The outputs of several weights one after another. Raises: ValueError when their bits or inputs differ."""
    if len({(part.bits, part.codes.shape[1]) for part in parts}) != 1:
        raise ValueError(f"stack_codes: {[(part.bits, tuple(part.codes.shape)) for part in parts]}")
    mins = [part.mins for part in parts if part.mins is not None]
    return BlockCodes(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(mins) if mins else None,
    )


def pack_codes(weight: BlockCodes, bias: Tensor | None = None, *, backend: Backend = "auto") -> PackedWeight:
    """Lay out a weight for `packed_linear`.

    Args:
        weight: on a CPU with AVX2, copied into the native kernel's panels: drop yours. Elsewhere dequantised.
        bias: [out], any float dtype.
        backend: "auto" takes the native layout where it is supported and torch's otherwise.
    Raises: ValueError when shapes or dtypes disagree; RuntimeError when "native" was asked for and cannot be.
    """
    outputs, inputs = _check(weight, bias)
    missing = packed_products_absence()
    if backend == "native" and missing is not None:
        raise RuntimeError(f"packed_linear: backend 'native' is absent: {missing}")
    if missing is not None or choose_backend("packed_linear", backend, weight.codes.device) == "torch":
        return PackedWeight(outputs, inputs, weight.bits, bias, weight.dequantised(), is_packed=False)
    panel = _panel()
    full = torch.zeros(outputs + -outputs % panel)
    if bias is not None:
        full[:outputs] = bias
    halves = [weight.scales] if weight.mins is None else [weight.scales, weight.mins]
    parts = [_by_panel(half.view(torch.uint8), panel, inputs) for half in halves]
    parts.append(_by_panel(_words(weight, inputs), panel, inputs))
    return PackedWeight(outputs, inputs, weight.bits, full, torch.cat(parts, dim=-1), is_packed=True)


def packed_linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """x @ weight.T + bias, for the weights that the codes stand for.

    The native kernel multiplies x as integers of 16 bits, with a step that is a power of two for each 32 of a row: a
    number down to 1/128 of the largest of its 32 is exact, a smaller one is off by at most 2^-16 of that. The error is
    below that of rounding the weights to bfloat16.

    Args:
        x: [T, in] contiguous; bfloat16 where the weight is packed, any float dtype otherwise.
        weight: what `pack_codes` made.
    Returns: [T, out] of x's dtype, summed in float32 and rounded once.
    Raises: ValueError when shapes or dtypes disagree, or x is not contiguous.
    """
    is_fit = x.dim() == 2 and x.shape[1] == weight.in_features and x.is_contiguous()
    if not is_fit or (weight.is_packed and x.dtype != torch.bfloat16):
        raise ValueError(
            f"packed_linear: x {tuple(x.shape)} {x.dtype} (contiguous: {x.is_contiguous()}), "
            f"weight {(weight.out_features, weight.in_features)} of {weight.bits} bits takes bfloat16"
        )
    if not weight.is_packed:
        return packed_linear_reference(x, weight.data, weight.bias)
    assert weight.bias is not None
    out = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype)
    _native()(
        *(out.data_ptr(), x.data_ptr(), weight.data.data_ptr(), weight.bias.data_ptr()),
        *(weight.bits, x.shape[0], weight.in_features, weight.out_features),
    )
    return out


def packed_products_absence() -> str | None:
    """Why there is no native kernel for packed weights, or None where there is."""
    if absence() is not None:
        return absence()
    return None if _panel() else "this processor has no AVX2 with FMA"


def _inverse(scales: Tensor) -> Tensor:
    # Of the rounded scale, so that codes are the nearest to what they will stand for; a block of equal weights has 0.
    wide = scales.float().unsqueeze(-1)
    return torch.where(wide > 0, 1 / wide, 0.0)


def _check(weight: BlockCodes, bias: Tensor | None) -> tuple[int, int]:
    outputs, stored = weight.codes.shape
    inputs = stored if weight.bits == 8 else 2 * stored
    sizes = (outputs, inputs // BLOCK)
    dtype = torch.int8 if weight.bits == 8 else torch.uint8
    halves = [weight.scales] if weight.mins is None else [weight.scales, weight.mins]
    is_fit = inputs % BLOCK == 0 and weight.codes.dtype == dtype
    is_fit = is_fit and all(half.shape == sizes and half.dtype == torch.float16 for half in halves)
    if not is_fit or (bias is not None and bias.shape != (outputs,)):
        found = [(tuple(part.shape), part.dtype) for part in (weight.codes, *halves, *([] if bias is None else [bias]))]
        raise ValueError(f"pack_codes: {weight.bits} bits, {found}; blocks are of {BLOCK} inputs")
    return outputs, inputs


def _words(weight: BlockCodes, inputs: int) -> Tensor:
    """uint8 [out, in / 32 * words * 4]: codes as the kernel takes them, words of 32 bits in the order of the inputs."""
    rows = weight.codes.shape[0]
    if weight.bits == 8:
        # Inputs 0 and 2 of four in a word's lower half, 1 and 3 in its upper one.
        return weight.codes.view(torch.uint8).reshape(rows, -1, 4)[:, :, [0, 2, 1, 3]].reshape(rows, -1)
    nibbles = weight.codes.reshape(rows, -1, BLOCK // 2)
    codes = torch.cat([nibbles & 15, nibbles >> 4], dim=-1).reshape(rows, inputs // 8, 8)
    # Inputs 0, 2, 4, 6 of eight in a word's lower half from its lowest bits up, 1, 3, 5, 7 in its upper one.
    return (codes[:, :, [0, 4, 1, 5]] | codes[:, :, [2, 6, 3, 7]] << 4).reshape(rows, -1)


def _by_panel(values: Tensor, panel: int, inputs: int) -> Tensor:
    """Bytes [out, in / 32 * B] as [panels, in / 32, bytes of a block]: outputs side by side in units of the kernel."""
    outputs, blocks = values.shape[0], inputs // BLOCK
    padded = functional.pad(values, (0, 0, 0, -outputs % panel))
    size = values.shape[1] // blocks
    unit = 2 if size == 2 else 4  # a scale, or a word
    units = padded.view(-1, panel, blocks, size // unit, unit).permute(0, 2, 3, 1, 4)
    return units.reshape(-1, blocks, size * panel)


@lru_cache(maxsize=1)
def _panel() -> int:
    return int(library().switchyard_packed_panel())


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_packed_linear", "ppppiiii")
