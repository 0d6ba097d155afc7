"""Adapters in a running engine: loaded, replaced and unloaded under requests in progress."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_adapter import PeftReference, write_tiny_adapter

from engine.config import GeneratorSettings
from engine.errors import InvalidAdapter, UnknownAdapter, UnknownModel
from engine.generation.engine import Engine
from engine.generation.job import Job
from engine.generation.runner import Runner, StepLogits
from engine.generation.step import Step
from engine.values import GenerationRequest, SamplingParams, TokenDelta

SETTINGS = GeneratorSettings(dtype="float32", threads=1, max_model_len=512, kv_tokens=8192, adapter_slots=2)
PROMPT = tuple(range(40, 80))
NUM_NEW = 12


class Gate(Runner):
    """Waits before every decode step until the test lets it pass."""

    opened = threading.Event()

    def run(self, step: Step) -> StepLogits:
        if any(sequence.is_decoding for sequence in step.sequences):
            assert self.opened.wait(30)
        return super().run(step)


class GatedEngine(Engine):
    runner_class = Gate


@contextmanager
def running(model: Path, **settings: object) -> Iterator[Engine]:
    Gate.opened.set()
    engine = GatedEngine(model, SETTINGS.model_copy(update=settings))
    try:
        yield engine
    finally:
        Gate.opened.set()
        engine.close()


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("adapters")
    ranks = {"A": 4, "B": 12, "C": 8}
    return {
        name: write_tiny_adapter(home / name, tiny_model, seed=seed, rank=rank)
        for seed, (name, rank) in enumerate(ranks.items())
    }


@pytest.fixture(scope="module")
def expected(tiny_model: Path, folders: dict[str, Path]) -> dict[str, list[int]]:
    reference = PeftReference(tiny_model, folders)
    return {name: reference.answer(name, PROMPT, NUM_NEW) for name in ("", *folders)}


def submit(engine: Engine, name: str, adapter: str, prompt: tuple[int, ...] = PROMPT) -> AsyncIterator[TokenDelta]:
    sampling = SamplingParams(max_tokens=NUM_NEW, ignore_eos=True, logprobs=0)
    return engine.submit(
        GenerationRequest(name, (), sampling=sampling, adapter=adapter or None, prompt_token_ids=prompt)
    )


async def tokens(stream: AsyncIterator[TokenDelta]) -> list[int]:
    return [token.token_id async for delta in stream for token in delta.logprobs]


async def test_requests_of_different_adapters_share_a_batch_and_answer_as_peft_does(
    tiny_model: Path, folders: dict[str, Path], expected: dict[str, list[int]]
):
    with running(tiny_model) as engine:
        for name, folder in folders.items():
            engine.load_adapter(name, folder)
        assert [info.name for info in engine.adapters()] == ["A", "B", "C"]
        for wave in range(2):  # the second finds prefixes
            names = ["A", "", "B", "C", "A", "C", "", "B"]
            answers = await asyncio.gather(
                *(tokens(submit(engine, f"{wave} {i}", name)) for i, name in enumerate(names))
            )
            assert answers == [expected[name] for name in names]
        assert engine.stats().cached_tokens > 0
        assert 3 <= engine.stats().adapter_swaps <= 12
        assert len({tuple(answer) for answer in expected.values()}) == 4


async def test_answer_names_the_digest_of_its_adapter(tiny_model: Path, folders: dict[str, Path]):
    with running(tiny_model) as engine:
        info = engine.load_adapter("A", folders["A"])
        for adapter, digest in (("A", info.digest), ("", "")):
            first = await anext(submit(engine, f"x{adapter}", adapter))
            assert first.prompt is not None and first.prompt.adapter == digest


async def test_reload_under_the_same_name_gives_the_new_tokens_at_once_and_running_requests_the_old(
    tiny_model: Path, folders: dict[str, Path], expected: dict[str, list[int]], tmp_path: Path
):
    folder = tmp_path / "tone"
    shutil.copytree(folders["A"], folder)
    with running(tiny_model, adapter_slots=1) as engine:
        engine.load_adapter("tone", folder)
        assert await tokens(submit(engine, "warm", "tone")) == expected["A"]
        Gate.opened.clear()
        before = submit(engine, "before", "tone")
        first = await anext(before)
        shutil.rmtree(folder)
        shutil.copytree(folders["B"], folder)
        engine.load_adapter("tone", folder)
        after = submit(engine, "after", "tone")
        Gate.opened.set()
        old, new = await asyncio.gather(tokens(before), tokens(after))
        assert [first.logprobs[0].token_id, *old] == expected["A"]
        assert new == expected["B"]


async def test_unloaded_adapter_is_refused_while_its_running_request_is_completed(
    tiny_model: Path, folders: dict[str, Path], expected: dict[str, list[int]]
):
    with running(tiny_model, adapter_slots=1) as engine:
        engine.load_adapter("A", folders["A"])
        engine.load_adapter("B", folders["B"])
        Gate.opened.clear()
        stream = submit(engine, "a", "A")
        first = await anext(stream)
        engine.unload_adapter("A")
        with pytest.raises(UnknownModel, match="'A' is unknown; known: auto, B"):
            submit(engine, "late", "A")
        with pytest.raises(UnknownAdapter):
            engine.unload_adapter("A")
        waiting = asyncio.create_task(tokens(submit(engine, "b", "B")))
        Gate.opened.set()
        assert [first.logprobs[0].token_id, *await tokens(stream)] == expected["A"]
        assert await waiting == expected["B"]  # in the slot that was freed


async def test_adapter_that_is_read_again_holds_no_other_request_up(
    tiny_model: Path, folders: dict[str, Path], expected: dict[str, list[int]]
):
    with running(tiny_model) as engine:
        engine.load_adapter("A", folders["A"])
        engine._library._weights.clear()  # as after many others were used
        reading = threading.Event()
        read = engine._library._read
        engine._library._read = lambda path, name: (reading.wait(30), read(path, name))[1]
        slow = asyncio.create_task(tokens(submit(engine, "slow", "A")))
        await asyncio.sleep(0)
        assert await tokens(submit(engine, "fast", "")) == expected[""]
        assert not slow.done()
        reading.set()
        assert await slow == expected["A"]


async def test_files_that_vanished_or_changed_fail_the_request_with_the_reason(
    tiny_model: Path, folders: dict[str, Path], tmp_path: Path
):
    folder = tmp_path / "tone"
    shutil.copytree(folders["A"], folder)
    with running(tiny_model) as engine:
        engine.load_adapter("tone", folder)
        engine._library._weights.clear()
        shutil.rmtree(folder)
        with pytest.raises(InvalidAdapter, match="its folder is not there"):
            await tokens(submit(engine, "gone", "tone"))
        shutil.copytree(folders["B"], folder)
        with pytest.raises(InvalidAdapter, match="its files changed since; load it again"):
            await tokens(submit(engine, "changed", "tone"))


async def test_request_hears_of_unreadable_files_even_if_they_failed_before_it_joined(
    tiny_model: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "tone"
    shutil.copytree(folders["A"], folder)
    with running(tiny_model) as engine:
        engine.load_adapter("tone", folder)
        engine._library._weights.clear()
        shutil.rmtree(folder)
        answer_job = engine._intake.answer_job

        def answer_job_slowly(request: GenerationRequest) -> Job:
            job = answer_job(request)
            deadline_s = time.monotonic() + 30
            while not engine._library._failed or engine._library.has_changes:  # until the engine's thread has seen it
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            return job

        monkeypatch.setattr(engine._intake, "answer_job", answer_job_slowly)
        async with asyncio.timeout(30):
            with pytest.raises(InvalidAdapter, match="its folder is not there"):
                await tokens(submit(engine, "gone", "tone"))


async def test_hundred_names_over_four_slots_are_all_answered_and_unknown_ones_refused_without_a_read(
    tiny_model: Path, folders: dict[str, Path], expected: dict[str, list[int]], tmp_path: Path
):
    with running(tiny_model, adapter_slots=4, max_queued=128) as engine:
        names = [f"{kind}{number}" for number in range(34) for kind in "ABC"][:100]
        for name in names:
            # A configuration of its own gives each a digest, and so a slot, of its own.
            folder = tmp_path / name
            shutil.copytree(folders[name[0]], folder)
            with (folder / "adapter_config.json").open("a") as file:
                file.write(" " * int(name[1:]))
            engine.load_adapter(name, folder)
        reads = engine._library.num_reads
        with pytest.raises(UnknownModel):
            submit(engine, "unknown", "D0")
        assert engine._library.num_reads == reads
        answers = await asyncio.gather(*(tokens(submit(engine, name, name)) for name in names))
        assert answers == [expected[name[0]] for name in names]
        assert 100 <= engine.stats().adapter_swaps < 200


async def test_ranks_above_the_setting_are_refused(tiny_model: Path, folders: dict[str, Path]):
    with running(tiny_model, max_adapter_rank=8) as engine:
        engine.load_adapter("C", folders["C"])
        with pytest.raises(InvalidAdapter, match="r=12 must be from 1 to 8"):
            engine.load_adapter("B", folders["B"])
