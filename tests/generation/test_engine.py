"""Requests joining and leaving a running batch: equal to generate(), bounded, cancellable, honest when it fails."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config import GeneratorSettings
from engine.errors import (
    ComponentUnavailable,
    DeadlineExceeded,
    InvalidRequest,
    ModelSourceError,
    Overloaded,
    PromptTooLong,
    UnknownModel,
)
from engine.generation.engine import Engine
from engine.generation.runner import BatchRunner
from engine.values import GenerationRequest, Message, Passage, SamplingParams, TokenDelta

SETTINGS = GeneratorSettings(dtype="float32", threads=1, max_model_len=1024)


@contextmanager
def running(
    model: Path, engine_class: type[Engine] = Engine, **settings: object
) -> Iterator[Engine]:
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


class Gate(BatchRunner):
    """Once warm, waits before every decode step until the test lets it pass."""

    opened = threading.Event()
    is_warm = False

    def warm_up(self) -> None:
        super().warm_up()
        self.is_warm = True

    def decode(self, token_ids: list[int]) -> torch.Tensor:
        if self.is_warm and not self.opened.wait(30):
            raise TimeoutError
        return super().decode(token_ids)


class GatedEngine(Engine):
    runner_class = Gate


@contextmanager
def gated(
    model: Path, engine_class: type[GatedEngine] = GatedEngine, **settings: object
) -> Iterator[Engine]:
    """An engine whose decode steps wait for `Gate.opened`."""
    Gate.opened.clear()
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
    """A decode fails while `is_failing`; a prefill of more than 100 tokens always does."""

    is_failing = False

    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        if max(map(len, prompts)) > 100:
            raise RuntimeError("out of memory")
        return super().prefill(prompts)

    def decode(self, token_ids: list[int]) -> torch.Tensor:
        logits = super().decode(token_ids)
        if FailingRunner.is_failing:
            raise RuntimeError("device error")
        return logits


class FailingEngine(GatedEngine):
    runner_class = FailingRunner


async def test_failed_step_fails_its_requests_and_the_engine_goes_on(tiny_model: Path):
    with gated(tiny_model, FailingEngine) as engine:
        FailingRunner.is_failing = True
        streams = [engine.submit(request(name)) for name in ("a", "b")]
        await until(lambda: engine.stats().running == 2)
        Gate.opened.set()
        for stream in streams:
            with pytest.raises(ComponentUnavailable, match="generator is unavailable"):
                await collect(stream)
        FailingRunner.is_failing = False
        engine.check_health()
        good = engine.submit(request("good", max_tokens=5, ignore_eos=True))
        with pytest.raises(ComponentUnavailable, match="step failed: RuntimeError"):
            await collect(engine.submit(request("long", PROMPTS[5])))
        assert len(await collect(good)) == 5


class DyingRunner(Gate):
    def decode(self, token_ids: list[int]) -> torch.Tensor:
        logits = super().decode(token_ids)
        if self.is_warm:
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


async def test_batch_is_bounded_by_memory_for_keys_and_values(tiny_model: Path):
    with gated(tiny_model) as engine:
        engine._max_kv_tokens = 300
        streams = [engine.submit(request(str(i), max_tokens=100, ignore_eos=True)) for i in range(4)]
        await until(lambda: engine.stats().running == 2)
        assert engine.stats().waiting == 2
        Gate.opened.set()
        assert [len(answer) for answer in await asyncio.gather(*map(collect, streams))] == [100] * 4


def test_model_len_is_the_smaller_of_setting_and_model(tiny_model: Path):
    with running(tiny_model, max_model_len=4096) as engine:
        assert engine.max_model_len == 2048


def test_folder_without_a_supported_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelSourceError, match="tokenizer cannot be read"):
        Engine(tmp_path, SETTINGS)
