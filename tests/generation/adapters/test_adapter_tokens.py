"""Adapters in the forward: logits and greedy tokens equal PEFT's, whatever cache, batch and slots look like."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from eager_capture import eager_graphs
from pairwise import pairwise
from tiny_adapter import PeftReference, write_tiny_adapter
from tiny_model import write_tiny_model

from engine.generation.adapters.files import read_adapter
from engine.generation.adapters.slots import SlotTable
from engine.generation.adapters.store import AdapterStore, PackedAdapter
from engine.generation.attention.cpu import CpuAttention
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.runner import Runner
from engine.generation.scheduler import Scheduler
from engine.generation.sequence import PrefixKey
from engine.generation.sequence import Sequence as TokenSequence
from engine.generation.step import FixedBudget
from kernels.dispatch import Backend
from kernels.native import absence

CPU = torch.device("cpu")
BACKENDS: tuple[Backend, ...] = ("torch",) if absence() is not None else ("torch", "native")
FACTORS: dict[str, Sequence[Any]] = {
    "adapters": ("base", "A", "B", "mixed"),
    "prefix": ("cold", "warm"),
    "preempted": (False, True),
    "chunk": (16, 100_000),
    "num_slots": (1, 3),
    "backend": BACKENDS,
    "attention": ("cpu", "gpu", "graphs"),
}
NUM_NEW = 16
NUM_BLOCKS = 160
LENGTHS = (1, 16, 17, 40, 70)
Job = tuple[str, list[int]]  # adapter, prompt


class Tuned:
    """A base, adapters of unequal rank and targets, and what PEFT says."""

    def __init__(self, folder: Path, architecture: str) -> None:
        self.base = write_tiny_model(folder / "base", architecture=architecture, seed=1)
        self.folders = {
            "A": write_tiny_adapter(folder / "A", self.base, seed=2, rank=4),
            "B": write_tiny_adapter(folder / "B", self.base, seed=3, rank=12, targets=("q", "v", "down")),
            "C": write_tiny_adapter(
                folder / "C", self.base, seed=4, rank=20, targets=("k", "o", "up"), use_rslora=True
            ),
        }
        self.reference = PeftReference(self.base, self.folders)
        self._known: dict[tuple[str, tuple[int, ...]], list[int]] = {}

    def expected(self, adapter: str, prompt: Sequence[int]) -> list[int]:
        key = (adapter, tuple(prompt))
        if key not in self._known:
            self._known[key] = self.reference.answer(adapter, prompt, NUM_NEW)
        return self._known[key]


class Stack:
    """Scheduler, runner, store and decoder without the engine's thread."""

    def __init__(
        self,
        tuned: Tuned,
        *,
        backend: Backend = "auto",
        attention: str = "cpu",
        chunk: int = 512,
        num_slots: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        spec = read_spec(tuned.base)
        if attention == "graphs":
            backend = "torch"
        store = AdapterStore(spec, num_slots=num_slots, dtype=dtype, device=CPU, backend=backend)
        self.packed: dict[str, PackedAdapter] = {}
        self.digests = {"": ""}
        for name, folder in tuned.folders.items():
            info, weights = read_adapter(folder, name, spec, model_digest="", max_rank=64, dtype=dtype)
            self.digests[name], self.packed[info.digest] = info.digest, store.pack(weights)
        kind = CpuAttention if attention == "cpu" else GpuAttention
        cache: Any = kind(spec, num_blocks=NUM_BLOCKS, max_model_len=1024, dtype=dtype, device=CPU)
        self.slots = SlotTable(num_slots, min_resident_steps=2)
        self.scheduler = Scheduler(
            num_blocks=NUM_BLOCKS, max_num_seqs=16, max_waiting=64, budget=FixedBudget(chunk), slots=self.slots
        )
        decoder = Decoder(tuned.base, spec, dtype=dtype, device="cpu")
        graphs = eager_graphs(decoder, cache, store) if attention == "graphs" else None
        self.runner = Runner(decoder, cache, store, self.packed.get, graphs)

    def sequence(self, job: Job, num_new: int = NUM_NEW, **fields: Any) -> TokenSequence:
        adapter, prompt = job
        key = PrefixKey("model", self.digests[adapter], "")
        return TokenSequence(adapter, list(prompt), len(prompt), len(prompt) + num_new, key, None, **fields)

    def answers(self, jobs: Sequence[Job], num_new: int = NUM_NEW, *, preempt_every: int = 0) -> list[list[int]]:
        sequences = [self.sequence(job, num_new) for job in jobs]
        for sequence in sequences:
            self.scheduler.add(sequence)
        steps = 0
        while (step := self.scheduler.next_step()) is not None:
            output = self.runner.run(step)
            new = [[int(output.logits[stop - 1].argmax())] if stop > start else [] for start, stop in output.spans]
            self.scheduler.finish_step(step, new)
            for sequence in step.sequences:
                if len(sequence.tokens) >= sequence.max_total_tokens:
                    self.scheduler.finish(sequence)
            steps += 1
            if preempt_every and steps % preempt_every == 0:
                self.scheduler.preempt_youngest()
            self.scheduler.check()
        return [sequence.tokens[sequence.num_prompt_tokens :] for sequence in sequences]

    def prompt_logits(self, job: Job) -> torch.Tensor:
        """After every token of one prompt, in one step."""
        sequence = self.sequence(job, needs_prompt_logits=True)
        self.scheduler.add(sequence)
        step = self.scheduler.next_step()
        assert step is not None
        logits = self.runner.run(step).logits
        self.scheduler.finish(sequence)
        return logits


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return Tuned(tmp_path_factory.mktemp(request.param), request.param)


def some_prompts(vocab_size: int, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    drawn = random.Random(seed)
    return [[drawn.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def jobs_of(adapters: str, prompts: Sequence[list[int]]) -> list[Job]:
    """One adapter for all prompts; mixed: every prompt with every adapter, so that equal text lies side by side."""
    if adapters == "mixed":
        return [(name, prompt) for prompt in prompts for name in ("A", "", "B", "C")]
    return [("" if adapters == "base" else adapters, prompt) for prompt in prompts]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("adapter", ["A", "B", "C"])
def test_logits_equal_those_of_peft(tuned: Tuned, backend: Backend, adapter: str):
    prompt = some_prompts(tuned.reference.vocab_size, [50])[0]
    ours = Stack(tuned, backend=backend).prompt_logits((adapter, prompt))
    exact = tuned.reference.logits(adapter, prompt)
    torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
    assert (Stack(tuned, backend=backend).prompt_logits(("", prompt)) - exact).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_in_half_precision_stay_near_those_of_peft(tuned: Tuned, backend: Backend, dtype: torch.dtype):
    prompt = some_prompts(tuned.reference.vocab_size, [50])[0]
    exact = tuned.reference.logits("A", prompt)
    stack = Stack(tuned, backend=backend, dtype=dtype)
    ours, base = stack.prompt_logits(("A", prompt)).float(), stack.prompt_logits(("", prompt)).float()
    assert (ours - exact).norm() < 0.2 * (base - exact).norm()


def test_tokens_equal_those_of_peft_over_a_pairwise_cover(tuned: Tuned):
    prompts = some_prompts(tuned.reference.vocab_size, LENGTHS)
    swaps = displaced = 0
    for row in pairwise(FACTORS):
        stack = Stack(tuned, **{name: row[name] for name in ("backend", "attention", "chunk", "num_slots")})
        jobs = jobs_of(row["adapters"], prompts)
        if row["prefix"] == "warm":
            # Relatives of the prompts, under every adapter, leave full, partial and foreign blocks in the tree.
            stack.answers([(name, prompt[: len(prompt) * 2 // 3 + 1]) for name, prompt in jobs], 2)
            stack.answers(jobs_of("mixed", [[*prompt, 5, 6] for prompt in prompts[3:]]), 2)
        answers = stack.answers(jobs, preempt_every=5 if row["preempted"] else 0)
        for (adapter, prompt), answer in zip(jobs, answers, strict=True):
            assert answer == tuned.expected(adapter, prompt), f"{adapter or 'base'}, {len(prompt)} tokens, {row}"
        assert stack.scheduler.cached_tokens > 0 or row["prefix"] == "cold"
        swaps = max(swaps, stack.slots.num_swaps)
        displaced += stack.scheduler.num_preemptions
    assert swaps > 3 and displaced > 0
    assert len({tuple(tuned.expected(name, prompts[3])) for name in ("", "A", "B", "C")}) == 4


def test_step_without_adapters_is_given_none(tuned: Tuned):
    seen: list[object] = []
    stack = Stack(tuned)
    forward = stack.runner._decoder.forward
    stack.runner._decoder.forward = lambda *args: (seen.append(args[4]), forward(*args))[1]  # type: ignore[method-assign]
    prompt = some_prompts(tuned.reference.vocab_size, [20])[0]
    stack.answers([("", prompt)], 3)
    assert seen == [None] * 3
    stack.answers([("A", prompt)], 1)
    assert seen[3] is not None


def test_rank_of_the_slots_follows_the_adapters_in_them(tuned: Tuned):
    prompt = some_prompts(tuned.reference.vocab_size, [20])[0]
    stack = Stack(tuned, backend="torch", num_slots=1)
    ranks = []
    for name in ("A", "C", "A"):
        assert stack.answers([(name, prompt)])[0] == tuned.expected(name, prompt)
        slots = stack.runner._store._layers[0].output  # type: ignore[union-attr]
        ranks.append(slots.rank)  # type: ignore[union-attr]
    assert ranks == [8, 24, 8]
