"""Requests joining and leaving a running batch: equal to generate(), bounded, cancellable, honest when it fails."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config import GeneratorSettings
from engine.errors import (
    ComponentUnavailable,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ModelSourceError,
    Overloaded,
    PromptTooLong,
    UnknownModel,
)
from engine.generation.engine import Engine
from engine.generation.runner import Runner, StepLogits
from engine.generation.step import Step
from engine.values import GenerationRequest, Grammar, Message, Passage, SamplingParams, TokenDelta

SETTINGS = GeneratorSettings(dtype="float32", threads=1, max_model_len=1024, kv_tokens=8192)


@contextmanager
def running(model: Path, engine_class: type[Engine] = Engine, **settings: object) -> Iterator[Engine]:
    engine = engine_class(model, SETTINGS.model_copy(update=settings))
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    with running(tiny_model) as engine:
        yield engine


def request(name: str, text: str = "How do I cancel?", **sampling: object) -> GenerationRequest:
    params = SamplingParams(**({"max_tokens": 24} | sampling))
    return GenerationRequest(name, (Message("user", text),), sampling=params)


async def collect(stream: AsyncIterator[TokenDelta]) -> list[TokenDelta]:
    return [delta async for delta in stream]


async def text_of(stream: AsyncIterator[TokenDelta]) -> str:
    return "".join(delta.text for delta in await collect(stream))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is set by the engine's thread
            await asyncio.sleep(0.005)


class Gate(Runner):
    """Waits before every step with a decode until the test lets it pass."""

    opened = threading.Event()
    reached = threading.Event()

    def run(self, step: Step) -> StepLogits:
        if any(sequence.is_decoding for sequence in step.sequences):
            self.reached.set()
            if not self.opened.wait(30):
                raise TimeoutError
        return super().run(step)


class GatedEngine(Engine):
    runner_class = Gate


@contextmanager
def gated(model: Path, engine_class: type[GatedEngine] = GatedEngine, **settings: object) -> Iterator[Engine]:
    """An engine whose decode steps wait for `Gate.opened`."""
    Gate.opened.clear()
    Gate.reached.clear()
    with running(model, engine_class, **settings) as engine:
        try:
            yield engine
        finally:
            Gate.opened.set()


PROMPTS = ["Cancel?", *(f"Snapshots of a volume {i}. " * (3 * i) + "How long?" for i in range(1, 8))]


def generated(model: Path, prompts: list[str], max_tokens: int) -> list[str]:
    """The same answers by transformers' generate, one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    answers = []
    for prompt in prompts:
        turns = [{"role": "system", "content": SETTINGS.system_prompt}, {"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = reference.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
async def test_answers_equal_generate_while_requests_join_and_leave_the_batch(architecture: str, tmp_path: Path):
    model = write_tiny_model(tmp_path, seed=3, architecture=architecture)
    with running(model, max_num_seqs=5) as engine:

        async def staggered(index: int) -> str:
            await asyncio.sleep(0.01 * (index % 3) + 0.02 * (index // 3))
            return await text_of(engine.submit(request(str(index), PROMPTS[index], max_tokens=12 + 7 * (index % 4))))

        together = await asyncio.gather(*map(staggered, range(8)))
        alone = [await staggered(index) for index in range(8)]
    expected = [generated(model, [PROMPTS[index]], 12 + 7 * (index % 4))[0] for index in range(8)]
    assert together == alone == expected
    assert len(set(expected)) == 8


async def test_prompts_prefilled_together_answer_as_each_alone(tiny_model: Path):
    prompts = [PROMPTS[3] + " now" * extra for extra in (0, 2, 1, 4, 3)]
    with gated(tiny_model) as engine:
        first = engine.submit(request("first", max_tokens=2, ignore_eos=True))
        await until(lambda: engine.stats().running == 1)  # the others gather behind it
        streams = [engine.submit(request(prompt, prompt)) for prompt in prompts]
        Gate.opened.set()
        together = await asyncio.gather(*map(text_of, streams))
        assert await text_of(first)
    assert together == [generated(tiny_model, [prompt], 24)[0] for prompt in prompts]


async def test_all_rows_leave_and_the_books_are_empty_after_the_last_answer(engine: Engine):
    before = engine.stats().output_tokens
    deltas = await asyncio.gather(
        *(collect(engine.submit(request(str(i), PROMPTS[i], max_tokens=3 + i))) for i in range(8))
    )
    await until(lambda: engine.stats().kv_tokens == 0)
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.output_tokens - before == sum(delta.num_tokens for answer in deltas for delta in answer)


async def test_first_delta_carries_the_prompt_and_the_last_one_the_totals(engine: Engine):
    passage = Passage("c", "d", "Volumes", "", "Kept for five days.", 0, 19, 1.0)
    asked = GenerationRequest(
        "a", (Message("user", "How long?"),), (passage,), SamplingParams(max_tokens=5, ignore_eos=True)
    )
    first, *middle, last = await collect(engine.submit(asked))
    assert first.prompt is not None and first.prompt.passages == (passage,)
    assert all(delta.prompt is None and delta.finish_reason is None for delta in middle)
    assert last.finish_reason == "length"
    assert last.timings_ms is not None and set(last.timings_ms) == {"queue", "prefill", "decode"}
    assert sum(delta.num_tokens for delta in (first, *middle, last)) == 5


async def test_every_end_token_of_the_generation_config_stops_an_answer(engine: Engine, tiny_model: Path):
    asked = [request(str(seed), temperature=1.0, seed=seed, max_tokens=200) for seed in range(6)]
    answers = await asyncio.gather(*map(collect, map(engine.submit, asked)))
    for answer in answers:
        count = sum(delta.num_tokens for delta in answer)
        assert answer[-1].finish_reason == ("length" if count == 200 else "stop")
        assert not any("<|" in delta.text for delta in answer)
    assert any(answer[-1].finish_reason == "stop" for answer in answers)
    ignoring = await collect(engine.submit(request("x", temperature=1.0, seed=0, max_tokens=200, ignore_eos=True)))
    assert sum(delta.num_tokens for delta in ignoring) == 200


async def test_equal_seeds_give_equal_text_whatever_else_is_in_the_batch(engine: Engine):
    def sampled(name: str, seed: int) -> AsyncIterator[TokenDelta]:
        return engine.submit(request(name, temperature=0.9, top_p=0.95, top_k=50, seed=seed))

    alone = await text_of(sampled("alone", 5))
    others = [text_of(engine.submit(request(f"o{i}", PROMPTS[i], temperature=1.0))) for i in range(4)]
    beside, *_ = await asyncio.gather(text_of(sampled("beside", 5)), *others)
    assert beside == alone
    assert await text_of(sampled("other", 6)) != alone


async def test_stop_string_ends_the_answer_before_it(engine: Engine):
    whole = await text_of(engine.submit(request("whole", ignore_eos=True)))
    stop = whole[len(whole) // 2 :][:3]
    answer = await collect(engine.submit(request("cut", ignore_eos=True, stop=(stop,))))
    assert "".join(delta.text for delta in answer) == whole[: whole.index(stop)]
    assert answer[-1].finish_reason == "stop"
    assert sum(delta.num_tokens for delta in answer) < 24


async def test_closing_dropping_cancelling_or_losing_the_reader_frees_the_place(tiny_model: Path):
    with running(tiny_model, max_num_seqs=1) as engine:

        def endless(name: str) -> AsyncIterator[TokenDelta]:
            return engine.submit(request(name, max_tokens=900, ignore_eos=True))

        closed = endless("closed")
        await anext(closed)
        await closed.aclose()
        assert await collect(closed) == []
        await text_of(engine.submit(request("1", max_tokens=2)))

        dropped = endless("dropped")
        await anext(dropped)
        del dropped
        gc.collect()
        await text_of(engine.submit(request("2", max_tokens=2)))

        task = asyncio.create_task(collect(endless("task")))
        await until(lambda: engine.stats().kv_tokens > 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await text_of(engine.submit(request("3", max_tokens=2)))

        by_id = endless("by id")
        await anext(by_id)
        engine.cancel("by id")
        assert all(delta.finish_reason is None for delta in await collect(by_id))
        engine.cancel("by id")
        await until(lambda: engine.stats().kv_tokens == 0)


async def test_request_that_takes_the_id_of_one_cancelled_during_a_step_gets_its_own_tokens_only(tiny_model: Path):
    with gated(tiny_model) as engine:
        cancelled = engine.submit(request("same", PROMPTS[1]))
        await anext(cancelled)
        await until(Gate.reached.is_set)  # its next step has begun
        engine.cancel("same")
        again = engine.submit(request("same", PROMPTS[2]))
        Gate.opened.set()
        assert await text_of(again) == generated(tiny_model, [PROMPTS[2]], 24)[0]


async def test_queue_is_bounded_and_refuses_before_anything_is_queued(tiny_model: Path):
    with gated(tiny_model, max_num_seqs=1, max_queued=2) as engine:
        streams = [engine.submit(request(str(i), max_tokens=3)) for i in range(3)]
        with pytest.raises(Overloaded, match=r"generator's queue is full \(2 waiting\).*generator\.max_queued"):
            engine.submit(request("late"))
        await until(lambda: engine.stats().running == 1)
        assert engine.stats().waiting == 2
        await streams[2].aclose()
        streams[2] = engine.submit(request("in place of it", max_tokens=3))
        Gate.opened.set()
        assert [len(answer) for answer in await asyncio.gather(*map(collect, streams))] == [3, 3, 3]


async def test_deadline_ends_running_and_waiting_requests(tiny_model: Path):
    with gated(tiny_model, max_num_seqs=1) as engine:
        endless = SamplingParams(max_tokens=900, ignore_eos=True)
        asked = [
            GenerationRequest(name, (Message("user", "?"),), sampling=endless, deadline_s=0.05) for name in ("a", "b")
        ]
        streams = [engine.submit(each) for each in asked]
        for stream in streams:
            with pytest.raises(DeadlineExceeded, match="deadline of 50 ms"):
                await collect(stream)
        Gate.opened.set()
        await until(lambda: engine.stats().kv_tokens == 0)
        assert len(await collect(engine.submit(request("after", max_tokens=2)))) == 2


async def test_slow_reader_does_not_hold_up_the_engine(engine: Engine):
    slow = engine.submit(request("slow", ignore_eos=True))
    await anext(slow)
    await collect(engine.submit(request("quick", ignore_eos=True)))
    await until(lambda: engine.stats().running == 0)
    assert len(await collect(slow)) == 23


def test_several_event_loops_may_use_one_engine(engine: Engine):
    answers: dict[int, str] = {}

    async def ask(index: int) -> None:
        answers[index] = await text_of(engine.submit(request(f"loop {index}", "Same?")))

    threads = [threading.Thread(target=lambda i=i: asyncio.run(ask(i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 4 and len(set(answers.values())) == 1


def test_event_loop_that_closes_with_requests_in_flight_loses_them_only(engine: Engine):
    kept: list[object] = []

    async def leave() -> None:
        kept.append(engine.submit(request("left", max_tokens=900, ignore_eos=True)))

    async def stay() -> str:
        text = await text_of(engine.submit(request("stays", ignore_eos=True)))
        await until(lambda: engine.stats().running == 0)
        return text

    asyncio.run(leave())
    assert asyncio.run(stay()) != ""


async def test_bad_requests_are_refused_alone(engine: Engine):
    with pytest.raises(PromptTooLong):
        engine.submit(request("long", "word " * 2000))
    with pytest.raises(UnknownModel, match="'tone' is unknown"):
        engine.submit(GenerationRequest("adapter", (Message("user", "?"),), adapter="tone"))
    stream = engine.submit(request("twin"))
    with pytest.raises(InvalidRequest, match="id 'twin' is in progress"):
        engine.submit(request("twin"))
    await collect(stream)
    await collect(engine.submit(request("twin")))


class FailingRunner(Gate):
    """A forward that holds a prompt of more than 100 tokens fails, as does every one while `is_failing`."""

    is_failing = False

    def run(self, step: Step) -> StepLogits:
        logits = super().run(step)
        if FailingRunner.is_failing or any(sequence.num_prompt_tokens > 100 for sequence in step.sequences):
            raise RuntimeError("device error")
        return logits


class FailingEngine(GatedEngine):
    runner_class = FailingRunner


async def test_request_that_makes_steps_fail_ends_alone(tiny_model: Path):
    with gated(tiny_model, FailingEngine) as engine:
        good = [engine.submit(request(f"good {i}", PROMPTS[i], max_tokens=9, ignore_eos=True)) for i in range(3)]
        bad = engine.submit(request("bad", PROMPTS[5]))
        Gate.opened.set()
        with pytest.raises(ComponentUnavailable, match="step failed: RuntimeError"):
            await collect(bad)
        assert [len(answer) for answer in await asyncio.gather(*map(collect, good))] == [9, 9, 9]
        await until(lambda: engine.stats().kv_tokens == 0)


async def test_step_that_fails_for_everybody_fails_them_and_the_engine_goes_on(tiny_model: Path):
    with gated(tiny_model, FailingEngine) as engine:
        streams = [engine.submit(request(name)) for name in ("a", "b")]
        await until(lambda: engine.stats().running >= 1)  # the second may be waiting for the gate's step
        FailingRunner.is_failing = True
        Gate.opened.set()
        for stream in streams:
            with pytest.raises(ComponentUnavailable, match="generator is unavailable"):
                await collect(stream)
        FailingRunner.is_failing = False
        engine.check_health()
        assert len(await collect(engine.submit(request("good", max_tokens=5, ignore_eos=True)))) == 5


class DyingRunner(Gate):
    def run(self, step: Step) -> StepLogits:
        logits = super().run(step)
        if step.sequences[0].is_decoding:
            raise SystemExit("killed")
        return logits


class DyingEngine(GatedEngine):
    runner_class = DyingRunner


async def test_death_of_the_thread_fails_every_waiter_and_the_health_check(tiny_model: Path):
    with gated(tiny_model, DyingEngine, max_num_seqs=1) as engine:
        streams = [engine.submit(request(name)) for name in ("running", "waiting")]
        Gate.opened.set()
        for stream in streams:
            with pytest.raises(ComponentUnavailable, match="thread died of SystemExit: killed"):
                await collect(stream)
        with pytest.raises(ComponentUnavailable, match="thread died"):
            engine.check_health()
        with pytest.raises(ComponentUnavailable, match="thread died"):
            engine.submit(request("late"))


class ImpatientEngine(GatedEngine):
    stalled_after_s = 0.05


async def test_health_check_raises_while_a_step_does_not_end(tiny_model: Path):
    with gated(tiny_model, ImpatientEngine) as engine:
        engine.check_health()
        stream = engine.submit(request("stuck", max_tokens=2))
        await asyncio.sleep(0.3)
        with pytest.raises(ComponentUnavailable, match="no step finished for"):
            engine.check_health()
        Gate.opened.set()
        await collect(stream)
        engine.check_health()


async def test_closing_fails_what_is_pending_and_is_repeatable(tiny_model: Path):
    engine = Engine(tiny_model, SETTINGS)
    stream = engine.submit(request("pending", max_tokens=900, ignore_eos=True))
    engine.close()
    engine.close()
    with pytest.raises(ComponentUnavailable, match="shutting down"):
        await collect(stream)
    with pytest.raises(ComponentUnavailable, match="shutting down"):
        engine.submit(request("late"))


async def test_requests_beyond_the_memory_for_keys_and_values_wait_or_are_set_back(tiny_model: Path):
    with running(tiny_model, kv_tokens=320, max_model_len=300) as engine:
        asked = [request(str(i), PROMPTS[i], max_tokens=100, ignore_eos=True) for i in range(6)]
        answers = await asyncio.gather(*(text_of(engine.submit(each)) for each in asked))
        assert engine.stats().num_preemptions > 0
        assert answers == [await text_of(engine.submit(each)) for each in asked]
        engine._scheduler.check()


async def test_second_request_finds_the_beginning_of_its_prompt_computed(engine: Engine):
    text = "Snapshots of a volume are kept for five days. " * 4
    for name in ("cold", "warm"):
        first, *_ = await collect(engine.submit(request(f"{name} start", text + "Why?")))
        assert first.prompt is not None
    assert first.prompt.num_tokens - 16 <= first.prompt.num_cached_tokens < first.prompt.num_tokens
    stats = engine.stats()
    assert 0 < stats.cached_tokens < stats.prompt_tokens and stats.step_ms > 0


async def test_other_salt_shares_nothing(engine: Engine):
    asked = GenerationRequest("s", (), sampling=SamplingParams(max_tokens=2), prompt_token_ids=tuple(range(5, 69)))
    cached = []
    for name, salt in (("1", "a"), ("2", "b"), ("3", "b")):
        first, *_ = await collect(engine.submit(replace(asked, id=name, cache_salt=salt)))
        assert first.prompt is not None
        cached.append(first.prompt.num_cached_tokens)
    assert cached == [0, 0, 48]


async def test_system_prompt_of_the_house_is_computed_at_start_and_stays(tiny_model: Path):
    house = "You answer questions about invoices, volumes and passwords, briefly and from the passages alone."
    with running(tiny_model, system_prompt=house, kv_tokens=1024, max_model_len=900) as engine:
        first, *_ = await collect(engine.submit(request("a")))
        assert first.prompt is not None and first.prompt.num_cached_tokens >= 32
        # Prompts that together need more than there is push everything else out.
        fillers = [
            GenerationRequest(str(i), (), (), SamplingParams(max_tokens=2), prompt_token_ids=tuple([i + 3] * 700))
            for i in range(4)
        ]
        for filler in fillers:
            await collect(engine.submit(filler))
        again, *_ = await collect(engine.submit(request("b", "Something else?")))
        assert again.prompt is not None and again.prompt.num_cached_tokens >= 32


async def test_log_probabilities_are_those_of_the_reference(engine: Engine, tiny_model: Path):
    asked = request("scored", temperature=1.0, seed=3, top_k=5, ignore_eos=True, logprobs=3, prompt_logprobs=0)
    deltas = await collect(engine.submit(asked))
    prompt = deltas[0].prompt
    assert prompt is not None and len(prompt.logprobs) == prompt.num_tokens and prompt.logprobs[0] is None
    # The first prompt token is not among its log-probabilities: the template begins with its ChatML mark.
    tokens = [1, *(each.token_id for each in prompt.logprobs[1:] if each), *(d.logprobs[0].token_id for d in deltas)]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    found = [each.logprob for each in prompt.logprobs if each] + [delta.logprobs[0].logprob for delta in deltas]
    positions = torch.arange(len(tokens) - 1)
    torch.testing.assert_close(torch.tensor(found), expected[positions, tokens[1:]], atol=2e-4, rtol=0)
    for number, delta in enumerate(deltas):
        best = expected[prompt.num_tokens - 1 + number].topk(3)
        assert [top.token_id for top in delta.logprobs[0].top] == best.indices.tolist()


async def test_cores_that_do_not_exist_are_refused_and_one_that_does_is_kept(tiny_model: Path):
    with pytest.raises(ConfigError, match=r"generator\.cores=\[4096\] cannot be used"):
        Engine(tiny_model, SETTINGS.model_copy(update={"cores": (4096,)}))
    core = min(os.sched_getaffinity(0))
    with running(tiny_model, cores=(core,)) as engine:
        await text_of(engine.submit(request("pinned")))
        assert os.sched_getaffinity(engine._thread.native_id or 0) == {core}


def test_model_len_is_the_smaller_of_setting_and_model(tiny_model: Path):
    with running(tiny_model, max_model_len=4096) as engine:
        assert engine.max_model_len == 2048


def test_model_len_below_the_default_answer_length_starts(tiny_model: Path):
    engine = Engine(tiny_model, GeneratorSettings(dtype="float32", max_model_len=128))
    engine.close()
    assert engine.max_model_len == 128


def test_folder_without_a_supported_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelSourceError, match="tokenizer cannot be read"):
        Engine(tmp_path, SETTINGS)


class CountingRunner(Runner):
    """Counts the steps of the engine that was started last. Further tokens cost nothing, so drafts always pay."""

    num_steps = 0

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        CountingRunner.num_steps = 0

    def measure(self, num_tokens: int, *, is_decode: bool) -> float:
        return 1.0

    def run(self, step: Step) -> StepLogits:
        CountingRunner.num_steps += 1
        return super().run(step)


class CountingEngine(Engine):
    runner_class = CountingRunner


async def test_answers_are_the_same_with_and_without_drafts(tiny_model: Path):
    passages = tuple(
        Passage(str(n), "a", "", "", text, 0, len(text), 1.0)
        for n, text in enumerate(["cancel any time from the billing page", "a refund takes five days"])
    )
    requests = [
        replace(request(f"{n}", "cancel any time?", max_tokens=60, ignore_eos=True, **params), passages=passages)
        for n, params in enumerate(({}, {"temperature": 0.7, "seed": 3}, {"repetition_penalty": 1.2}, {"logprobs": 2}))
    ]
    answers = {}
    for most in (0, 7):
        with running(tiny_model, max_draft_tokens=most) as engine:
            answers[most] = await asyncio.gather(*(text_of(engine.submit(each)) for each in requests))
    assert answers[7] == answers[0]


@pytest.fixture(scope="module")
def repeating_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without attention and MLP the next token depends on the last one alone, so that its answers run in a circle."""
    path = shutil.copytree(tiny_model, tmp_path_factory.mktemp("repeating") / "model")
    weights = load_file(path / "model.safetensors")
    silenced = {name: torch.zeros_like(w) for name, w in weights.items() if "o_proj" in name or "down_proj" in name}
    save_file({**weights, **silenced}, path / "model.safetensors", metadata={"format": "pt"})
    return path


async def test_answer_that_repeats_itself_takes_few_steps(repeating_model: Path):
    texts, num_steps = [], []
    for most in (0, 7):
        with running(repeating_model, CountingEngine, max_draft_tokens=most) as engine:
            before = CountingRunner.num_steps
            texts.append(await text_of(engine.submit(request("a", max_tokens=200, ignore_eos=True))))
            num_steps.append(CountingRunner.num_steps - before)
    assert texts[0] == texts[1]
    assert num_steps[0] == 200 and num_steps[1] < 150


@pytest.mark.parametrize("length", range(40, 48))
async def test_drafts_that_complete_a_grammar_are_all_said(repeating_model: Path, length: int):
    with running(repeating_model, CountingEngine) as engine:
        free = await text_of(engine.submit(request("free", max_tokens=120, ignore_eos=True)))
        wanted = free[:length]
        asked = replace(request("bound", max_tokens=120), grammar=Grammar("choice", json.dumps([wanted])))
        before = CountingRunner.num_steps
        deltas = await collect(engine.submit(asked))
        assert "".join(delta.text for delta in deltas) == wanted
        assert deltas[-1].finish_reason == "stop"
        assert CountingRunner.num_steps - before < sum(delta.num_tokens for delta in deltas)


async def test_engine_reports_what_waits_and_how_fast_it_works(tiny_model: Path):
    with gated(tiny_model, max_num_seqs=1) as engine:
        idle = engine.report()
        assert (idle.waiting_tokens, idle.running) == (0, 0) and idle.tokens_per_s > 0
        streams = [engine.submit(request(str(i), max_tokens=3)) for i in range(2)]
        Gate.opened.set()
        await asyncio.gather(*map(text_of, streams))
        await until(lambda: engine.stats().kv_tokens == 0)
        done = engine.report()
    assert done.serial > idle.serial and done.max_kv_tokens == engine.stats().max_kv_tokens
    assert (done.waiting_tokens, done.kv_tokens) == (0, 0)
