"""Steps launched before the tokens of the one before are read: in that order, and nobody's answer differs."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from eager_capture import EagerCapture, repeat_in_engines
from pairwise import pairwise
from tiny_adapter import write_tiny_adapter
from tiny_model import write_tiny_model

from engine.config import GeneratorSettings
from engine.errors import ComponentUnavailable, DeadlineExceeded
from engine.generation.engine import Engine
from engine.generation.graphs.draws import Draw
from engine.generation.runner import Launched, Runner, StepLogits
from engine.generation.step import Step
from engine.values import GenerationRequest, Grammar, SamplingParams, TokenDelta

SETTINGS = GeneratorSettings(
    dtype="float32", threads=1, max_model_len=256, kv_tokens=4096, adapter_slots=2, max_draft_tokens=0, system_prompt=""
)
ENDLESS = 200


class LoggingRunner(Runner):
    """Notes what happens: ("launch", step, requests), ("read", step) and ("run", requests, drafts), as it happens.

    Further tokens of a step cost nothing, so drafts always pay. Reading waits while `opened` is not set.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.log: list[tuple[Any, ...]] = []
        self.known: list[list[int]] = []  # lengths of the sequences when each step was launched
        self.opened = threading.Event()
        self.opened.set()
        self.reached = threading.Event()

    def measure(self, num_tokens: int, *, is_decode: bool, num_before: int = 0) -> float:
        return 1.0

    def run(self, step: Step) -> StepLogits:
        self.log.append(("run", len(step.sequences), sum(len(sequence.drafts) for sequence in step.sequences)))
        return super().run(step)

    def launch(self, step: Step, draws: Sequence[Draw] = (), before: Launched | None = None) -> Launched | None:
        launched = super().launch(step, draws, before)
        if launched is None:
            return None
        number = len(self.known)
        self.known.append([len(sequence.tokens) for sequence in step.sequences])
        self.log.append(("launch", number, len(step.sequences)))
        return replace(launched, read=lambda: self.read(number, launched))

    def read(self, number: int, launched: Launched) -> list[int]:
        self.reached.set()
        assert self.opened.wait(30)
        self.log.append(("read", number))
        return launched.read()

    @property
    def num_launched(self) -> int:
        return len(self.known)


class LoggingEngine(Engine):
    """Checks its books after every step, and sets the youngest sequence back after every `preempt_every`-th."""

    runner_class = LoggingRunner
    preempt_every = 0
    _num_steps = 0

    def _step(self) -> None:
        super()._step()
        self._num_steps += 1
        if self.preempt_every and self._num_steps % self.preempt_every == 0:
            self._scheduler.preempt_youngest()  # also what is in flight
        self._scheduler.check()

    @property
    def runner(self) -> LoggingRunner:
        assert isinstance(self._runner, LoggingRunner)
        return self._runner


@pytest.fixture(autouse=True)
def capture(monkeypatch: pytest.MonkeyPatch) -> EagerCapture:
    return repeat_in_engines(monkeypatch)


@contextmanager
def running(
    model: Path, engine_class: type[LoggingEngine] = LoggingEngine, **settings: object
) -> Iterator[LoggingEngine]:
    engine = engine_class(model, SETTINGS.model_copy(update=settings))
    try:
        yield engine
    finally:
        engine.runner.opened.set()
        engine.close()


def request(name: str, length: int = 20, **options: Any) -> GenerationRequest:
    mine = {each: options.pop(each) for each in ("adapter", "drafts", "grammar", "deadline_s") if each in options}
    sampling = SamplingParams(**({"max_tokens": 12, "ignore_eos": "grammar" not in mine} | options))
    drawn = random.Random(length)
    prompt = tuple(drawn.randrange(3, 300) for _ in range(length))
    return GenerationRequest(name, (), sampling=sampling, prompt_token_ids=prompt, **mine)


async def collect(stream: Any) -> list[TokenDelta]:
    return [delta async for delta in stream]


async def text_of(engine: Engine, asked: GenerationRequest) -> str:
    return "".join(delta.text for delta in await collect(engine.submit(asked)))


async def idle(engine: LoggingEngine) -> None:
    """Wait until nothing runs, and all blocks are free again."""
    async with asyncio.timeout(20):
        while engine.stats().kv_tokens or engine._pipeline.is_flying:  # noqa: ASYNC110 - set by the engine's thread
            await asyncio.sleep(0.002)
    engine._scheduler.check()


async def test_next_step_is_launched_before_the_tokens_of_this_one_are_read(tiny_model: Path):
    with running(tiny_model) as engine:
        before = len(engine.runner.log)
        await collect(engine.submit(request("a", max_tokens=6)))
        await idle(engine)
        assert engine.runner.log[before:] == [
            ("run", 1, 0),  # the prompt, and the first token
            *[("launch", 0, 1), ("launch", 1, 1)],
            *[("read", 0), ("launch", 2, 1)],
            *[("read", 1), ("launch", 3, 1)],
            *[("read", 2), ("launch", 4, 1)],
            *[("read", 3), ("read", 4)],  # the length is known ahead: nothing is launched for nobody
        ]
        # When a step was launched, the host knew nothing of the one before.
        assert engine.runner.known == [[21], [21], [22], [23], [24]]


async def test_engine_that_must_not_overlap_never_does(tiny_model: Path):
    with running(tiny_model, overlap="off") as engine:
        await collect(engine.submit(request("a")))
        assert engine.runner.num_launched == 0


async def test_sampled_answers_are_launched_ahead_too_and_each_draws_as_it_does_alone(tiny_model: Path):
    asked = [
        request(str(number), 20 + number, temperature=temperature, seed=seed, top_k=top_k, top_p=top_p, min_p=min_p)
        for number, (temperature, seed, top_k, top_p, min_p) in enumerate(
            [(1.0, 7, 0, 1.0, 0.0), (0.0, 7, 0, 1.0, 0.0), (0.7, -1, 10**6, 0.9, 0.0), (1.3, 2**62, 40, 1.0, 0.05)]
        )
    ]
    with running(tiny_model, overlap="off") as engine:
        expected = [await text_of(engine, each) for each in asked]
    with running(tiny_model) as engine:
        assert [await text_of(engine, each) for each in asked] == expected
        assert engine.runner.num_launched == 4 * 11
        assert await asyncio.gather(*(text_of(engine, each) for each in asked)) == expected
        assert engine.runner.num_launched > 4 * 11 + 8


async def test_answer_that_ends_unforeseen_has_one_more_token_on_its_way_that_nobody_sees(tiny_model: Path):
    with running(tiny_model) as engine:
        whole = await text_of(engine, request("whole"))
        stop = whole[len(whole) // 2 :][:3]
        await idle(engine)
        before = engine.stats().output_tokens, engine.runner.num_launched
        deltas = await collect(engine.submit(request("cut", stop=(stop,))))
        await idle(engine)
        num_tokens = engine.stats().output_tokens - before[0]
        assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
        assert deltas[-1].finish_reason == "stop" and len(deltas) == num_tokens < 12
        # All but the first were launched, and one for which there was no answer any more.
        assert engine.runner.num_launched - before[1] == num_tokens - 1 + 1
        # What was thrown away is nobody's prefix: whoever begins with answer and prompt gets the same as without.
        assert await text_of(engine, request("whole again")) == whole


async def test_new_request_empties_the_pipeline_and_it_fills_again(tiny_model: Path):
    with running(tiny_model) as engine:
        first = engine.submit(request("first", max_tokens=ENDLESS))
        async for _ in first:
            if engine.runner.num_launched > 5:
                break
        await collect(engine.submit(request("second", 30, max_tokens=5)))
        await first.aclose()
        await idle(engine)
        kinds = [(each[0], each[-1]) for each in engine.runner.log if each[0] == "launch"]
        assert ("launch", 1) in kinds and ("launch", 2) in kinds
        # The second's prompt ran beside the first's decode, when everything launched before was read.
        run = max(index for index, each in enumerate(engine.runner.log) if each[0] == "run")
        numbers = [each[1] for each in engine.runner.log[:run] if each[0] in ("launch", "read")]
        assert engine.runner.log[run] == ("run", 2, 0) and all(numbers.count(number) == 2 for number in numbers)


async def test_full_batch_goes_on_overlapping_while_others_wait(tiny_model: Path):
    with running(tiny_model, max_num_seqs=1) as engine:
        answers = await asyncio.gather(*(collect(engine.submit(request(str(n), max_tokens=9))) for n in range(4)))
        assert [len(answer) for answer in answers] == [9] * 4
        assert engine.runner.num_launched == 4 * 8


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": 0},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"grammar": Grammar("regex", "[a-z]{5,9}")},
    ],
    ids=["log-probabilities", "penalty", "repetition", "grammar"],
)
async def test_answer_that_needs_the_host_is_never_launched_ahead_nor_are_those_beside_it(
    tiny_model: Path, options: dict[str, Any]
):
    with running(tiny_model) as engine:
        needy = asyncio.gather(collect(engine.submit(request("needy", **options))), text_of(engine, request("plain")))
        await needy
        # Only what was left of the other one when it was alone again.
        assert all(each[2] == 1 for each in engine.runner.log if each[0] == "launch")
        before = engine.runner.num_launched
        await collect(engine.submit(request("alone", **options)))
        assert engine.runner.num_launched == before


async def test_cancelled_and_late_requests_leave_while_their_steps_are_in_flight(tiny_model: Path):
    with running(tiny_model) as engine:
        engine.runner.opened.clear()
        stays = engine.submit(request("stays", 25, max_tokens=12))
        dropped = engine.submit(request("dropped", 20, max_tokens=ENDLESS))
        late = engine.submit(request("late", 30, max_tokens=ENDLESS, deadline_s=0.05))
        with pytest.raises(DeadlineExceeded):
            await collect(late)
        assert await asyncio.to_thread(engine.runner.reached.wait, 20)
        engine.cancel("dropped")
        again = engine.submit(request("dropped", 33, max_tokens=12))  # of the same name: gets its own tokens only
        engine.runner.opened.set()
        texts = ["".join(delta.text for delta in await collect(stream)) for stream in (stays, again)]
        assert all(delta.finish_reason is None for delta in await collect(dropped))
        await idle(engine)
        assert texts == [await text_of(engine, request("a", 25)), await text_of(engine, request("b", 33))]


async def test_closing_waits_for_what_is_in_flight(tiny_model: Path):
    with running(tiny_model) as engine:
        stream = engine.submit(request("pending", max_tokens=ENDLESS))
        while engine.runner.num_launched < 3:
            await anext(stream)
        engine.close()
        with pytest.raises(ComponentUnavailable, match="shutting down"):
            await collect(stream)
        numbers = [each[1] for each in engine.runner.log if each[0] != "run"]
        assert numbers and all(numbers.count(number) == 2 for number in numbers)


class ImpatientEngine(LoggingEngine):
    stalled_after_s = 0.05


async def test_health_check_raises_while_a_step_in_flight_does_not_end(tiny_model: Path):
    with running(tiny_model, ImpatientEngine) as engine:
        engine.runner.opened.clear()
        stream = engine.submit(request("stuck"))
        with pytest.raises(ComponentUnavailable, match="no step finished for"):
            async with asyncio.timeout(20):
                while True:
                    engine.check_health()
                    await asyncio.sleep(0.01)
        engine.runner.opened.set()
        assert len(await collect(stream)) == 12
        engine.check_health()


class FailingRunner(LoggingRunner):
    """What a step in flight says fails by `fault`: each third launch, each third read, or always where one is asked."""

    fault = ""

    def launch(self, step: Step, draws: Sequence[Draw] = (), before: Launched | None = None) -> Launched | None:
        if self.fault == "launch" and self.num_launched % 3 == 2:
            self.known.append([])
            raise RuntimeError("device error")
        return super().launch(step, draws, before)

    def read(self, number: int, launched: Launched) -> list[int]:
        ids = super().read(number, launched)
        if self.fault == "read" and number % 3 == 2:
            raise RuntimeError("device error")
        if self.fault == "no number" and len(ids) == 3:
            return [-1, *ids[1:]]
        return ids

    def run(self, step: Step) -> StepLogits:
        if self.fault == "no number" and any(
            sequence.id == "bad" and sequence.is_decoding for sequence in step.sequences
        ):
            raise RuntimeError("device error")
        return super().run(step)


class FailingEngine(LoggingEngine):
    runner_class = FailingRunner


@pytest.mark.parametrize("fault", ["launch", "read"])
async def test_step_that_fails_in_flight_runs_again_and_nobody_notices(tiny_model: Path, fault: str):
    asked = [request(str(length), length, max_tokens=15 + length) for length in (8, 16, 31)]
    with running(tiny_model, overlap="off") as engine:
        expected = await asyncio.gather(*(text_of(engine, each) for each in asked))
    with running(tiny_model, FailingEngine) as engine:
        engine.runner.fault = fault  # type: ignore[attr-defined]
        assert await asyncio.gather(*(text_of(engine, each) for each in asked)) == expected
        assert engine.runner.num_launched > 10
        await idle(engine)


async def test_request_that_makes_steps_in_flight_fail_ends_alone(tiny_model: Path):
    with running(tiny_model, FailingEngine) as engine:
        engine.runner.fault = "no number"  # type: ignore[attr-defined]
        bad = engine.submit(request("bad", 20, max_tokens=30))
        good = [engine.submit(request(f"good {n}", 20 + n, max_tokens=9)) for n in (1, 2)]
        with pytest.raises(ComponentUnavailable, match="step failed: RuntimeError"):
            await collect(bad)
        assert [len(answer) for answer in await asyncio.gather(*map(collect, good))] == [9, 9]
        await idle(engine)


class Sporadic:
    """A lookup for an answer that is known already: every now and then it drafts, now and then with a wrong token."""

    def __init__(self, answer: Sequence[int]) -> None:
        self._rest = list(answer)

    def extend(self, tokens: Iterable[int]) -> None:
        self._rest = self._rest[len(list(tokens)) :]

    def draft(self, max_tokens: int) -> list[int]:
        left = len(self._rest)
        if left % 7 > 2 or left < 3:
            return []
        return [*self._rest[:2], self._rest[0] if left % 2 else self._rest[2]]


async def test_drafts_leave_the_pipeline_and_it_goes_on_after_them(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    asked = request("a", max_tokens=40)
    with running(tiny_model, overlap="off") as engine:
        expected, tokens = await spoken(engine, asked)
    with running(tiny_model, max_draft_tokens=7) as engine:
        monkeypatch.setattr("engine.generation.intake.PromptLookup", lambda passages, prompt: Sporadic(tokens))
        assert await text_of(engine, asked) == expected
        await idle(engine)
        assert engine.runner.num_launched > 10
        assert sum(each[2] for each in engine.runner.log if each[0] == "run") > 3


async def spoken(engine: Engine, asked: GenerationRequest) -> tuple[str, list[int]]:
    """Text and tokens, which are asked for by their log-probabilities."""
    deltas = await collect(engine.submit(replace(asked, sampling=replace(asked.sampling, logprobs=0))))
    tokens = [token.token_id for delta in deltas for token in delta.logprobs]
    return "".join(delta.text for delta in deltas), tokens


FACTORS: dict[str, Sequence[Any]] = {
    "family": ("llama", "llama3", "mistral", "qwen2", "qwen3"),
    "sampled": ("greedy", "mixed", "sampled"),
    "adapters": ("none", "one", "several"),
    "end": ("1", "2", "21", "stop", "eos"),
    "leaves": ("nobody", "cancelled", "late"),
    "arrival": ("together", "in the middle"),
    "prefix": ("cold", "warm"),
    "blocks": ("plenty", "few"),
    "drafts": (False, True),
}
LENGTHS = (1, 15, 16, 33, 40)
NUM_NEW = 21


@dataclass
class Family:
    """A model that ends answers at a token which its greedy ones say, two adapters, and its engine without overlap."""

    path: Path
    adapters: dict[str, Path]
    plain: LoggingEngine

    @contextmanager
    def engine(self, **settings: object) -> Iterator[LoggingEngine]:
        with running(self.path, **settings) as started:
            for name, folder in self.adapters.items():
                started.load_adapter(name, folder)
            yield started


@contextmanager
def family(home: Path, name: str) -> Iterator[Family]:
    path = write_tiny_model(home / name, architecture=name, seed=1)
    with running(path, overlap="off") as engine:
        said = [asyncio.run(spoken(engine, request("a", length, max_tokens=NUM_NEW)))[1] for length in LENGTHS]
    ends = sorted({next(token for token in tokens[6:] if token not in tokens[:6]) for tokens in said})
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    adapters = {
        each: write_tiny_adapter(home / f"{name} {each}", path, seed=seed, rank=4 + 8 * seed)
        for seed, each in enumerate(("A", "B"))
    }
    with running(path, overlap="off") as plain:
        for each, folder in adapters.items():
            plain.load_adapter(each, folder)
        yield Family(path, adapters, plain)


def wanted(row: dict[str, Any], stop: str) -> list[GenerationRequest]:
    """The requests of a row, of which those at odd places are the sampled ones of a mixed batch."""
    names = {"none": (None,), "one": ("A",), "several": ("A", None, "B")}[row["adapters"]]
    max_tokens = int(row["end"]) if row["end"].isdigit() else NUM_NEW
    asked = []
    for number, length in enumerate(LENGTHS):
        options: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": row["end"] != "eos"}
        if row["end"] == "stop":
            options["stop"] = (stop,)
        if row["sampled"] == "sampled" or (row["sampled"] == "mixed" and number % 2):
            options |= {"temperature": 0.8, "seed": number, "top_p": 0.9}
        asked.append(request(str(number), length, adapter=names[number % len(names)], **options))
    return asked


async def answers(engine: LoggingEngine, row: dict[str, Any], asked: Sequence[GenerationRequest]) -> list[str]:
    """Texts of a row's requests beside one that leaves early; they come at once, or after some tokens of the first."""
    gone: list[Any] = []
    if row["leaves"] != "nobody":
        deadline_s = 0.02 if row["leaves"] == "late" else None
        gone.append(engine.submit(request("gone", 50, max_tokens=90, deadline_s=deadline_s)))
    if row["arrival"] == "together":
        tasks = [asyncio.ensure_future(collect(engine.submit(each))) for each in asked]
    else:
        first = engine.submit(asked[0])
        said = [await anext(first)]
        tasks = [asyncio.ensure_future(collect(engine.submit(each))) for each in asked[1:]]
        tasks.insert(0, asyncio.ensure_future(_rest(said, first)))
    for stream in gone:
        if row["leaves"] == "cancelled":
            await anext(stream)
            engine.cancel("gone")
            await collect(stream)
        else:
            with suppress(DeadlineExceeded):  # a quick machine may complete it
                await collect(stream)
    found = await asyncio.gather(*tasks)
    return ["".join(delta.text for delta in answer) + f" ({answer[-1].finish_reason})" for answer in found]


async def _rest(said: list[TokenDelta], stream: Any) -> list[TokenDelta]:
    return said if said[-1].finish_reason is not None else said + await collect(stream)


def test_answers_equal_those_of_steps_one_by_one_over_a_pairwise_cover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counts = dict.fromkeys(("launched", "drafted", "preempted", "ended"), 0)
    known: dict[tuple[int, ...], list[int]] = {}
    monkeypatch.setattr(
        "engine.generation.intake.PromptLookup", lambda passages, prompt: Sporadic(known.get(tuple(prompt), ()))
    )

    async def check(row: dict[str, Any], made: Family) -> None:
        whole, _ = await spoken(made.plain, request("whole", LENGTHS[-1], max_tokens=NUM_NEW))
        asked = wanted(row, stop=whole[len(whole) // 2 :][:2])
        known.update({each.prompt_token_ids: (await spoken(made.plain, each))[1] for each in asked})
        expected = await answers(made.plain, row | {"leaves": "nobody"}, asked)
        settings: dict[str, Any] = {"max_draft_tokens": 7 if row["drafts"] else 0}
        if row["blocks"] == "few":
            settings |= {"kv_tokens": 160, "max_model_len": 144}
        with made.engine(**settings) as ours:
            for name in (None, "A", "B") if row["prefix"] == "warm" else ():
                for each in asked:
                    relative = each.prompt_token_ids[: len(each.prompt_token_ids) * 2 // 3 + 1]
                    await collect(ours.submit(replace(each, adapter=name, prompt_token_ids=relative)))
            ours.preempt_every = 7 if row["blocks"] == "few" else 0
            assert await answers(ours, row, asked) == expected, row
            await idle(ours)
            counts["launched"] += ours.runner.num_launched
            counts["drafted"] += sum(each[2] for each in ours.runner.log if each[0] == "run")
            counts["preempted"] += ours.stats().num_preemptions
            counts["ended"] += sum(row["end"] == "eos" and answer.endswith("(stop)") for answer in expected)

    rows = pairwise(FACTORS)
    for name in FACTORS["family"]:
        with family(tmp_path, name) as made:
            for row in rows:
                if row["family"] == name:
                    asyncio.run(check(row, made))
            assert made.plain.runner.num_launched == 0
    assert counts["launched"] > 200 and min(counts.values()) > 10, counts
