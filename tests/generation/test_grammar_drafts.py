"""Drafts of answers with a grammar: every token is drawn from what may follow, as it would be one at a time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engine.config import GeneratorSettings
from engine.generation.engine import Engine
from engine.generation.grammar.compiler import Compiled, GrammarCompiler
from engine.generation.grammar.matcher import MaskFiller
from engine.generation.runner import Runner, StepLogits
from engine.generation.sampler import Sampler, choose
from engine.generation.step import Step
from engine.values import GenerationRequest, Grammar, Message, Passage, SamplingParams, TokenDelta

END = 2
PHONE = Grammar("regex", "[0-9]{2}-[a-c]{1,3}")


@pytest.fixture(scope="module")
def compiler(tokenizer: PreTrainedTokenizerFast) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer, {END}, len(tokenizer))
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def phone(compiler: GrammarCompiler) -> Compiled:
    return compiler.compile(PHONE).result(timeout=60)


@pytest.fixture(scope="module")
def masks(compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast) -> MaskFiller:
    return MaskFiller(len(tokenizer), compiler.mask_size)


def sampler(compiled: Compiled, **params: object) -> Sampler:
    made = Sampler(SamplingParams(**params), (5, 6))
    made.matcher = compiled.start()
    return made


def drawn(logits: Tensor, by: Sampler, masks: MaskFiller, draft: Sequence[int] = ()) -> list[int]:
    (chosen,) = choose(logits, [by], [list(draft)], masks)
    return [choice.token_id for choice in chosen]


def one_by_one(logits: Tensor, by: Sampler, masks: MaskFiller) -> list[int]:
    """Tokens without drafts, until the rows or the grammar end."""
    tokens: list[int] = []
    for row in logits:
        tokens += drawn(row[None], by, masks)
        if by.matcher is not None and by.matcher.is_complete:
            break
    return tokens


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 3},
        {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_drafts_change_no_token_of_any_seed(phone: Compiled, masks: MaskFiller, tokenizer, params):
    logits = torch.randn(6, len(tokenizer), generator=torch.Generator().manual_seed(0)) * 2
    other = tokenizer.encode("7")[0]
    num_kept = 0
    for seed in range(40):
        expected = one_by_one(logits, sampler(phone, seed=seed, **params), masks)
        for draft in (expected, expected[:-1], [*expected[:1], other], [other]):
            ours = sampler(phone, seed=seed, **params)
            assert ours.matcher is not None
            draft = draft[: min(ours.matcher.num_allowed(draft), 5)]
            right = next((n for n, token in enumerate(draft) if token != expected[n]), len(draft))
            found = drawn(logits[: len(draft) + 1], ours, masks, draft)
            assert found == expected[: right + 1]
            assert ours.matcher.num_allowed([END]) == follow(phone, found).num_allowed([END])
            num_kept += len(found) - 1
    assert num_kept > 100


def follow(compiled: Compiled, tokens: Sequence[int]):
    """A matcher that went on by these tokens."""
    matcher = compiled.start()
    for token in tokens:
        matcher.accept(token)
    return matcher


def test_sampled_tokens_behind_drafts_keep_the_exact_distribution_under_the_mask(
    phone: Compiled, masks: MaskFiller, tokenizer
):
    """Chi-square over the tokens that 4,000 seeds draw behind a drafted one, among those that may follow."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, len(tokenizer), generator=generator)
    draft = tokenizer.encode("4")
    logits[0, draft[0]] += 3  # so that it is mostly kept
    counts: Counter[int] = Counter()
    for seed in range(4000):
        found = drawn(logits, sampler(phone, temperature=1.0, seed=seed), masks, draft)
        if found[0] == draft[0]:
            counts[found[1]] += 1
    allowed = ~masks.forbidden([follow(phone, draft)])[0]
    chance = logits[1].double().masked_fill(~allowed, float("-inf")).softmax(-1)
    digits = allowed.nonzero()[:, 0].tolist()
    assert set(counts) <= set(digits) and len(digits) == 10
    total = counts.total()
    assert total > 1000
    statistic = sum(
        (counts[token] - total * chance[token].item()) ** 2 / (total * chance[token].item()) for token in digits
    )
    assert statistic < 27.88  # 9 degrees of freedom, 0.1 %


def test_text_that_is_complete_ends_the_tokens_as_it_does_without_drafts(compiler: GrammarCompiler, masks, tokenizer):
    choice = compiler.compile(Grammar("choice", json.dumps(["abc"]))).result(timeout=60)
    tokens = tokenizer.encode("abc")
    logits = torch.full((len(tokens) + 1, len(tokenizer)), -5.0)
    for row, token in enumerate([*tokens, END]):  # the model would end the answer itself
        logits[row, token] = 5.0
    for params in ({}, {"temperature": 1.0, "seed": 1}):
        assert drawn(logits, sampler(choice, **params), masks, tokens) == tokens
        assert one_by_one(logits, sampler(choice, **params), masks) == tokens


class CountingRunner(Runner):
    """Counts the steps of the engine that was started last. Further tokens cost nothing, so drafts always pay."""

    num_steps = 0

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        CountingRunner.num_steps = 0

    def measure(self, num_tokens: int, *, is_decode: bool) -> float:
        return 1.0

    def run(self, step: Step) -> StepLogits:
        CountingRunner.num_steps += 1
        return super().run(step)


class CountingEngine(Engine):
    runner_class = CountingRunner


async def test_sampled_answers_with_a_grammar_are_the_same_in_fewer_steps_with_drafts(tiny_model: Path):
    text = "marmalade velvet, oblique gherkins juggle wax; quixotic plumbers"
    passage = Passage("0", "a", "", "", text, 0, len(text), 1.0)
    words = Grammar("regex", f"(({'|'.join(re.findall('[a-z]+', text))}) ){{12,20}}")
    answers: dict[int, list[tuple[list[int], str | None]]] = {}
    steps: dict[int, int] = {}
    settings = GeneratorSettings(dtype="float32", threads=1, max_model_len=1024, kv_tokens=8192)
    for most in (0, 7):
        engine = CountingEngine(tiny_model, settings.model_copy(update={"max_draft_tokens": most}))
        try:
            before = CountingRunner.num_steps
            answers[most] = [await tokens_of(engine, seed, passage, words) for seed in range(6)]
            steps[most] = CountingRunner.num_steps - before
        finally:
            engine.close()
    assert answers[7] == answers[0]
    assert len({tuple(tokens) for tokens, _ in answers[0]}) == 6
    assert steps[7] < 0.8 * steps[0]


async def tokens_of(engine: Engine, seed: int, passage: Passage, grammar: Grammar) -> tuple[list[int], str | None]:
    """Token ids of a sampled answer, and why it ended."""
    params = SamplingParams(max_tokens=200, temperature=1.0, seed=seed, logprobs=0)
    asked = GenerationRequest(f"{seed}", (Message("user", "cancel?"),), (passage,), params, grammar=grammar)
    deltas: list[TokenDelta] = [delta async for delta in engine.submit(asked)]
    return [each.token_id for delta in deltas for each in delta.logprobs], deltas[-1].finish_reason
