"""Scores inside the running batch: equal to the logits of transformers, bounded, cancellable, beside other requests."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config import GeneratorSettings
from engine.errors import (
    ComponentUnavailable,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    UnknownModel,
)
from engine.generation.engine import Engine
from engine.generation.runner import Runner, StepLogits
from engine.generation.scheduler import Scheduler
from engine.generation.step import Step
from engine.values import ContinuationScore, GenerationRequest, Message, SamplingParams, ScoreItem, ScoreRequest

SETTINGS = GeneratorSettings(dtype="float32", threads=1, max_model_len=1024, kv_tokens=8192)
LABELS = ("card", "card arrival", "card linking", "card payment fee", "cash withdrawal", "x", "xylophone", "card")
Scores = tuple[tuple[ContinuationScore, ...], ...]


class CheckedScheduler(Scheduler):
    """Checks its books at every step."""

    def finish_step(self, step: Step, new_tokens: Any) -> None:
        super().finish_step(step, new_tokens)
        self.check()


class CheckedEngine(Engine):
    def _warm_up(self) -> None:
        super()._warm_up()
        self._scheduler.__class__ = CheckedScheduler


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    engine = CheckedEngine(tiny_model, SETTINGS)
    yield engine
    engine.close()


class Reference:
    """Sums of log-softmax over transformers' logits, one continuation at a time."""

    def __init__(self, model: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    @torch.inference_mode()
    def score(self, prompt: tuple[int, ...], continuation: tuple[int, ...]) -> float:
        ids = torch.tensor([[*prompt, *continuation]])
        logprobs = self._model(ids).logits[0].log_softmax(-1)
        return float(sum(logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(continuation)))


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Reference:
    return Reference(tiny_model)


def ids(seed: int, count: int) -> tuple[int, ...]:
    generator = random.Random(seed)
    return tuple(generator.randrange(3, 400) for _ in range(count))


def drawn(seed: int, count: int) -> tuple[tuple[int, ...], ...]:
    """Continuations with much in common: prefixes of each other, equal ones, single tokens, a long one."""
    generator = random.Random(seed)
    short = [tuple(generator.randrange(3, 6) for _ in range(generator.randint(1, 7))) for _ in range(count - 1)]
    return (*short, ids(seed, 40))


def large(num_prompts: int) -> tuple[ScoreItem, ...]:
    """Seconds of work."""
    return tuple(ScoreItem(drawn(seed, 300), prompt_token_ids=ids(seed, 500)) for seed in range(num_prompts))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is set by the engine's thread
            await asyncio.sleep(0.001)


def near(logprob: float) -> Any:
    """What a sum in float32 may be: its rounding grows with the sum, here up to hundreds of nats."""
    return pytest.approx(logprob, abs=1e-4, rel=2e-6)


def assert_equal(scores: Scores, items: tuple[ScoreItem, ...], reference: Reference) -> None:
    assert len(scores) == len(items)
    for found, item in zip(scores, items, strict=True):
        assert len(found) == len(item.continuations)
        for score, continuation in zip(found, item.continuations, strict=True):
            assert isinstance(continuation, tuple)
            assert score.num_tokens == len(continuation)
            assert score.logprob == near(reference.score(item.prompt_token_ids, continuation))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 100])
async def test_scores_equal_the_log_softmax_of_transformers_cold_and_warm(engine, reference, length):
    items = (ScoreItem(drawn(length, 20), prompt_token_ids=ids(length, length)),)
    cold = await engine.score(ScoreRequest("cold", items))
    before = engine.stats().cached_tokens
    warm = await engine.score(ScoreRequest("warm", items))
    assert engine.stats().cached_tokens >= before + (length - 1) // 16 * 16
    for scores in (cold, warm):
        assert_equal(scores, items, reference)


async def test_many_prompts_are_scored_beside_answers_that_stay_the_same(engine, reference):
    prefix = ids(0, 40)
    items = tuple(
        ScoreItem(drawn(seed % 3, 15), prompt_token_ids=prefix + ids(seed, 5 + 3 * seed)) for seed in range(12)
    )

    async def answer(name: str) -> str:
        asked = GenerationRequest(name, (Message("user", name[:1]),), sampling=SamplingParams(max_tokens=30))
        return "".join([delta.text async for delta in engine.submit(asked)])

    alone = [await answer(f"{i}") for i in range(6)]
    scores, more, *together = await asyncio.gather(
        engine.score(ScoreRequest("scores", items)),
        engine.score(ScoreRequest("more", items[:4], cache_salt="other")),
        *(answer(f"{i} again") for i in range(6)),
    )
    assert together == alone
    assert_equal(scores, items, reference)
    assert_equal(more, items[:4], reference)


@pytest.mark.parametrize("settings", [{"max_num_seqs": 1}, {"max_batched_tokens": 16}, {"kv_tokens": 224}])
async def test_scores_are_the_same_with_hardly_any_room(tiny_model, reference, settings):
    engine = CheckedEngine(tiny_model, SETTINGS.model_copy(update={"max_model_len": 224, **settings}))
    items = tuple(ScoreItem(drawn(seed, 25), prompt_token_ids=ids(seed, 90 + seed)) for seed in range(5))
    asked = GenerationRequest("beside", (Message("user", "Why?"),), sampling=SamplingParams(max_tokens=60))
    stream = engine.submit(asked)
    scores = await engine.score(ScoreRequest("scores", items))
    assert_equal(scores, items, reference)
    assert [delta async for delta in stream][-1].finish_reason
    engine.close()


async def test_nodes_that_wait_for_their_branches_do_not_keep_each_other_from_the_blocks(engine):
    # More nodes at once than there are blocks: breadth first, all would wait for ever.
    items = tuple(ScoreItem(drawn(seed, 200), prompt_token_ids=ids(seed, 300)) for seed in range(20))
    async with asyncio.timeout(60):
        scores = await engine.score(ScoreRequest("many", items))
    assert all(len(each) == 200 for each in scores)


async def test_texts_are_read_as_an_answer_would_begin(engine, reference, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    messages = (Message("system", "Classify."), Message("user", "my card is late"))
    turns = [{"role": each.role, "content": each.content} for each in messages]
    prompt = tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
    for with_end in (False, True):
        request = ScoreRequest("texts", (ScoreItem(LABELS, messages=messages),), with_end=with_end)
        (found,) = await engine.score(request)
        for label, score in zip(LABELS, found, strict=True):
            tokens = tuple(tokenizer.encode(label, add_special_tokens=False))
            tokens += (tokenizer.eos_token_id,) * with_end
            assert score.num_tokens == len(tokens)
            assert score.logprob == near(reference.score(prompt, tokens))
        assert found[0] == found[7]
        if with_end:  # answers that exclude each other
            assert sum(math.exp(score.logprob) for score in found[:7]) <= 1


async def test_every_token_of_the_tree_is_computed_once(tiny_model):
    class Counting(Runner):
        num_tokens = 0

        def run(self, step: Step) -> StepLogits:
            Counting.num_tokens += step.num_total_tokens
            return super().run(step)

    class CountingEngine(Engine):
        runner_class = Counting

    engine = CountingEngine(tiny_model, SETTINGS)
    Counting.num_tokens = 0
    labels = ((5, 6, 7, 8), (5, 6, 7, 9), (5, 6, 10, 11), (12,))
    items = tuple(ScoreItem(labels, prompt_token_ids=ids(seed, 50)) for seed in range(3))
    await engine.score(ScoreRequest("count", items))
    assert Counting.num_tokens == 3 * (50 + 4)  # 5 6, 7, 10
    engine.close()


async def test_a_cancelled_request_frees_its_blocks(engine):
    task = asyncio.create_task(engine.score(ScoreRequest("cancelled", large(15))))
    await until(lambda: engine.stats().kv_tokens)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not engine.stats().kv_tokens)
    other = asyncio.create_task(engine.score(ScoreRequest("by id", large(15))))
    await until(lambda: engine.stats().kv_tokens)
    engine.cancel("by id")
    with pytest.raises(asyncio.CancelledError):
        await other
    await until(lambda: not engine.stats().kv_tokens)
    assert await engine.score(ScoreRequest("cancelled", large(1)))


async def test_a_deadline_ends_the_work(engine):
    with pytest.raises(DeadlineExceeded, match="deadline of 20 ms passed"):
        await engine.score(ScoreRequest("late", large(30), deadline_s=0.02))
    assert await engine.score(ScoreRequest("late", large(1), deadline_s=60))


ITEM = ScoreItem(((5,),), prompt_token_ids=(4, 5))
REFUSED = [
    (ScoreRequest("r", ()), InvalidRequest, "items is empty"),
    (ScoreRequest("r", (ITEM,) * 200), InvalidRequest, "200 prompts; at most 96"),
    (ScoreRequest("r", (ScoreItem((), prompt_token_ids=(4,)),)), InvalidRequest, "0 continuations; from 1 to 1024"),
    (ScoreRequest("r", (ScoreItem(((),), prompt_token_ids=(4,)),)), InvalidRequest, "0 tokens; from 1 to 256"),
    (ScoreRequest("r", (ScoreItem(("",), prompt_token_ids=(4,)),)), InvalidRequest, "0 tokens; from 1 to 256"),
    (ScoreRequest("r", (ScoreItem(((9999,),), prompt_token_ids=(4,)),)), InvalidRequest, "token ids must be from 0"),
    (ScoreRequest("r", (ScoreItem(((5,) * 257,), prompt_token_ids=(4,)),)), InvalidRequest, "257 tokens"),
    (ScoreRequest("r", (ScoreItem(((5,) * 50,), prompt_token_ids=(4,) * 1000),)), PromptTooLong, "max_model_len=1024"),
    (
        ScoreRequest("r", (ScoreItem(tuple((i, *ids(i, 250)) for i in range(60)), prompt_token_ids=(4,)),) * 20),
        InvalidRequest,
        "more than 262144 tokens in all",
    ),
    (ScoreRequest("r", (ITEM,), adapter="absent"), UnknownModel, "absent"),
]


@pytest.mark.parametrize(("request_", "error", "message"), REFUSED, ids=[case[2] for case in REFUSED])
async def test_a_request_beyond_the_bounds_is_refused_naming_them(engine, request_, error, message):
    with pytest.raises(error, match=message):
        await engine.score(request_)


async def test_prompts_beyond_the_queue_are_refused_until_others_are_done(tiny_model):
    engine = Engine(tiny_model, SETTINGS.model_copy(update={"max_num_seqs": 2, "max_queued": 3}))
    first = asyncio.create_task(engine.score(ScoreRequest("first", large(5))))
    await until(lambda: engine._scorer.num_prompts)
    with pytest.raises(Overloaded):
        await engine.score(ScoreRequest("second", large(1)))
    with pytest.raises(Overloaded):
        engine.submit(GenerationRequest("answer", (Message("user", "?"),), sampling=SamplingParams(max_tokens=4)))
    await first
    assert await engine.score(ScoreRequest("second", large(1)))
    engine.close()


class Failing(Runner):
    """Steps with a prompt that begins with 13 fail."""

    def run(self, step: Step) -> StepLogits:
        if any(sequence.tokens[0] == 13 for sequence in step.sequences):
            raise RuntimeError("broken")
        return super().run(step)


class FailingEngine(CheckedEngine):
    runner_class = Failing


async def test_a_prompt_whose_step_fails_ends_its_own_request_only(tiny_model, reference):
    engine = FailingEngine(tiny_model, SETTINGS)
    good = (ScoreItem(drawn(1, 10), prompt_token_ids=(4, *ids(1, 30))),)
    bad = (ScoreItem(drawn(1, 10), prompt_token_ids=(13, *ids(1, 30))), *good)
    failed, scores = await asyncio.gather(
        engine.score(ScoreRequest("bad", bad)), engine.score(ScoreRequest("good", good)), return_exceptions=True
    )
    assert isinstance(failed, ComponentUnavailable) and "its step failed: RuntimeError" in str(failed)
    assert not isinstance(scores, BaseException)
    assert_equal(scores, good, reference)
    engine.close()


async def test_pending_scores_hear_of_a_shutdown(tiny_model):
    engine = Engine(tiny_model, SETTINGS)
    task = asyncio.create_task(engine.score(ScoreRequest("pending", large(30))))
    await until(lambda: engine._scorer.num_prompts)
    await asyncio.to_thread(engine.close)
    with pytest.raises(ComponentUnavailable, match="shutting down"):
        await task
