"""In which formats a model's weights are kept: the file's own, or 4 or 8 bits by the user's choice."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import WeightFormat
from engine.errors import ConfigError
from engine.generation.decoder.matrix import Matrix
from kernels.linear import pack_linear
from kernels.packed_linear import Bits, BlockCodes, pack_codes, packed_products_absence, quantise

_BITS: dict[WeightFormat, Bits] = {"int8": 8, "int4": 4}


class WeightPacker:
    """Lays out the weights of one model."""

    def __init__(self, weights: WeightFormat, dtype: torch.dtype, device: torch.device) -> None:
        """Raises: ConfigError when 4 or 8 bits are asked for and this machine does not multiply them."""
        self._weights = weights
        self._bits = _BITS.get(weights)
        if device.type != "cpu":
            missing: str | None = f"they are multiplied on a CPU, the model runs on {device}"
        elif dtype != torch.bfloat16:
            missing = f"they are multiplied with bfloat16, generator.dtype gives {str(dtype).removeprefix('torch.')}"
        else:
            missing = packed_products_absence()
        if self._bits is not None and missing is not None:
            raise ConfigError(f"generator.weights={weights} cannot be used: {missing}. Set it to auto or plain.")
        self.takes_codes = weights != "plain" and missing is None

    def pack(self, weight: Tensor, bias: Tensor | None, codes: BlockCodes | None) -> Matrix:
        """Lay out a linear of the layers: its weight [out, in], and the codes that the file has for it."""
        if self._bits is None:
            return Matrix(pack_linear(weight, bias), None if codes is None else pack_codes(codes, bias))
        return Matrix(None, pack_codes(self._quantised(weight, codes, self._bits), bias))

    def pack_head(self, weight: Tensor, codes: BlockCodes | None) -> Matrix:
        """Lay out the head. It keeps 8 bits beside layers of 4: each of its errors is one of a logit."""
        if self._bits is None:
            return self.pack(weight, None, codes)
        return Matrix(None, pack_codes(self._quantised(weight, codes, 8)))

    def _quantised(self, weight: Tensor, codes: BlockCodes | None, bits: Bits) -> BlockCodes:
        if codes is not None and codes.bits == bits:
            return codes
        try:
            return quantise(weight, bits)
        except ValueError as error:
            raise ConfigError(
                f"generator.weights={self._weights} cannot be used for this model: {error}. Set it to auto or plain."
            ) from None
