"""A forward in one native call gives the bits of the operations one by one: logits, keys and values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pairwise import pairwise
from tiny_adapter import write_tiny_adapter
from tiny_model import write_tiny_model

from engine.generation.adapters.files import read_adapter
from engine.generation.adapters.store import AdapterStore
from engine.generation.attention.base import FlatBatch
from engine.generation.attention.cpu import CpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from kernels.decoder_forward import timed_parts
from kernels.native import bf16_products_absence
from kernels.packed_linear import packed_products_absence

CPU = torch.device("cpu")
BF16 = torch.bfloat16
FACTORS = {
    "architecture": ("llama", "mistral", "qwen2", "qwen3"),
    "batch": ("decodes", "drafts", "chunks", "chunk alone", "mixed"),
    "padding": (0, 3),
    "adapters": ("none", "first layer's q", "all"),
    "logits": ("last", "all", "none"),
    "weights": ("plain", "int8", "int4"),
}
# New tokens and contexts, those with few new tokens first.
BATCHES = {
    "decodes": ([1, 1, 1], [40, 3, 17]),
    "drafts": ([1, 4, 8], [16, 33, 20]),
    "chunks": ([9, 40], [9, 70]),
    "chunk alone": ([33], [33]),
    "mixed": ([1, 5, 20], [30, 5, 64]),
}

pytestmark = pytest.mark.skipif(
    (bf16_products_absence() or packed_products_absence()) is not None,
    reason="there are no native kernels for bfloat16 here",
)


class ByParts(CpuAttention):
    """Attention that knows of no forward in one call."""

    def native_step(self, plan: object) -> None:
        return None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_tiny_model(folder / name, architecture=name, head_dim=32) for name in FACTORS["architecture"]}


def adapter_store(model: Path, targets: str, folder: Path) -> AdapterStore:
    spec = read_spec(model)
    store = AdapterStore(spec, num_slots=2, dtype=BF16, device=CPU)
    for slot, rank in enumerate((4, 12)):
        path = folder / f"adapter{slot}"
        chosen = {"targets": ["q"], "layers_to_transform": [0]} if targets != "all" else {}
        write_tiny_adapter(path, model, seed=slot, rank=rank, **chosen)  # type: ignore[arg-type]
        _, weights = read_adapter(path, path.name, spec, model_digest="", max_rank=16, dtype=BF16)
        store.put(slot, store.pack(weights))
    return store


@pytest.mark.parametrize("case", pairwise(FACTORS), ids=lambda case: "-".join(map(str, case.values())))
def test_one_call_gives_the_bits_of_the_operations_one_by_one(models: dict[str, Path], tmp_path: Path, case: dict):
    model = models[case["architecture"]]
    spec = read_spec(model)
    decoder = Decoder(model, spec, dtype=BF16, device="cpu", weights=case["weights"])
    num_new, contexts = BATCHES[case["batch"]]
    blocks = iter(torch.randperm(32, generator=torch.Generator().manual_seed(1)).tolist())
    tables = [[next(blocks) for _ in range(-(-context // 16))] for context in contexts]
    batch = FlatBatch(num_new, contexts, tables, case["padding"])
    total = sum(num_new)
    tokens = torch.randint(spec.vocab_size, (total + case["padding"],), generator=torch.Generator().manual_seed(2))
    rows = torch.arange(total) if case["logits"] == "all" else torch.tensor(num_new).cumsum(0) - 1
    rows = rows[:0] if case["logits"] == "none" else rows
    plan = None
    if case["adapters"] != "none":
        stop = min(total, 12)
        plan = adapter_store(model, case["adapters"], tmp_path).plan([(0, 1, 1), (stop - 1, stop, 0)][:stop])
    results = []
    for kind in (CpuAttention, ByParts):
        attention = kind(spec, num_blocks=32, max_model_len=128, dtype=BF16, device=CPU)
        generator = torch.Generator().manual_seed(3)
        for cache in (attention.cache.keys, attention.cache.values):
            cache.copy_(torch.randn(cache.shape, generator=generator))
        with timed_parts() as seconds, torch.inference_mode():
            logits = decoder.forward(tokens, attention, attention.plan(batch), rows, plan)
        assert (seconds["linear"] > 0) == (kind is CpuAttention)
        results.append((logits, attention.cache.keys, attention.cache.values))
    assert results[0][0].shape == (len(rows), spec.vocab_size)
    for one_call, by_parts in zip(*results, strict=True):
        assert torch.equal(one_call, by_parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_number_formats_are_computed_by_parts(models: dict[str, Path], dtype: torch.dtype):
    model = models["llama"]
    assert Decoder(model, read_spec(model), dtype=dtype, device="cpu")._native_forward(1) is None
