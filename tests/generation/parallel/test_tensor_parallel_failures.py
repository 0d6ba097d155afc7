"""A rank that is gone ends the engine within its limits, and no rank outlives the others."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from rank_processes import RankPool, RankProcess
from tiny_model import write_tiny_model

from engine.config import GeneratorSettings
from engine.errors import ComponentUnavailable, ConfigError, RankLost
from engine.generation.engine import Engine
from engine.generation.parallel.runner import ParallelRunner
from engine.generation.step_inputs import StepInputs
from engine.values import GenerationRequest, SamplingParams, TokenDelta

SETTINGS = GeneratorSettings(dtype="float32", threads=1, max_model_len=512, kv_tokens=2048, tensor_parallel=2)


class Restless(ParallelRunner):
    idle_s = 0.05


class RestlessEngine(Engine):
    """Asks the other rank for a sign of life all the time that it is idle."""

    parallel_runner_class = Restless


def endless(engine: Engine) -> asyncio.Task[list[TokenDelta]]:
    asked = GenerationRequest(
        "endless", (), sampling=SamplingParams(max_tokens=480, ignore_eos=True), prompt_token_ids=(5, 6, 7)
    )

    async def collect() -> list[TokenDelta]:
        return [delta async for delta in engine.submit(asked)]

    return asyncio.create_task(collect())


def is_unhealthy(engine: Engine) -> bool:
    try:
        engine.check_health()
    except ComponentUnavailable as error:
        assert "a process of generator.tensor_parallel died, or did not answer" in str(error)
        return True
    return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the condition is set by the engine's thread
            await asyncio.sleep(0.01)


async def test_tensor_parallel_engine_fails_what_runs_when_a_rank_is_killed(rank_pool: RankPool, tiny_model: Path):
    with rank_pool.engine(tiny_model, SETTINGS) as engine:
        running = endless(engine)
        await until(lambda: engine.stats().running > 0)
        rank_pool.others[0].process.kill()
        with pytest.raises(ComponentUnavailable, match=r"a process of generator\.tensor_parallel died"):
            await asyncio.wait_for(running, 30)
        await until(lambda: is_unhealthy(engine))
        await until(lambda: not engine._thread.is_alive())
    assert rank_pool.ends == ["died"]


async def test_tensor_parallel_engine_that_is_idle_notices_a_killed_rank(rank_pool: RankPool, tiny_model: Path):
    with rank_pool.engine(tiny_model, SETTINGS, RestlessEngine) as engine:
        engine.check_health()
        rank_pool.others[0].process.kill()
        await until(lambda: is_unhealthy(engine))
    assert rank_pool.ends == ["died"]


async def test_tensor_parallel_engine_gives_up_on_a_rank_that_hangs(rank_pool: RankPool, tiny_model: Path):
    with rank_pool.group(tiny_model, SETTINGS, answer_s=10.0) as ranks:
        engine = RestlessEngine(tiny_model, SETTINGS, ranks=ranks)
        other = rank_pool.others[0].process
        other.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: is_unhealthy(engine))
        finally:
            other.send_signal(signal.SIGCONT)
            engine.close()
    assert rank_pool.ends[0].startswith("RankLost")


def test_tensor_parallel_ranks_end_when_the_first_is_killed(rank_pool: RankPool, tiny_model: Path, tmp_path: Path):
    others = rank_pool.start(tmp_path, tiny_model, SETTINGS)
    first = RankProcess()
    try:
        first.be(tmp_path, 0, tiny_model, SETTINGS)
        assert first.ended() == "leads"
        assert others[0].process.poll() is None
    finally:
        first.close()
    assert others[0].ended().startswith("RankLost: a process of generator.tensor_parallel died")


async def test_tensor_parallel_ranks_stop_when_the_engine_closes(rank_pool: RankPool, tiny_model: Path):
    with rank_pool.engine(tiny_model, SETTINGS, RestlessEngine) as engine:
        assert engine.stats().running == 0
    assert rank_pool.ends == ["stopped"]


class FailingRunner(ParallelRunner):
    """Its first long step fails behind the others' backs."""

    def compute(self, inputs: StepInputs) -> object:
        if len(inputs.token_ids) == 3:
            self._decoder = None  # type: ignore[assignment]
        return super().compute(inputs)


class FailingEngine(Engine):
    parallel_runner_class = FailingRunner


async def test_tensor_parallel_engine_ends_when_a_step_fails_on_one_rank(rank_pool: RankPool, tiny_model: Path):
    with rank_pool.engine(tiny_model, SETTINGS, FailingEngine) as engine:
        with pytest.raises(ComponentUnavailable, match="a step failed on one of the generator's processes"):
            await asyncio.wait_for(endless(engine), 30)
        with pytest.raises(ComponentUnavailable, match="AttributeError"):
            engine.check_health()
    assert rank_pool.ends[0].startswith("RankLost")


def test_tensor_parallel_ranks_with_different_models_are_refused(rank_pool: RankPool, tiny_model: Path, tmp_path: Path):
    other = write_tiny_model(tmp_path, architecture="qwen2")
    with (
        pytest.raises(ConfigError, match="read different models"),
        rank_pool.group(tiny_model, SETTINGS, other_model=other) as ranks,
    ):
        Engine(tiny_model, SETTINGS, ranks=ranks)
    assert rank_pool.ends[0].startswith("ConfigError")


def test_tensor_parallel_engine_does_not_wait_for_a_rank_that_cannot_start(
    rank_pool: RankPool, tiny_model: Path, tmp_path: Path
):
    with (
        pytest.raises(RankLost, match=r"generator\.tensor_parallel died"),
        rank_pool.group(tiny_model, SETTINGS, other_model=tmp_path / "missing") as ranks,
    ):
        Engine(tiny_model, SETTINGS, ranks=ranks)
    assert rank_pool.ends[0].startswith("ModelSourceError")
