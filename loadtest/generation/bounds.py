"""What this machine could do at best, and where the time of a step goes.

Runs in a process of its own: python -m loadtest.generation.bounds MODEL DTYPE THREADS WIDTHxCONTEXT...
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from engine.generation.attention.cpu import CpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import DecoderSpec, read_spec
from engine.generation.runner import Runner
from engine.generation.sampler import Sampler, choose
from engine.generation.sequence import PrefixKey, Sequence, num_blocks_for
from engine.generation.step import Step
from kernels.decoder_forward import timed_parts

_NUM_TIMED = 8


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured rates: bytes read from memory a second, and operations of large matrix products a second."""

    read_bytes_s: float
    flops_s: float


def measure_machine(dtype: torch.dtype) -> Machine:
    """Read a gigabyte, and multiply matrices as large as a prompt chunk's."""
    large = torch.ones(256 * 1024 * 1024, dtype=torch.float32)
    read_s = _median_s(lambda: large.sum())
    x, weight = torch.randn(512, 2048), torch.randn(4096, 2048)
    # Torch may widen bfloat16 in software, slower than it multiplies float32: the machine can do the better of both.
    product_s = min(_product_s(x.to(each), weight.to(each)) for each in {dtype, torch.float32})
    return Machine(large.numel() * 4 / read_s, 2 * 512 * 2048 * 4096 / product_s)


def _product_s(x: torch.Tensor, weight: torch.Tensor) -> float:
    return _median_s(lambda: torch.nn.functional.linear(x, weight))


def step_bound_s(
    spec: DecoderSpec, machine: Machine, dtype: torch.dtype, *, width: int, context: int, weight_bytes: int
) -> float:
    """Least seconds of a step of `width` decodes at that context: the larger of reading and of computing.

    Weights are read once, in their smallest format of `weight_bytes`; keys and values once for each request.
    """
    weights = _layer_weights(spec) + spec.vocab_size * spec.hidden_size
    num_bytes = weight_bytes + width * context * spec.kv_token_bytes(dtype)
    attention = 4 * spec.num_layers * spec.num_heads * spec.head_dim * context
    return max(num_bytes / machine.read_bytes_s, width * (2 * weights + attention) / machine.flops_s)


def product_operations(spec: DecoderSpec, *, num_tokens: int, num_logits: int) -> int:
    """Floating-point operations of the matrix products for `num_tokens`, `num_logits` of which get logits.

    Attention is left out: at a hundred tokens of context it is about a hundredth of this.
    """
    return 2 * (num_tokens * _layer_weights(spec) + num_logits * spec.vocab_size * spec.hidden_size)


def _layer_weights(spec: DecoderSpec) -> int:
    kv = spec.num_kv_heads * spec.head_dim
    layer = spec.hidden_size * (2 * spec.num_heads * spec.head_dim + 2 * kv + 3 * spec.intermediate_size)
    return spec.num_layers * layer


def profile_step(decoder: Decoder, *, width: int, context: int) -> dict[str, float]:
    """Milliseconds of a step of `width` decodes at that context, and of its parts, over the same runs.

    Only forwards in one native call tell their parts.
    """
    spec, dtype = decoder.spec, decoder.dtype
    blocks_each = num_blocks_for(context + 1)
    attention = CpuAttention(
        spec, num_blocks=width * blocks_each, max_model_len=context + 1, dtype=dtype, device=decoder.device
    )
    attention.cache.keys.zero_()
    attention.cache.values.zero_()
    runner = Runner(decoder, attention)
    sequences = tuple(
        Sequence(
            *(str(i), [5] * (context + 1), context, context + 2, PrefixKey("", "", ""), None),
            num_computed=context,
            blocks=list(range(i * blocks_each, (i + 1) * blocks_each)),
        )
        for i in range(width)
    )
    step = Step(sequences, (1,) * width)
    samplers = [Sampler.greedy() for _ in sequences]

    def run() -> float:
        """Seconds of sampling."""
        logits = runner.run(step).logits
        started = time.perf_counter()
        choose(logits, samplers)
        return time.perf_counter() - started

    run()
    with timed_parts() as seconds:
        started = time.perf_counter()
        sampling_s = sum(run() for _ in range(_NUM_TIMED))
        total_s = time.perf_counter() - started
    parts_s = {part: value for part, value in seconds.items() if value} | {"sampling": sampling_s}
    all_s = {"step": total_s, **parts_s, "rest": total_s - sum(parts_s.values())}
    return {name: 1000 * value / _NUM_TIMED for name, value in all_s.items()}


def _median_s(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(7):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


def main() -> None:
    """Print one JSON object: rates of the machine, and of each step its bound and its parts in milliseconds."""
    model, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
    torch.set_num_threads(int(sys.argv[3]))
    machine = measure_machine(dtype)
    spec = read_spec(model)
    decoder = Decoder(model, spec, dtype=dtype, device="cpu")
    weight_bytes = decoder.product_bytes
    decoder.choose_formats()
    steps = {}
    for case in sys.argv[4:]:
        width, context = map(int, case.split("x"))
        bound_s = step_bound_s(spec, machine, dtype, width=width, context=context, weight_bytes=weight_bytes)
        parts = profile_step(decoder, width=width, context=context)
        steps[case] = {"bound": 1000 * bound_s, **parts}
    print(json.dumps({"read_gb_s": machine.read_bytes_s / 1e9, "gemm_tflop_s": machine.flops_s / 1e12, "steps": steps}))


if __name__ == "__main__":
    main()
