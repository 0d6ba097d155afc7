"""Which part of a model a rank holds: whole heads, and a run of the MLP's columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from engine.errors import ConfigError
from engine.generation.adapters.files import AdapterWeights
from engine.generation.decoder.spec import DecoderSpec

# Linears whose inputs are split; of the others the outputs are.
ROW_SPLIT = frozenset({"o", "down"})


@dataclass(frozen=True, slots=True)
class Part:
    """Number `rank` of `size` parts. `dim` is the dimension of a weight [out, in] that is cut."""

    rank: int
    size: int
    dim: int = 0

    def of(self, length: int) -> slice:
        """The run of `length` places that is this part; the last part is the shorter one where they do not divide."""
        width = -(-length // self.size)
        return slice(min(self.rank * width, length), min((self.rank + 1) * width, length))


def part_spec(spec: DecoderSpec, size: int) -> DecoderSpec:
    """The sizes that one of `size` ranks computes with; hidden size and vocabulary stay whole.

    Raises: ConfigError naming the sizes that this model can be split into.
    """
    if size == 1:
        return spec
    common = math.gcd(spec.num_heads, spec.num_kv_heads, spec.intermediate_size)
    if common % size:
        allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise ConfigError(
            f"generator.tensor_parallel={size} does not fit the model: each process takes whole heads, and it has "
            f"{spec.num_heads} heads, {spec.num_kv_heads} heads of keys and values and {spec.intermediate_size} "
            f"columns of its MLP. Set it to one of: {allowed}."
        )
    return replace(
        spec,
        num_heads=spec.num_heads // size,
        num_kv_heads=spec.num_kv_heads // size,
        intermediate_size=spec.intermediate_size // size,
    )


def adapter_part(weights: AdapterWeights, part: Part) -> AdapterWeights:
    """What a rank computes of an adapter: the outputs of B, or the inputs of A where the linear's inputs are split.

    The sums of the latter are the adapter's: they join in the sum of the linear itself.
    """
    pairs: Mapping[tuple[int, str], tuple[Tensor, Tensor]] = {
        (layer, target): (a[:, part.of(a.shape[1])], b) if target in ROW_SPLIT else (a, b[part.of(b.shape[0])])
        for (layer, target), (a, b) in weights.pairs.items()
    }
    return replace(weights, pairs=pairs)
