"""Where the time of a step goes on the device: by part, by kernel, and whether the device waits for the host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from engine.generation.adapters.files import AdapterWeights, target_shapes
from engine.generation.adapters.store import AdapterStore
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.graphs.sizes import graph_sizes, size_for
from engine.generation.runner import Runner
from engine.generation.sampler import Sampler, choose
from engine.generation.sequence import PrefixKey, Sequence, num_blocks_for
from engine.generation.step import Step
from loadtest.generation.adapters import NUM_ADAPTERS, RANK
from loadtest.generation.bounds import Machine, product_operations, step_bound_s
from loadtest.gpu import bars
from loadtest.gpu.graphs import new_graphs
from loadtest.gpu.record import Record
from loadtest.gpu.step_parts import measured, summary

# Decodes by width and context, those of the bars first, and chunks of a prompt.
BAR_DECODES = tuple((width, bars.CONTEXT) for width in (*bars.WIDTHS, bars.LORA_WIDTH))
QUICK_DECODES = (*BAR_DECODES, (32, 1200))
DECODES = (*QUICK_DECODES, (128, 256))
PROMPTS = (bars.PROMPT_TOKENS, 512)


@dataclass(frozen=True, slots=True)
class Plan:
    """Decodes that are recorded, how many of these are launched one by one as well, and runs of each step."""

    decodes: tuple[tuple[int, int], ...]
    num_launched: int
    num_runs: int
    num_profiled: int


FULL = Plan(DECODES, len(DECODES), 7, 3)
QUICK = Plan(QUICK_DECODES, 2, 7, 3)
DRY = Plan(BAR_DECODES, 1, 1, 1)
MAX_MODEL_LEN = 4096  # the engine's default: what is recorded must serve every context


def profile_steps(record: Record, shape: str, model: Path, device: str, machine: Machine, plan: Plan) -> None:
    """Steps of bfloat16 decodes of several widths, launched and recorded, with and without adapters; prompt chunks.

    Those that are recorded come first, and last those that the engine takes no more.
    """
    spec = read_spec(model)
    decoder = Decoder(model, spec, dtype=torch.bfloat16, device=device)
    store = _filled_store(decoder)
    kinds = [
        _Kind(f"{shape} decode {width}x{context}{' lora8' * has_adapters}{' graph' * is_recorded}", width, context, 1)
        for is_recorded, decodes in ((True, plan.decodes), (False, plan.decodes[: plan.num_launched]))
        for width, context in decodes
        for has_adapters in (False, True)
    ]
    prompts = [_Kind(f"{shape} prompt 1x{n}", 1, n, n) for n in PROMPTS]
    for kind in sorted([*prompts, *kinds], key=lambda kind: (not kind.is_recorded, kind.num_new == 1)):
        record.attempt(f"step {kind.name}", partial(_note, record, kind, decoder, store, machine, plan), estimate_s=5)


@dataclass(frozen=True, slots=True)
class _Kind:
    """`num_new` tokens of each of `width` sequences, the last of `context`; its name says the rest."""

    name: str
    width: int
    context: int
    num_new: int

    @property
    def has_adapters(self) -> bool:
        return " lora8" in self.name

    @property
    def is_recorded(self) -> bool:
        return self.name.endswith(" graph")


def bound_s(decoder: Decoder, machine: Machine, width: int, context: int, num_new: int) -> float:
    """Least seconds of a base step: of a decode the larger of reading and computing, of a prompt computing.

    Reading is of all weights once, and of each request's keys and values.
    """
    spec = decoder.spec
    if num_new == 1:
        weight_bytes = decoder.product_bytes
        return step_bound_s(spec, machine, decoder.dtype, width=width, context=context, weight_bytes=weight_bytes)
    pairs = width * (num_new * (context - num_new) + num_new * (num_new + 1) // 2)
    attention = 4 * pairs * spec.num_layers * spec.num_heads * spec.head_dim
    return (product_operations(spec, num_tokens=width * num_new, num_logits=width) + attention) / machine.flops_s


def _note(record: Record, kind: _Kind, decoder: Decoder, store: AdapterStore, machine: Machine, plan: Plan) -> None:
    width, context, num_new = kind.width, kind.context, kind.num_new
    each = num_blocks_for(context)
    attention = GpuAttention(
        decoder.spec, num_blocks=width * each, max_model_len=MAX_MODEL_LEN, dtype=decoder.dtype, device=decoder.device
    )
    cache = attention._cache
    cache.keys.normal_()
    cache.values.normal_()
    graphs = None
    if kind.is_recorded:
        size = size_for(width, graph_sizes(width))
        assert size is not None
        graphs = new_graphs(decoder, attention, (size,), MAX_MODEL_LEN, store)
    runner = Runner(decoder, attention, store, graphs=graphs)
    # Eight in turn, those of one side by side.
    slots = [i % store.num_slots if kind.has_adapters else -1 for i in range(width)]
    sequences = tuple(
        Sequence(
            *(
                str(i),
                [5 + i % 90] * context,
                context - (num_new == 1),
                context + 1,
                PrefixKey("", str(slot), ""),
                None,
            ),
            num_computed=context - num_new,
            blocks=list(range(i * each, (i + 1) * each)),
            slot=slot,
        )
        for i, slot in enumerate(slots)
    )
    step = Step(sequences, (num_new,) * width)
    samplers = [Sampler.greedy() for _ in sequences]

    def run() -> None:
        output = runner.run(step)
        choose(output.logits, samplers, best=output.best)  # its ids are read, so the device is waited for

    found = measured(run, plan.num_runs, plan.num_profiled, is_cuda=decoder.device.type == "cuda")
    if kind.is_recorded and not runner.num_recorded:
        raise RuntimeError("the step was not recorded")
    found["bound_ms"] = round(1000 * bound_s(decoder, machine, width, context, num_new), 4)
    record.found.extra.setdefault("steps", {})[kind.name] = found
    record.console.print(f"{kind.name}: {summary(found)}", markup=False, soft_wrap=True)


def _filled_store(decoder: Decoder) -> AdapterStore:
    """An adapter of every linear in every slot."""
    store = AdapterStore(
        decoder.spec, num_slots=NUM_ADAPTERS, dtype=decoder.dtype, device=decoder.device, backend="torch"
    )
    drawn = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return (torch.randn(size, generator=drawn) * 0.01).to(decoder.dtype)

    pairs = {
        (layer, target): (draw(RANK, inputs), draw(outputs, RANK))
        for layer in range(decoder.spec.num_layers)
        for target, (outputs, inputs) in target_shapes(decoder.spec).items()
    }
    packed = store.pack(AdapterWeights("", RANK, pairs))
    for slot in range(NUM_ADAPTERS):
        store.put(slot, replace(packed, digest=str(slot)))
    return store
