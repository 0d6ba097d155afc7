"""Recorded steps against the same steps launched one by one, and how a script records them with and without a GPU."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.generation.adapters.store import AdapterStore
from engine.generation.attention.base import FlatBatch
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.graphs.capture import Capture, CudaCapture
from engine.generation.graphs.decode_graphs import DecodeGraphs
from engine.generation.graphs.sizes import graph_sizes
from engine.generation.sequence import num_blocks_for
from loadtest.gpu.record import Record

# New tokens of each request: answers, padded and not, and drafts.
STEPS = ((1,), (1,) * 3, (1,) * 8, (1,) * 33, (8,), (1, 8, 3, 5, 1))
MAX_CONTEXT = 600
# Of the error that the step has when launched one by one: sums in another order are as good.
_FACTOR = 2.0


class Again:
    """A Capture where there is no GPU: does the work again."""

    num_bytes = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See Capture."""
        work()
        return work


def new_graphs(
    decoder: Decoder,
    attention: GpuAttention,
    sizes: Sequence[int],
    max_model_len: int,
    store: AdapterStore | None = None,
) -> DecodeGraphs:
    """Recordings of no step yet, with the adapters of `store` or without any."""
    is_cuda = decoder.device.type == "cuda"
    capture: Capture = CudaCapture(decoder.device) if is_cuda else Again()
    return DecodeGraphs(decoder, attention, store, capture, sizes=tuple(sizes), max_model_len=max_model_len)


def check_graphs(record: Record, shape: str, device: str, model: Path) -> None:
    """Logits of recorded steps in bfloat16, held to the error that the steps themselves have against float32."""
    spec = read_spec(model)
    drawn = random.Random(0)
    batches = [_batch(new, drawn) for new in STEPS]
    num_blocks = max(max(block for table in batch.block_tables for block in table) for batch in batches) + 1
    results: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        decoder = Decoder(model, spec, dtype=dtype, device=device)
        attention = GpuAttention(
            spec, num_blocks=num_blocks, max_model_len=MAX_CONTEXT, dtype=dtype, device=decoder.device
        )
        fill_cache(attention)
        graphs = new_graphs(decoder, attention, graph_sizes(64), MAX_CONTEXT)
        graphs.prepare()
        found = [_both(decoder, attention, graphs, batch) for batch in batches]
        results[dtype] = [each[0] for each in found], [each[1] for each in found]
    exact = results[torch.float32][0]
    wrong = []
    worst = 0.0
    for dtype, (eager, repeated) in results.items():
        for new, right, one, other in zip(STEPS, exact, eager, repeated, strict=True):
            error = float((other - right).abs().max())
            allowed = _FACTOR * float((one - right).abs().max()) + 1e-5 * float(right.abs().max())
            worst = max(worst, error / allowed)
            if not error <= allowed:  # NaN is wrong too
                wrong.append(f"{dtype}, {len(new)} requests: error {error:.3g}, allowed {allowed:.3g}")
    words = "; ".join(wrong) or f"at most {worst:.2f} of the error allowed, {graphs.num_recorded} sizes recorded"
    record.check(f"graphs {shape}", is_right=not wrong and graphs.num_recorded > 0, words=words)


def fill_cache(attention: GpuAttention) -> None:
    """Random keys and values, the same on every device and in every dtype up to its rounding."""
    drawn = torch.Generator().manual_seed(0)
    for tensor in (attention._cache.keys, attention._cache.values):
        for layer in tensor:
            layer.copy_(torch.randn(layer.shape, generator=drawn))


def _batch(new: Sequence[int], drawn: random.Random) -> FlatBatch:
    contexts = [drawn.randrange(count, MAX_CONTEXT) for count in new]
    first, tables = 0, []
    for context in contexts:
        tables.append(list(range(first, first + num_blocks_for(context))))
        first = tables[-1][-1] + 1
    return FlatBatch(new, contexts, tables)


@torch.inference_mode()
def _both(decoder: Decoder, attention: GpuAttention, graphs: DecodeGraphs, batch: FlatBatch) -> tuple[Tensor, Tensor]:
    """Logits of the step launched one by one, and repeated. Float32, on the CPU."""
    token_ids = [5 + 7 * i % 97 for i in range(sum(batch.num_new))]
    rows = torch.arange(len(token_ids), device=decoder.device)
    padded = torch.tensor(token_ids, device=decoder.device)
    eager = decoder.forward(padded, attention, attention.plan(batch), rows).float().cpu()
    found = graphs.run(token_ids, batch, [])
    if found is None:
        raise RuntimeError(f"a step of {len(token_ids)} tokens is not recorded")
    return eager, found[0].float().cpu().clone()  # the next step overwrites it
